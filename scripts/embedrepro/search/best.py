"""The best of each query while blocks of exact scores pass by. Numpy only."""

import numpy as np
import pyarrow.compute as pc

from .runs import Ids, trec_order


class IdRank:
    """Place of rows among all of a shard by document id, the highest first; made when needed."""

    def __init__(self, ids: Ids, rows: int) -> None:
        self.ids, self.rows = ids, rows
        self._rank: np.ndarray | None = None

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        if self._rank is None:
            ids = self.ids(np.arange(self.rows))
            order = pc.sort_indices(ids, sort_keys=[("", "descending")]).to_numpy()
            self._rank = np.empty(self.rows, np.int64)
            self._rank[order] = np.arange(self.rows)
        found: np.ndarray = self._rank[rows]
        return found


class Best:
    """The best `k` of a query while blocks of exact scores pass by, ties cut by `rank`."""

    def __init__(self, k: int, rank: IdRank) -> None:
        self.k, self.rank = k, rank

    def of(
        self, scores: np.ndarray, rows: np.ndarray, block: np.ndarray, first: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best, in no order, of `scores` and `rows` so far and a block of rows from `first`."""
        if len(scores) == self.k:
            new = np.flatnonzero(block >= scores.min())
        else:
            new = np.arange(len(block))
        scores = np.concatenate([scores, block[new]])
        rows = np.concatenate([rows, first + new])
        if len(scores) <= self.k:
            return scores, rows
        kth = np.partition(scores, len(scores) - self.k)[len(scores) - self.k]
        keep = scores > kth
        ties = np.flatnonzero(scores == kth)
        missing = self.k - int(keep.sum())
        if len(ties) > missing:
            ties = ties[np.argpartition(self.rank(rows[ties]), missing - 1)[:missing]]
        keep[ties] = True
        return scores[keep], rows[keep]

    def ordered(
        self, scores: list[np.ndarray], rows: list[np.ndarray], ids: Ids
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows and scores (g, k) of g queries in trec_eval's order."""
        flat, places = np.concatenate(scores), np.concatenate(rows)
        query = np.repeat(np.arange(len(scores)), self.k)
        order = trec_order(query, flat, places, ids).reshape(len(scores), self.k)
        return places[order], flat[order]
