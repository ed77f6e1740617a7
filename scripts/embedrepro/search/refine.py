"""The ranking that float32 gives, from vectors of a fast precision and few encoded again.

Let f be the exact score of a query with a document's fast vector and s the one with its float32
vector, and let |f - s| <= e for all documents, where e is the error assumed for a query of norm 1,
times the query's norm. The k documents with the highest f have s >= kth - e, where kth is the
lowest of their f; a document with f < kth - 2e has s < kth - e. So the best k by s, ties included,
are among the documents with f >= kth - 2e. These are encoded again, all queries' together, and
scored again exactly.

e comes from a sample and is then held against every query's score of every document that was
encoded again: where one moved by more than e, e grows and the step repeats. What stays assumed is
that no document left out moved by more than every one that was measured, times a margin.

In the ranking that comes out each document has its float32 score if it was encoded again, for
whichever query, else its fast one. A document that isn't a candidate of a query has f < kth - 2e
(or, encoded again, s < kth - e), so it stays below the first k; ranks deeper than k are those of
scores which are at most e off.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from ..errors import UserError
from .exact import ArrayScorer
from .hits import Merge, first_of_each, group_size, regrouped
from .job import Corpus, Queries, Row, open_row
from .runs import Ids, write_listings

MARGIN = 1.5  # how much larger than the largest error seen the assumed one is
SAMPLE = 256  # documents whose error is measured before anything is known
BATCH = 2**25  # numbers of documents encoded again at a time: 128 MiB
PRODUCTS = 2**24  # of queries and documents held at a time

EncodeRows = Callable[[np.ndarray], np.ndarray]  # rows, int64 (n), to float32 vectors (n, dim)


class Scorer(Protocol):
    """Queries and how they score documents that are encoded again, float32 (n, dim)."""

    def largest_product(self, documents: np.ndarray) -> float:
        """The largest size of a product of any of them and a query of norm 1, in float32."""

    def pairs(self, documents: np.ndarray, query: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Exact scores (pairs) of queries with rows of them."""


