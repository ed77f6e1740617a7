"""How far rounding can move each measure.

Let each score be known up to +-e. Whatever the true scores are, a document b can come before a, or
tie with it, only if s(b) >= s(a) - 2e, and must come before it if s(b) > s(a) + 2e. Every measure
here grows when relevant documents move up past others (graded ones are taken apart, below). So its
largest value is that of the ranking in which e is added to the relevant documents' scores and taken
from the others', ties going to the relevant ones, and the smallest that of the opposite.

In that ranking the i-th relevant document (from 1), of score s, comes after exactly those others
whose score is above s + 2e (at least s - 2e in the opposite one): its rank is their number plus i.

Documents outside the run. The run lists the best n of a query's documents, the last with score z,
so what is outside has at most z. The upper end lets every relevant document that the run lacks
stand at z, the lower end drops a relevant hit with s - 2e <= z, since any number of others may come
before it. Both change nothing above rank k where the run is so deep that its k-th score is above
z + 2e: a search somewhat deeper than the metrics read gives tight ends. Where a query lists the
whole corpus, nothing is outside.

nDCG: its gain is the grade, so a DCG is the sum over grades t of (t - the next lower grade) times
the DCG of the binary judgement "at least t". The sum of their largest values is not below the
largest of the sum (and equal to it for one grade); likewise for the smallest.
"""

from dataclasses import dataclass, field

import numpy as np

from . import metrics
from .judgements import Judgements, dcg
from .metrics import Measure
from .ranks import NEVER, Block, Relevant, Rule


