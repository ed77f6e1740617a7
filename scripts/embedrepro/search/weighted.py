"""BGE-M3's weighted sum of its three scores, for the candidates that other runs name.

As FlagEmbedding's `M3Embedder.compute_score` has it: dense times its weight, plus lexical times
its weight, plus late interaction times its weight, divided by the sum of the weights. The three
scores are those of the three searches, float32 each; the sum is made in float64 and rounded once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..encode import pick_device
from ..encode.formats import m3_outputs
from ..errors import UserError
from ..vectors.embeddings import open_embeddings
from ..vectors.multivector import TokenVectors
from ..vectors.sparse import SparseVectors
from . import maxsim, sparse
from .pieces import Pieces, rescore
from .runs import Ranking, iter_run, read_ids
from .scores import dot

WAYS = ("dense", "sparse", "tokens")  # also the order of weights
Weights = tuple[float, float, float]


def check_weights(weights: Sequence[float]) -> Weights:
    """Three numbers of which at least one is above 0, none below; raises `UserError`."""
    if len(weights) != 3 or min(weights) < 0 or not max(weights) > 0:
        raise UserError(
            f"weights {list(weights)}: give three numbers, {', '.join(WAYS)}, from 0 on"
        )
    return weights[0], weights[1], weights[2]


def weighted_sum(scores: Sequence[np.ndarray], weights: Weights) -> np.ndarray:
    """(n,) float32 of three arrays (n,) float32, in the order of `WAYS`."""
    total = np.zeros(len(scores[0]))
    for score, weight in zip(scores, weights, strict=True):
        total += score.astype(np.float64) * weight
    return (total / sum(weights)).astype(np.float32)


@dataclass(frozen=True)
class DenseRows:
    """A dense piece as `Pieces` takes it."""

    path: Path
    vectors: np.ndarray
    meta: dict[str, Any]

    @property
    def rows(self) -> int:
        return len(self.vectors)


def open_dense(path: Path | str) -> DenseRows:
    """Memory-map a dense piece, its digests checked."""
    vectors, meta = open_embeddings(path)
    return DenseRows(Path(path), vectors, meta)


def dense_pairs(
    queries: DenseRows, corpus: Sequence[DenseRows], q: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """Scores (n,) float32 of pairs of a row of `queries` and a row of the corpus, as dense search
    has them."""
    scores = np.empty(len(q), np.float32)
    for piece, places, own in Pieces(corpus).split(rows):
        asked = torch.from_numpy(queries.vectors[q[places]])
        scores[places] = dot(asked, torch.from_numpy(piece.vectors[own])).numpy()
    return scores


class M3Pairs:
    """Scores of pairs from BGE-M3's pieces. `queries` and `corpus` name the dense files."""

    def __init__(self, queries: Path, corpus: Sequence[Path], device: str = "cpu") -> None:
        self.device = device
        self.dense = open_dense(queries), [open_dense(path) for path in corpus]
        names = [m3_outputs(Path(path)) for path in (queries, *corpus)]
        lexical = [SparseVectors(name) for name, _ in names]
        tokens = [TokenVectors(name) for _, name in names]
        self.sparse = lexical[0], lexical[1:]
        self.tokens = tokens[0], tokens[1:]

    def scores(self, q: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The three scores (n,) of pairs, in the order of `WAYS`."""
        return (
            dense_pairs(*self.dense, q, rows),
            sparse.score_pairs(*self.sparse, q, rows),
            maxsim.score_pairs(*self.tokens, q, rows, self.device),
        )


def rank(
    runs: Sequence[Path | str],
    queries: Path,
    query_ids: Path | str,
    corpus: Sequence[Path],
    doc_ids: Path | str,
    weights: Sequence[float],
    depth: int,
    device: str,
) -> Iterator[Ranking]:
    """All documents that are among the best `depth` of a query in one of `runs`, by weighted sum.

    `queries`, `corpus`: the dense files of BGE-M3's pieces of `query_ids` and `doc_ids` (Parquet).
    Rankings come in the order in which runs first name the queries, each in trec_eval's order.
    """
    checked = check_weights(weights)
    pairs = M3Pairs(queries, corpus, pick_device(device))
    named: dict[str, dict[str, None]] = {}
    for run in runs:
        for query, docs, _ in iter_run(run):
            named.setdefault(query, {}).update(dict.fromkeys(docs[:depth]))
    candidates = [(query, list(docs), np.zeros(0, np.float32)) for query, docs in named.items()]

    def summed(q: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return weighted_sum(pairs.scores(q, rows), checked)

    most = max((len(docs) for _, docs, _ in candidates), default=0)
    names = ", ".join(map(str, runs))
    yield from rescore(candidates, read_ids(query_ids), read_ids(doc_ids), most, summed, names)