class Fast(Protocol):
    """A corpus in a fast precision and the queries that are searched in it."""

    queries: np.ndarray  # float32 (q, dim)

    @property
    def scorer(self) -> Scorer:
        """That of `queries`."""

    def __len__(self) -> int:
        """How many documents."""

    def search(self, which: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best min(k, documents) of some queries, in order: rows, exact scores of `vectors`."""

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """The stored vectors of some rows, given upwards."""


@dataclass(frozen=True)
class Refined:
    """rows int64, scores float32 (q, depth), in trec_eval's order; the first `exact_depth` of each
    are float32's.

    share: of the corpus that was encoded again. rounds: one, and one more each time that the
    assumed error was exceeded. largest_error: the largest seen, error: the one assumed in the end,
    both for a query of norm 1. score_error: `error` times the largest norm of a query, what scores
    beyond `exact_depth` may be off.
    """

    rows: np.ndarray
    scores: np.ndarray
    exact_depth: int
    share: float
    rounds: int
    largest_error: float
    error: float
    score_error: float


def refine_row(
    row: Row, encode_rows: EncodeRows, depths: Sequence[int], share: float, device: str = "auto"
) -> Refined:
    """`job.search_rows` of one row whose corpus is stored in a fast precision, refined.

    `depths`, `share` as for `refine`; a run that spares identical ids is exact one deeper.
    """
    asked, merge, pieces = open_row(row)
    fast = FastCorpus(asked, pieces, merge.docs, device)
    depths = [depth + row.spare_identical_ids for depth in depths]
    error = sampled_error(fast, encode_rows)
    found = refine(fast, encode_rows, merge.docs.take, merge.depth, error, depths, share)
    batches = regrouped([(0, found.rows, found.scores)], group_size(merge.depth))
    write_listings(row.output, merge.listings([batch] for batch in batches), row.tag)
    return found


def sampled_error(fast: Fast, encode_rows: EncodeRows) -> float:
    """The error to assume at first: the largest of evenly spread documents, with a margin."""
    size = min(SAMPLE, len(fast))
    rows = np.arange(size, dtype=np.int64) * len(fast) // size
    return MARGIN * largest_error(fast, rows, encode_rows(rows))


def largest_error(fast: Fast, rows: np.ndarray, vectors: np.ndarray) -> float:
    """By how much float32 `vectors` of `rows` move any query's score, for a query of norm 1.

    Rounded up to eight bits: what products round differently on another machine is not to be seen.
    """
    moved = vectors - fast.vectors(rows).astype(np.float32)
    largest = 0.0
    step = max(1, PRODUCTS // max(1, len(fast.queries)))
    for at in range(0, len(rows), step):
        largest = max(largest, fast.scorer.largest_product(moved[at : at + step]))
    mantissa, exponent = math.frexp(largest * 1.001)  # what the products' own rounding may hide
    return math.ldexp(math.ceil(mantissa * 256) / 256, exponent)


def make_scorer(queries: np.ndarray, device: str) -> Scorer:
    """`device`: cpu or cuda, or auto, which is the GPU where there is one: it encodes as well."""
    from ..encode import pick_device

    if pick_device(device) == "cpu":
        return ArrayScorer(queries)
    from .scores import TensorScorer

    return TensorScorer(queries, "cuda")


def refine(
    fast: Fast,
    encode_rows: EncodeRows,
    ids: Ids,
    depth: int,
    error: float,
    depths: Sequence[int],
    share: float,
) -> Refined:
    """Search `depth` deep and make the first ranks exact (see above).

    `error`: assumed at first, for a query of norm 1. `depths`: to be made exact, upwards: the first
    always, each other one if no more than `share` of the corpus (0 to 1) is encoded again for it.
    """
    work = _Refinement(fast, encode_rows, depth, error)
    depths = sorted({min(k, depth, len(fast)) for k in depths})
    while True:
        work.rounds += 1
        exact_depth = work.advance(depths, share)
        if work.largest <= work.error:
            break
        work.error = MARGIN * work.largest
    rows, scores = work.ranking(min(depth, len(fast)), ids)
    return Refined(
        rows,
        scores,
        exact_depth,
        float(work.done.mean()),
        work.rounds,
        work.largest,
        work.error,
        work.error * float(work.norms.max(initial=0)),
    )


class _Refinement:
    """Hits of all queries, with fast scores and, where known, float32's.

    rows, fast_scores, scores, known (q, m), best fast score first; a list that is shorter than
    another ends with row -1 of score -inf.
    """

    def __init__(self, fast: Fast, encode_rows: EncodeRows, depth: int, error: float):
        self.fast, self.encode_rows, self.error = fast, encode_rows, error
        self.norms = np.linalg.norm(fast.queries.astype(np.float64), axis=1)
        self.rows, self.fast_scores = fast.search(np.arange(len(self.norms)), depth)
        self.scores, self.known = self.fast_scores.copy(), np.zeros(self.rows.shape, bool)
        self.length = np.full(len(self.rows), self.rows.shape[1])
        self.done = np.zeros(len(fast), bool)  # documents encoded again
        self.largest, self.rounds = 0.0, 0

    def advance(self, depths: Sequence[int], share: float) -> int:
        """Encode again what the present error asks for; returns the depth that this makes exact."""
        reached, wanted = 0, np.empty(0, np.int64)
        for k in depths:
            deeper = self._wanted(k, int(share * len(self.fast)) if reached else len(self.fast))
            if deeper is None:
                break
            reached, wanted = k, deeper
        step = max(1, BATCH // self.fast.queries.shape[1])
        for at in range(0, len(wanted), step):
            self._encode(wanted[at : at + step])
        return reached

    def _wanted(self, k: int, most: int) -> np.ndarray | None:
        """The documents that may be among the best `k` of a query whose score there isn't known.

        None: more than `most` would have been encoded again with them.
        """
        while True:
            kth = self.fast_scores[:, k - 1].astype(np.float64)
            reach = 2 * self.error * self.norms
            cut = kth - reach - 2.0**-21 * (np.abs(kth) + reach)  # scores are rounded to float32
            candidates = (self.fast_scores >= cut[:, None]) & (self.rows >= 0)
            wanted = np.zeros(len(self.fast), bool)
            wanted[self.rows[candidates & ~self.known]] = True
            if np.count_nonzero(wanted | self.done) > most:
                return None
            last = self.fast_scores[np.arange(len(cut)), self.length - 1]
            short = np.flatnonzero((last >= cut) & (self.length < len(self.fast)))
            if not len(short):
                return np.flatnonzero(wanted)
            self._search_deeper(short)

    def _search_deeper(self, which: np.ndarray) -> None:
        """Lists twice as long for some queries; they begin as the shorter ones did."""
        depth = min(len(self.fast), 2 * int(self.length[which].max()))
        wider = max(0, depth - self.rows.shape[1])
        for name, value in (("rows", -1), ("fast_scores", -np.inf), ("scores", -np.inf)):
            table = np.pad(getattr(self, name), ((0, 0), (0, wider)), constant_values=value)
            setattr(self, name, table)
        self.known = np.pad(self.known, ((0, 0), (0, wider)))
        rows, scores = self.fast.search(which, depth)
        self.rows[which, :depth], self.fast_scores[which, :depth] = rows, scores
        known = self.known[which, :depth]
        self.scores[which, :depth] = np.where(known, self.scores[which, :depth], scores)
        self.length[which] = depth

    def _encode(self, rows: np.ndarray) -> None:
        """Encode documents again: their scores in all lists, and the largest error."""
        vectors = np.asarray(self.encode_rows(rows), np.float32)
        if vectors.shape != (len(rows), self.fast.queries.shape[1]):
            raise ValueError(f"{len(rows)} rows were encoded as {list(vectors.shape)}")
        if not np.isfinite(vectors).all():
            raise UserError("a passage that was encoded again in float32 holds NaN or infinity")
        self.largest = max(self.largest, largest_error(self.fast, rows, vectors))
        number = np.full(len(self.fast) + 1, -1)  # the last is of row -1
        number[rows] = np.arange(len(rows))
        query, place = np.nonzero(number[self.rows] >= 0)
        of = number[self.rows[query, place]]
        scores = self.fast.scorer.pairs(vectors, query, of)
        self.scores[query, place] = scores + np.float32(0)
        self.known[query, place] = True
        self.done[rows] = True

    def ranking(self, depth: int, ids: Ids) -> tuple[np.ndarray, np.ndarray]:
        """The first `depth` of each query: rows, scores."""
        query, place = np.nonzero(self.rows >= 0)
        rows, scores = self.rows[query, place], self.scores[query, place]
        best = first_of_each(query, rows, scores, len(self.rows), depth, ids)
        return rows[best], scores[best]


class FastCorpus:
    """Pieces on disk, in order, as `Fast`."""

    def __init__(self, asked: Queries, pieces: Sequence[Corpus], ids: pa.Array, device: str):
        self.asked, self.pieces, self.ids, self.device = asked, pieces, ids, device
        self.queries = np.asarray(asked.vectors, np.float32)
        self.scorer = make_scorer(self.queries, device)
        self.starts = np.cumsum([0, *(len(piece.vectors) for piece in pieces)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def search(self, which: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """As `Fast`."""
        found, part = [], self.asked.part(which)
        for piece, start in zip(self.pieces, self.starts, strict=False):
            ids = self.ids.slice(start, len(piece.vectors))
            batches = [*piece.search(part, k, ids.take, self.device)]
            docs, scores = (np.concatenate([batch[i] for batch in batches]) for i in (1, 2))
            found.append((0, docs, scores))
        _, docs, scores = Merge(self.ids, self.ids[:0], k).best(found)
        return docs, scores

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """As `Fast`; `rows` upwards."""
        cuts = np.searchsorted(rows, self.starts)
        parts = [
            piece.vectors[rows[first:last] - start]
            for piece, start, first, last in zip(
                self.pieces, self.starts, cuts, cuts[1:], strict=False
            )
        ]
        return np.concatenate(parts)
