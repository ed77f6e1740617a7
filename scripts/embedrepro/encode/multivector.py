"""Late interaction: ColBERT models of PyLate, Stanford and sentence-transformers' own.

Loaded and run as `MultiVectorEncoder` does: prefixes, query expansion, skip list, projection.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from sentence_transformers import MultiVectorEncoder

from ..errors import UserError, printable
from .batches import Batch
from .facts import Facts
from .features import ModuleEngine, Rows, architectures, listed_modules

OWN = ("HF_ColBERT", "ForRetrieval")  # ends of architectures that bring their projection


class TokensPart(NamedTuple):
    """Finished texts: `rows` (n,) int64, how many vectors each has, `vectors` (…, dimension).

    `tokens` run, texts `truncated`.
    """

    rows: np.ndarray
    lengths: np.ndarray
    vectors: np.ndarray
    tokens: int
    truncated: int


class MultiVectorEngine(ModuleEngine[TokensPart]):
    """What `MultiVectorEncoder` loads. `similarity`: maxsim or meanmaxsim, for the sidecar."""

    name = "multivector"

    def __init__(
        self,
        facts: Facts,
        device: str,
        tokens_per_batch: int | None = None,
        compiled: bool = False,
    ) -> None:
        super().__init__(facts, device, tokens_per_batch, compiled)
        self.dimension = int(self.model.get_embedding_dimension())
        self.similarity: str = self.model.similarity_fn_name
        self.remarks = {"similarity": self.similarity}

    def _load(self, model_kwargs: dict[str, Any]) -> MultiVectorEncoder:
        refuse_untrained_multivector(self.facts)
        return MultiVectorEncoder(
            str(self.facts.staged),
            device=str(self.device),
            local_files_only=True,
            trust_remote_code=self.facts.trust_remote_code,
            model_kwargs=model_kwargs,
        )

    def _part(self, features: dict[str, Any], batch: Rows, n: int) -> TokensPart:
        mask = features["attention_mask"][:n].bool()
        vectors = features["token_embeddings"][:n]
        return tokens_part(vectors, mask, batch, n, self.facts, self.precision.stored)

    def _flat_tensors(self, features: dict[str, Any], n: int, used: int) -> list[torch.Tensor]:
        vectors = features["token_embeddings"][0, :used].float()
        kept = features["attention_mask"][0, :used].bool()
        stored = vectors.to(getattr(torch, self.precision.stored.name))
        return [stored, kept, torch.isfinite(stored).all(1)]

    def _flat_part(self, batch: Batch, arrays: list[np.ndarray]) -> TokensPart:
        vectors, kept, finite = arrays
        sequences = batch.sequences
        starts = np.cumsum(sequences.lengths) - sequences.lengths
        bad = np.flatnonzero(kept & ~finite)
        if len(bad):
            place = int(np.searchsorted(starts, bad[0], "right")) - 1
            raise not_finite(self.facts, int(sequences.rows[place]))
        lengths = np.add.reduceat(kept, starts, dtype=np.int64)
        cut = int(sequences.truncated.sum())
        found = vectors if kept.all() else vectors[kept]
        return TokensPart(sequences.rows, lengths, found, len(sequences.ids), cut)

    def _empty_part(self, rows: np.ndarray) -> TokensPart:
        vectors: np.ndarray = np.empty((0, self.dimension), self.precision.stored)
        return TokensPart(rows, np.zeros(len(rows), np.int64), vectors, 0, 0)


def not_finite(facts: Facts, row: int) -> UserError:
    name = printable(facts.model_id)
    return UserError(f"{name}: text {row} has NaN or Inf in its vectors; try dtype: float32")


def tokens_part(
    vectors: torch.Tensor, mask: torch.Tensor, batch: Rows, n: int, facts: Facts, stored: np.dtype
) -> TokensPart:
    """`vectors` (n, width, dimension) where `mask` (n, width) is set, text by text."""
    lengths = mask.sum(1).cpu().numpy()
    found = vectors[mask].float().cpu().numpy()
    bad = ~np.isfinite(found).all(1)
    if bad.any():
        row = batch.rows[np.searchsorted(np.cumsum(lengths), int(np.argmax(bad)), "right")]
        raise not_finite(facts, int(row))
    tokens, cut = int(batch.tokens[:n].sum()), int(batch.cut[:n].sum())
    return TokensPart(batch.rows[:n], lengths, found.astype(stored), tokens, cut)


def refuse_untrained_multivector(facts: Facts) -> None:
    """Refuse a folder whose projection `MultiVectorEncoder` would make at random."""
    modules = listed_modules(facts.staged)
    own = any(name.endswith(OWN) for name in architectures(facts.staged))
    projected = "Dense" in modules or "MultiVectorMask" in modules
    if not (projected if modules else own):
        raise UserError(
            f"{printable(facts.model_id)}: is no late-interaction model: its files have no "
            "projection of token vectors; use kind: dense"
        )
