"""What both engines are to a caller."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from .batches import Part
from .facts import Facts
from .tokens import Tokeniser


class Engine:
    """A loaded model. The package's docstring says what `encode` does.

    `compute_dtype`: what the model runs in. `tokens_per_batch`: the budget in use.
    """

    name: str
    facts: Facts
    tokenizer: Any
    compute_dtype: str
    tokens_per_batch: int

    def use(self, facts: Facts) -> None:
        """Take other prompts and lengths of the same model: another role's."""
        self.facts = facts

    @property
    def array_dtype(self) -> np.dtype:
        """What vectors are stored as."""
        return np.dtype(np.float32 if self.compute_dtype == "float32" else np.float16)

    def encode(
        self, texts: Iterable[str], role: str, instruction: str | None = None
    ) -> Iterator[Part]:
        tokeniser = Tokeniser(self.tokenizer, self.facts, role, instruction)
        return self._parts(tokeniser, texts)  # a mistake shows before anything is asked for

    def _parts(self, tokeniser: Tokeniser, texts: Iterable[str]) -> Iterator[Part]:
        raise NotImplementedError
