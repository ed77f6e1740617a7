"""Token vectors: several vectors for each text, laid end to end."""

from pathlib import Path

import numpy as np

from .ragged import Field, Ragged, RaggedWriter

KIND = "multivector"
SIMILARITIES = ("maxsim", "meanmaxsim")


class TokenWriter(RaggedWriter):
    """A piece of `rows` texts with vectors of `dimension` numbers (see `RaggedWriter`).

    `put(rows, lengths, vectors)`: `vectors` (sum of lengths, dimension), stored as `dtype`.
    """

    def __init__(self, path: Path | str, rows: int, dimension: int, dtype: np.dtype) -> None:
        super().__init__(path, rows, {"tokens": Field(np.dtype(dtype), (dimension,))}, KIND)


class TokenVectors(Ragged):
    """A piece of token vectors.

    `similarity`: `maxsim`, or `meanmaxsim`, which divides by the number of the query's vectors.
    """

    def __init__(self, path: Path | str, verify: bool = True) -> None:
        super().__init__(path, KIND, "tokens", verify)
        self.dimension = self.fields["tokens"].item[0]
        self.similarity: str = self.meta.get("similarity", SIMILARITIES[0])

    def block(self, start: int, stop: int) -> np.ndarray:
        """Vectors (tokens, dimension) of rows [start, stop)."""
        return self.items("tokens", int(self.offsets[start]), int(self.offsets[stop]))
