"""What every engine is to a caller, and the table of them. Imports nothing heavy."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, get_args, runtime_checkable

import numpy as np

from ..errors import UserError, printable
from ..models.facts_table import Dtype, Role
from .batches import Part
from .facts import Facts

if TYPE_CHECKING:
    import torch

DTYPES: tuple[Dtype, ...] = get_args(Dtype)


@dataclass(frozen=True)
class Precision:
    """In what a model computes.

    `dtype`: what its weights are rounded to, one of `DTYPES`; it alone is part of a key.
    `arithmetic`: what products are made in. A CPU is slow in half precision: there weights are
    rounded as asked and the arithmetic is float32, as FlagEmbedding does it.
    """

    dtype: Dtype
    arithmetic: Dtype

    @property
    def stored(self) -> np.dtype:
        """What vectors are stored as."""
        return np.dtype(np.float32 if self.dtype == "float32" else np.float16)


@runtime_checkable
class Engine(Protocol):
    """A loaded model.

    `dimension`: length of a whole vector. `tokens_per_batch`: the budget in use, None where it has
    none. `remarks`: what else a sidecar says of the computation, or says otherwise.
    """

    name: str
    facts: Facts
    device: "torch.device"
    precision: Precision
    dimension: int
    tokens_per_batch: int | None
    remarks: dict[str, Any]

    def encode(
        self,
        texts: Iterable[str],
        role: Role,
        instruction: str | None = None,
        *,
        prompt: str | None = None,
        dimensions: int | None = None,
    ) -> Iterator[Part]:
        """Vectors of `texts`, in parts as they are done (see the package's docstring).

        `prompt`: what stands before each text; None is the staged prompt of `role`, with
        `instruction` for its {task}. `dimensions`: how many of a vector's numbers are kept, None is
        as staged. Raises `UserError` for a request that doesn't fit, before anything is computed.
        """
        ...


@runtime_checkable
class Turning(Protocol):
    """An engine that can go on in another precision with the weights that it has."""

    def turn(self, facts: Facts, compiled: bool) -> bool:
        """Whether it computes as `facts` say from now on; else it is as it was."""
        ...


@dataclass(frozen=True)
class Kind:
    """Where an engine is, and the packages whose versions its vectors depend on.

    `local`: it computes here, with transformers; else elsewhere.
    """

    module: str
    cls: str
    packages: tuple[str, ...]
    local: bool = True

    def load(self) -> Any:
        """The engine's class; imports what it needs."""
        return getattr(import_module(self.module, __package__), self.cls)


_BASE = ("torch", "transformers", "tokenizers")
ENGINES = {
    "packed": Kind(".packed", "PackedEngine", _BASE),
    "sentence_transformers": Kind(
        ".sentence_transformers", "SentenceTransformersEngine", (*_BASE, "sentence-transformers")
    ),
    # Named as the kind of model, which decides: see `engine_of`.
    "sparse": Kind(".sparse", "SparseEngine", (*_BASE, "sentence-transformers")),
    "multivector": Kind(".multivector", "MultiVectorEngine", (*_BASE, "sentence-transformers")),
    "m3": Kind(".m3", "M3Engine", (*_BASE, "safetensors")),
    "flagembedding": Kind(".flag", "FlagEngine", (*_BASE, "FlagEmbedding")),
    "http": Kind(".http", "HttpEngine", (), local=False),
}


def engine_of(facts: Facts) -> str:
    """The engine that runs a model: one by its kind of vectors, or the one that its facts name."""
    return facts.kind if facts.kind in ENGINES else facts.engine


def pick_precision(dtype: Dtype, device: str, *, fp8: bool = False) -> Precision:
    """How `dtype` is computed on `device` (cpu or cuda). `fp8`: whether the engine has it."""
    if dtype == "fp8":
        if device != "cuda":
            raise UserError("dtype fp8 needs a CUDA device; use bfloat16 or float32 on CPU")
        if not fp8:
            raise UserError("dtype fp8 needs engine: packed")
    return Precision(dtype, dtype if device == "cuda" else "float32")


def cut_dimensions(facts: Facts, whole: int, dimensions: int | None) -> int:
    """How many of a vector's `whole` numbers are kept."""
    kept = dimensions or facts.dimensions or whole
    if not 0 < kept <= whole:
        raise UserError(f"{printable(facts.model_id)}: dimensions {kept}; use 1 to {whole}")
    return kept


def check_finite(vectors: np.ndarray, rows: np.ndarray, facts: Facts, precision: Precision) -> None:
    """Refuse NaN and infinity in the `vectors` (n, dimension) of texts `rows` (n,)."""
    bad = ~np.isfinite(vectors).all(1)
    if bad.any():
        raise UserError(
            f"{printable(facts.model_id)}: text {rows[bad][0]} has NaN or Inf in its vector "
            f"(computed in {precision.dtype}); try dtype: float32"
        )
