"""Sparse encoders: SPLADE, inference-free and autoencoder models, as `SparseEncoder` runs them."""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from sentence_transformers import SparseEncoder
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding
from sentence_transformers.util import select_max_active_dims

from ..errors import UserError, printable
from ..models.facts_table import Role
from .batches import Batch
from .facts import Facts
from .features import ModuleEngine, Rows, architectures, listed_modules
from .steps import in_blocks

SIMILARITIES = ("dot", "cosine")
LOGITS = 2**30  # numbers that a batch's logits may have on CUDA, 2^27 on a CPU
OWN = {"SpladePooling", "SparseAutoEncoder", "SparseStaticEmbedding", "Router", "Asym"}


class SparsePart(NamedTuple):
    """Finished vectors: `rows` (n,) int64, how many terms each has, (terms, weights) end to end.

    Terms are upwards in a row, weights are not 0. `tokens` run, texts `truncated`.
    """

    rows: np.ndarray
    lengths: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    tokens: int
    truncated: int


class SparseEngine(ModuleEngine[SparsePart]):
    """What `SparseEncoder` loads. `dimension`: number of terms.

    A model that compares by cosine gives vectors of length 1, so that dot products do.
    """

    name = "sparse"

    dimension: int

    def _most_tokens(self) -> int:
        # Before a first text no module knows it.
        probe = self.model.encode(["a"], task="query", convert_to_sparse_tensor=False)
        self.dimension = int(probe.shape[-1])
        most = LOGITS if self.device.type == "cuda" else LOGITS // 8
        return 2 ** int(np.log2(max(1, most // self.dimension)))

    def _load(self, model_kwargs: dict[str, Any]) -> SparseEncoder:
        refuse_untrained_sparse(self.facts)
        model = SparseEncoder(
            str(self.facts.staged),
            device=str(self.device),
            local_files_only=True,
            trust_remote_code=self.facts.trust_remote_code,
            model_kwargs=model_kwargs,
        )
        if model.similarity_fn_name not in SIMILARITIES:
            raise UserError(
                f"{printable(self.facts.model_id)}: compares by {model.similarity_fn_name}; sparse "
                f"search has {' and '.join(SIMILARITIES)}"
            )
        return model

    def _preprocess(self, texts: list[str], role: Role, prompt: str) -> dict[str, Any]:
        for module in self.model.modules():
            if isinstance(module, SparseStaticEmbedding):  # it asks its tokenizer only
                tokenizer: Any = module.tokenizer
                tokenizer.model_max_length = self.facts.max_length[role]
        return super()._preprocess(texts, role, prompt)

    def _forward_options(self) -> dict[str, Any]:
        most = self.model.max_active_dims
        return {} if most is None else {"max_active_dims": most}

    def _part(self, features: dict[str, Any], batch: Rows, n: int) -> SparsePart:
        vectors = self._vectors(features, n)
        return sparse_part(vectors, batch, n, self.facts, self.precision.stored)

    def _flat_tensors(self, features: dict[str, Any], n: int, used: int) -> list[torch.Tensor]:
        return compressed(self._vectors(features, n), self.precision.stored)

    def _flat_part(self, batch: Batch, arrays: list[np.ndarray]) -> SparsePart:
        sequences = batch.sequences
        counts = len(sequences.ids), int(sequences.truncated.sum())
        return finished(sequences.rows, arrays, counts, self.facts)

    def _empty_part(self, rows: np.ndarray) -> SparsePart:
        terms, weights = np.empty(0, np.int32), np.empty(0, self.precision.stored)
        return SparsePart(rows, np.zeros(len(rows), np.int64), terms, weights, 0, 0)

    def _vectors(self, features: dict[str, Any], n: int) -> torch.Tensor:
        """(n, terms) float32."""
        vectors = features["sentence_embedding"][:n].float()
        vectors = select_max_active_dims(vectors, self.model.max_active_dims)
        if self.model.similarity_fn_name == "cosine":
            vectors = in_blocks(partial(torch.nn.functional.normalize, dim=-1), vectors)
        return vectors


def compressed(vectors: torch.Tensor, stored: np.dtype) -> list[torch.Tensor]:
    """`vectors` (n, terms) float32 as compressed rows, by row, then by term.

    How many terms each row has, terms, weights, and whether all of a row's are finite.
    """
    rows, terms = vectors.nonzero().unbind(1)
    weights = vectors[rows, terms].to(getattr(torch, stored.name))
    lengths = torch.bincount(rows, minlength=len(vectors))
    return [lengths, terms.int(), weights, torch.isfinite(vectors).all(1)]


def finished(
    rows: np.ndarray, arrays: list[np.ndarray], counts: tuple[int, int], facts: Facts
) -> SparsePart:
    """What `compressed` gave, on the host, as the part of `rows`; `counts`: tokens, texts cut."""
    lengths, terms, weights, finite = arrays
    if not finite.all():
        raise UserError(
            f"{printable(facts.model_id)}: text {rows[np.argmin(finite)]} has NaN or Inf in its "
            "vector; try dtype: float32"
        )
    return SparsePart(rows, lengths, terms, weights, *counts)


def sparse_part(
    vectors: torch.Tensor, batch: Rows, n: int, facts: Facts, stored: np.dtype
) -> SparsePart:
    """`vectors` (n, terms) float32 on any device as compressed rows."""
    arrays = [tensor.cpu().numpy() for tensor in compressed(vectors, stored)]
    counts = int(batch.tokens[:n].sum()), int(batch.cut[:n].sum())
    return finished(batch.rows[:n], arrays, counts, facts)


def refuse_untrained_sparse(facts: Facts) -> None:
    """Refuse a folder whose missing part `SparseEncoder` would make at random."""
    modules = listed_modules(facts.staged)
    plain = any(name.endswith("ForMaskedLM") for name in architectures(facts.staged))
    if not (OWN & set(modules) if modules else plain):
        raise UserError(
            f"{printable(facts.model_id)}: is no sparse encoder: its files have neither a masked "
            "language model's head nor a sparse module; use kind: dense"
        )
