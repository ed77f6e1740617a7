"""Sparse vectors: compressed rows of (term, weight), terms upwards in each row."""

from pathlib import Path
from typing import Any

import numpy as np

from .ragged import Field, Ragged, RaggedWriter

KIND = "sparse"


class SparseWriter(RaggedWriter):
    """A piece of `rows` sparse vectors over `width` terms (see `RaggedWriter`).

    `put(rows, lengths, columns, values)`: `columns` are terms, upwards within a row; `values` are
    stored as `dtype`.
    """

    def __init__(self, path: Path | str, rows: int, width: int, dtype: np.dtype) -> None:
        fields = {"columns": Field(np.dtype(np.int32)), "values": Field(np.dtype(dtype))}
        super().__init__(path, rows, fields, KIND)
        self.width = width

    def seal(self, **meta: Any) -> dict[str, Any]:
        return super().seal(**{"width": self.width} | meta)


class SparseVectors(Ragged):
    """A piece of sparse vectors. `width`: number of terms."""

    def __init__(self, path: Path | str, verify: bool = True) -> None:
        super().__init__(path, KIND, "values", verify)
        self.width = int(self.meta["width"])

    def block(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Columns int32 and values of rows [start, stop), laid end to end."""
        first, last = int(self.offsets[start]), int(self.offsets[stop])
        return self.items("columns", first, last), self.items("values", first, last)
