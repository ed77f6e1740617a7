"""Exact top-k search of sparse vectors.

The score of a query and a document is defined as the sum of the products of their weights over the
terms that both have, added in ascending order of the terms in float64, and rounded to float32. A
document without a shared term scores 0 and is ranked like any other. The score depends on nothing
but the two vectors, so any cut into shards and any block size give the same scores and order.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from ..errors import UserError
from ..vectors.embeddings import not_finite
from ..vectors.sparse import SparseVectors
from .best import Best, IdRank
from .hits import Batch
from .pieces import Pieces, query_groups
from .runs import Ids

BLOCK = 2**22  # weights of a block of documents
ROWS = 2**18  # documents of a block: the sums of one query stay in the cache


def scan(queries: SparseVectors, shard: SparseVectors, k: int, ids: Ids) -> Iterator[Batch]:
    """Yield, query group by query group, (first query, rows (g, m), scores (g, m)).

    m = min(k, rows of the shard); `ids` as for `runs.trec_order`, by row of the shard.
    """
    best = Best(min(k, shard.rows), IdRank(ids, shard.rows))
    for start, stop in query_groups(queries.rows, 12 * best.k):
        vectors = list(_rows(queries, start, stop))
        scores = [np.empty(0, np.float32)] * len(vectors)
        rows = [np.empty(0, np.int64)] * len(vectors)
        for first, postings in _blocks(shard):
            for number, (columns, values) in enumerate(vectors):
                found = postings.scores(columns, values)
                scores[number], rows[number] = best.of(scores[number], rows[number], found, first)
        yield start, *best.ordered(scores, rows, ids)


def score_pairs(
    queries: SparseVectors, corpus: Sequence[SparseVectors], q: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """Scores (n,) float32 of pairs of a row of `queries` and a row of the corpus."""
    scores = np.empty(len(q), np.float32)
    for piece, places, own in Pieces(corpus).split(rows):
        for query in np.unique(q[places]).tolist():
            mine = q[places] == query
            wanted = np.zeros(queries.width)
            terms, weights = queries.block(query, query + 1)
            wanted[terms] = weights
            columns, values = (piece.gather(name, own[mine]) for name in ("columns", "values"))
            owner = np.repeat(np.arange(int(mine.sum())), piece.lengths[own[mine]])
            products = wanted[columns] * values.astype(np.float64)
            scores[places[mine]] = np.bincount(owner, products, int(mine.sum()))
    return scores + np.float32(0)


class Postings:
    """A block of n documents by term: which have it, with which weight."""

    def __init__(
        self, lengths: np.ndarray, columns: np.ndarray, values: np.ndarray, width: int
    ) -> None:
        self.n = len(lengths)
        order = _stable_order(columns)
        self.docs = np.repeat(np.arange(self.n), lengths)[order]
        self.values = values[order].astype(np.float64)
        self.starts = np.concatenate([[0], np.cumsum(np.bincount(columns, minlength=width))])

    def scores(self, columns: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Scores (n,) float32 of a query with these terms, upwards, and float64 weights."""
        parts = list(zip(self.starts[columns], self.starts[columns + 1], values, strict=True))
        if not parts:
            return np.zeros(self.n, np.float32)
        docs = np.concatenate([self.docs[start:stop] for start, stop, _ in parts])
        products = np.concatenate([self.values[start:stop] * w for start, stop, w in parts])
        # Adds in the order of what it is given: term by term.
        return np.bincount(docs, products, self.n).astype(np.float32) + np.float32(0)


def _stable_order(columns: np.ndarray) -> np.ndarray:
    """Stable argsort, by halves of 16 bits: numpy sorts those by counting."""
    order = np.argsort(columns.astype(np.uint16), kind="stable")  # the lower half
    high = columns >> 16
    if high.any():
        order = order[np.argsort(high[order].astype(np.uint16), kind="stable")]
    return order


def _blocks(shard: SparseVectors) -> Iterator[tuple[int, Postings]]:
    """(First row, postings) of one block after the other."""
    start = 0
    while start < shard.rows:
        stop = int(np.searchsorted(shard.offsets, shard.offsets[start] + BLOCK, "right")) - 1
        stop = min(max(stop, start + 1), start + ROWS, shard.rows)
        columns, values = shard.block(start, stop)
        _check(shard, start, stop, columns, values)
        yield start, Postings(shard.lengths[start:stop], columns, values, shard.width)
        start = stop


def _rows(queries: SparseVectors, start: int, stop: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    columns, values = queries.block(start, stop)
    _check(queries, start, stop, columns, values)
    offsets = queries.offsets[start : stop + 1] - queries.offsets[start]
    for first, last in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        yield columns[first:last], values[first:last].astype(np.float64)


def _check(
    vectors: SparseVectors, start: int, stop: int, columns: np.ndarray, values: np.ndarray
) -> None:
    if not np.isfinite(values).all():
        item = int(vectors.offsets[start]) + int(np.argmin(np.isfinite(values)))
        row = int(np.searchsorted(vectors.offsets, item, "right")) - 1
        raise not_finite(vectors.path, row)
    if len(columns) and not 0 <= columns.min() <= columns.max() < vectors.width:
        raise UserError(f"{vectors.path}: has terms outside 0 to {vectors.width - 1}; encode again")