@dataclass
class Interval:
    """The ends of the measures' values, while blocks of the run pass by.

    `error`: how much each score may be off. `documents`: of the corpus; None: more than are found.
    """

    measures: list[Measure]
    rule: Rule
    judged: Judgements
    error: float
    documents: int | None = None
    low: dict[int, list[Relevant]] = field(default_factory=dict)  # by lowest relevant grade
    high: dict[int, list[Relevant]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        levels = {measure.rel for measure in self.measures if measure.binary}
        if not all(measure.binary for measure in self.measures):
            levels.update(self.judged.levels)
        for level in sorted(levels):
            self.low[level], self.high[level] = [], []

    def add(self, block: Block) -> None:
        search = _Search(block, self.rule, self.error, self.documents)
        for level in self.low:
            relevant = block.grade >= level
            if self.rule.drop:
                relevant &= block.place != block.own[block.query]
            hits = search.hits(np.flatnonzero(relevant))
            self.low[level].append(hits.low())
            self.high[level].append(hits.high(self.judged.relevant(level)))

    def ends(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float64 (queries, measures), twice: at most and at least `values`."""
        low, high = (self._values(parts) for parts in (self.low, self.high))
        return np.minimum(low, values), np.maximum(high, values)

    def _values(self, parts: dict[int, list[Relevant]]) -> np.ndarray:
        found = {level: Relevant.joined(of_level) for level, of_level in parts.items()}
        table = np.empty((len(self.judged), len(self.measures)))
        for column, measure in enumerate(self.measures):
            if measure.binary:
                hits = found[measure.rel]
                table[:, column] = metrics.binary(measure, hits.query, hits.rank, self.judged)
            else:
                table[:, column] = self._gain(measure, found)
        return table

    def _gain(self, measure: Measure, found: dict[int, Relevant]) -> np.ndarray:
        total, below = np.zeros(len(self.judged)), 0
        for level in self.judged.levels:
            hits = found[level]
            near = hits.rank <= (measure.cutoff or np.inf)
            gain = np.full(np.count_nonzero(near), level - below)
            total += dcg(hits.query[near], hits.rank[near], gain, len(self.judged))
            below = level
        return metrics.share(total, self.judged.ideal(measure.cutoff))


class _Search:
    """Looks scores up in the lists of one block, without documents that are dropped."""

    def __init__(self, block: Block, rule: Rule, error: float, documents: int | None):
        self.block, self.error = block, error
        count = np.diff(block.starts)
        self.own = np.where(rule.drop, block.own, NEVER)
        self.length = count - (self.own < NEVER)
        self.complete = (count == 0) | (count >= (NEVER if documents is None else documents))
        self.last = np.full(len(count), -np.inf)
        self.last[count > 0] = block.scores[block.starts[1:][count > 0] - 1]
        self.low_limit = self.high_limit = np.full(len(count), rule.depth or 0)
        if rule.depth is None:
            self.low_limit = self.high_limit = self.length
        elif rule.drop and not rule.before_cut:  # it takes one of the places, if it is so high
            maybe, surely = self._own_within(rule.depth)
            self.low_limit, self.high_limit = rule.depth - maybe, rule.depth - surely

    def above(self, query: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """How many hits of each `query` come before score + error whatever the rounding."""
        return self._count(query, scores + 2 * self.error + np.abs(scores) * 2.0**-50, False)

    def reaching(self, query: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """How many hits of each `query` may come before score - error."""
        return self._count(query, scores - 2 * self.error - np.abs(scores) * 2.0**-50, True)

    def _count(self, query: np.ndarray, limit: np.ndarray, equal: bool) -> np.ndarray:
        starts, scores = self.block.starts, self.block.scores
        low, high = starts[query], starts[query + 1]
        while (low < high).any():
            middle = np.minimum((low + high) // 2, len(scores) - 1)
            open_ = low < high
            beyond = scores[middle] >= limit if equal else scores[middle] > limit
            low = np.where(open_ & beyond, middle + 1, low)
            high = np.where(open_ & ~beyond, middle, high)
        count: np.ndarray = low - starts[query]
        count -= self.own[query] < count
        return count

    def _own_within(self, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """Whether each query's own document may be, and surely is, among the first `depth`."""
        query = np.arange(len(self.own))
        listed = self.own < NEVER
        score = self.last.copy()
        score[listed] = self.block.scores[self.block.starts[:-1][listed] + self.own[listed]]
        maybe = (listed | ~self.complete) & (self.above(query, score) < depth)
        reaching = self.reaching(query, score)
        surely = listed & (reaching < depth) & ((reaching < self.length) | self.complete)
        return maybe, surely

    def hits(self, which: np.ndarray) -> "_Hits":
        """The relevant hits number `which` of the block."""
        query, place = self.block.query[which], self.block.place[which]
        scores = self.block.scores[self.block.hit[which]]
        return _Hits(self, query, place - (self.own[query] < place), scores)


@dataclass(frozen=True)
class _Hits:
    """Relevant hits, sorted: number of the query, place among those that aren't dropped, score."""

    search: _Search
    query: np.ndarray
    place: np.ndarray
    score: np.ndarray

    def high(self, relevant: np.ndarray) -> Relevant:
        """At the best ranks; `relevant`: how many documents of each judged query are."""
        search, rows = self.search, self.search.block.rows
        found = np.bincount(self.query, minlength=len(rows))
        lacking = np.where(rows >= 0, relevant[rows] - found, 0).clip(0)
        lacking[search.complete] = 0
        more = np.repeat(np.arange(len(rows)), lacking)
        query = np.concatenate([self.query, more])
        score = np.concatenate([self.score, search.last[more]])
        number = np.concatenate([_within(self.query), found[more] + _within(more)])
        above = search.above(query, score)
        return self._ranked(query, above, number, search.high_limit)

    def low(self) -> Relevant:
        """At the worst ranks."""
        search = self.search
        reaching = search.reaching(self.query, self.score)
        inside = (reaching < search.length[self.query]) | search.complete[self.query]
        number = _within(self.query)
        hits = self.query[inside], reaching[inside], number[inside]
        return self._ranked(*hits, search.low_limit)

    def _ranked(
        self, query: np.ndarray, before: np.ndarray, number: np.ndarray, limit: np.ndarray
    ) -> Relevant:
        """Hit `number` of its query after the others among the first `before` hits."""
        keys = self.query * NEVER + self.place
        starts = np.searchsorted(self.query, query)
        others = before - (np.searchsorted(keys, query * NEVER + before) - starts)
        rank = others + number
        kept = rank <= limit[query]
        row = self.search.block.rows[query[kept]]
        return Relevant(row, rank[kept], np.ones(len(row), np.int64))


def _within(query: np.ndarray) -> np.ndarray:
    """1, 2, … for the entries of each query; `query` is sorted."""
    return np.arange(len(query)) - np.searchsorted(query, query) + 1
