"""At which rank each relevant document of a run is, under a protocol's rule for the run's hits."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..search.runs import Listing, in_parallel, tie_order
from .judgements import Judgements

NEVER = 2**40  # a rank that no hit has


@dataclass(frozen=True)
class Rule:
    """Which hits count.

    drop: those with the query's own id go, before_cut: before the ranking is cut to `depth` (None:
    it isn't cut). listed: ties keep the run's order, else they are ordered as trec_eval does.
    """

    drop: bool
    before_cut: bool
    depth: int | None
    listed: bool


@dataclass(frozen=True)
class Relevant:
    """Relevant documents that a ranking holds, sorted by (query, rank).

    query: row of the judgements' queries, rank: from 1, grade: above 0; int64 (n).
    """

    query: np.ndarray
    rank: np.ndarray
    grade: np.ndarray

    @classmethod
    def joined(cls, parts: Iterable["Relevant"]) -> "Relevant":
        parts = list(parts)
        query, rank, grade = (
            np.concatenate([np.empty(0, np.int64), *(getattr(p, name) for p in parts)])
            for name in ("query", "rank", "grade")
        )
        order = np.lexsort((rank, query))
        return cls(query[order], rank[order], grade[order])


@dataclass(frozen=True)
class Block:
    """Hits of some queries, best first: by score downwards as the run says, ties as listed.

    rows (g): the queries' rows among the judged ones, -1: not judged. starts (g + 1). scores (n):
    float32 as float64. own (g): the place of the query's own document in its list, or NEVER. trec
    (n) or None: each hit's place once ties are ordered as trec_eval does, None where that changes
    nothing. hit, query, grade (j): the relevant hits: position among all, number of the query.
    """

    rows: np.ndarray
    starts: np.ndarray
    scores: np.ndarray
    own: np.ndarray
    trec: np.ndarray | None
    hit: np.ndarray
    query: np.ndarray
    grade: np.ndarray

    @cached_property
    def place(self) -> np.ndarray:
        """Of each relevant hit in its query's list, from 0."""
        place: np.ndarray = self.hit - self.starts[self.query]
        return place

    def relevant(self, rule: Rule) -> Relevant:
        """The relevant hits that count, and their ranks."""
        limit = np.full(len(self.rows), NEVER)
        if rule.depth is not None:
            limit[:] = rule.depth
            if rule.drop and rule.before_cut:
                limit += self.own < rule.depth
        kept = self.place < limit[self.query]
        own = np.where(rule.drop, self.own, NEVER)
        kept &= self.place != own[self.query]
        if rule.listed or self.trec is None:
            rank = self.place + 1 - (own[self.query] < self.place)
        else:
            rank = self._trec_rank(limit, own)[self.hit]
        rows = self.rows[self.query]
        return Relevant(rows[kept], rank[kept], self.grade[kept])

    def _trec_rank(self, limit: np.ndarray, own: np.ndarray) -> np.ndarray:
        """Of each hit among those that are kept, ties ordered as trec_eval does."""
        of_query = np.repeat(np.arange(len(self.rows)), np.diff(self.starts))
        place = np.arange(len(self.scores)) - self.starts[of_query]
        kept = (place < limit[of_query]) & (place != own[of_query])
        in_order = np.empty_like(kept)
        in_order[self.trec] = kept
        count = np.concatenate([[0], np.cumsum(in_order)])
        rank: np.ndarray = count[1:][self.trec] - count[self.starts[:-1]][of_query]
        return rank


def blocks(listings: Iterable[Listing], judged: Judgements) -> Iterator[Block]:
    """A run made ready for all protocols at once."""
    return in_parallel(partial(_block, judged=judged), listings)


def _block(hits: Listing, judged: Judgements) -> Block:
    rows = _rows(pc.index_in(hits.queries.cast(judged.queries.type), value_set=judged.queries))
    name = _rows(pc.index_in(hits.docs.cast(judged.names.type), value_set=judged.names))
    of_query, scores, docs = hits.of_query, hits.scores, hits.docs
    falls = (scores[1:] <= scores[:-1]) | (of_query[1:] != of_query[:-1])
    if not falls.all():
        order = np.lexsort((-scores, of_query))  # stable: ties stay as listed
        scores, name, docs = scores[order], name[order], docs.take(order)
    with np.errstate(over="ignore"):
        single = scores.astype(np.float32) + np.float32(0)
    known = np.flatnonzero(name >= 0)
    known = known[rows[of_query[known]] >= 0]
    query, name = of_query[known], name[known]
    own = np.full(len(rows), NEVER)
    itself = judged.own_name[rows[query]] == name
    own[query[itself]] = known[itself] - hits.starts[query[itself]]
    grade = judged.grades(rows[query], name)
    used = grade > 0
    trec = _trec_places(single, of_query, docs)
    relevant = known[used], query[used], grade[used]
    return Block(rows, hits.starts, single.astype(np.float64), own, trec, *relevant)


def _rows(found: pa.Array) -> np.ndarray:
    """What `index_in` found, -1 where nothing, int64."""
    rows: np.ndarray = found.fill_null(-1).to_numpy(zero_copy_only=False)
    return rows.astype(np.int64)


def _trec_places(scores: np.ndarray, of_query: np.ndarray, docs: pa.Array) -> np.ndarray | None:
    same = (scores[1:] == scores[:-1]) & (of_query[1:] == of_query[:-1])
    if not same.any():
        return None
    tied = np.flatnonzero(np.r_[False, same] | np.r_[same, False])
    group = np.cumsum(np.r_[True, ~same])[tied]
    order = tied[tie_order(group, tied, docs.take)]
    if (order == tied).all():
        return None
    places = np.arange(len(scores))
    places[order] = tied
    return places
