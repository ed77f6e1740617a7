"""Sparse encoders: SPLADE, inference-free and autoencoder models, as `SparseEncoder` runs them."""

from typing import Any, NamedTuple

import numpy as np
import torch
from sentence_transformers import SparseEncoder
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding
from sentence_transformers.util import select_max_active_dims

from ..errors import UserError, printable
from ..models.facts_table import Role
from .facts import Facts
from .features import ModuleEngine, Rows, architectures, listed_modules

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

    def __init__(
        self,
        facts: Facts,
        device: str,
        tokens_per_batch: int | None = None,
        compiled: bool = False,
    ) -> None:
        super().__init__(facts, device, tokens_per_batch, compiled)
        # Before a first text no module knows it.
        probe = self.model.encode(["a"], task="query", convert_to_sparse_tensor=False)
        self.dimension = int(probe.shape[-1])
        if tokens_per_batch is None:
            most = LOGITS if self.device.type == "cuda" else LOGITS // 8
            fitting = 2 ** int(np.log2(max(1, most // self.dimension)))
            self.tokens_per_batch = min(self.tokens_per_batch, fitting)

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
        vectors = features["sentence_embedding"][:n].float()
        vectors = select_max_active_dims(vectors, self.model.max_active_dims)
        if self.model.similarity_fn_name == "cosine":
            vectors = torch.nn.functional.normalize(vectors, dim=-1)
        return sparse_part(vectors, batch, n, self.facts, self.precision.stored)


def sparse_part(
    vectors: torch.Tensor, batch: Rows, n: int, facts: Facts, stored: np.dtype
) -> SparsePart:
    """`vectors` (n, terms) float32 on any device as compressed rows."""
    if not torch.isfinite(vectors).all():
        row = batch.rows[int((~torch.isfinite(vectors)).any(1).nonzero()[0])]
        raise UserError(
            f"{printable(facts.model_id)}: text {row} has NaN or Inf in its vector; "
            "try dtype: float32"
        )
    places = vectors.nonzero()  # by row, then by term
    values = vectors[places[:, 0], places[:, 1]].cpu().numpy().astype(stored)
    columns = places[:, 1].int().cpu().numpy()
    lengths = np.bincount(places[:, 0].cpu().numpy(), minlength=n)
    tokens, cut = int(batch.tokens[:n].sum()), int(batch.cut[:n].sum())
    return SparsePart(batch.rows[:n], lengths, columns, values, tokens, cut)


def refuse_untrained_sparse(facts: Facts) -> None:
    """Refuse a folder whose missing part `SparseEncoder` would make at random."""
    modules = listed_modules(facts.staged)
    plain = any(name.endswith("ForMaskedLM") for name in architectures(facts.staged))
    if not (OWN & set(modules) if modules else plain):
        raise UserError(
            f"{printable(facts.model_id)}: is no sparse encoder: its files have neither a masked "
            "language model's head nor a sparse module; use kind: dense"
        )
