"""Exact search of quantised vectors, with rescoring, as sentence-transformers' searches have it.

First every document is scored by its codes: for int8 the dot product of the query's codes and the
document's, for binary minus the number of bits in which they differ. Both are integers, added
exactly, and rounded to float32 where they are beyond 2^24. The best k · `multiplier` documents of
the whole corpus, ties in trec_eval's order, are scored again: the score is the float64 dot product
of the query as it is and the document's codes put back into numbers (`quantize.restore`), as dense
search defines it. Without rescoring the first score is the score. The first choice is made over all
pieces, so shards change nothing.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import UserError
from ..vectors.embeddings import check_finite, open_embeddings
from ..vectors.quantize import open_quantized, quantize, restore, unpack
from .best import Best, IdRank
from .hits import Batch, Merge
from .job import Row, made
from .pieces import Pieces, check_depth, query_groups
from .runs import Ids, read_ids, trec_order, write_listings
from .scores import dot

BLOCK = 2**22  # codes of a block of documents
EXACT_FLOAT32 = 2**24 // 2**14  # dimensions up to which float32 holds every sum of int8 products


class Codes:
    """A piece of codes, as `Pieces` takes it."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.codes, self.meta = open_quantized(path)
        self.precision, self.dim = self.meta["precision"], int(self.meta["dim"])
        ranges = self.meta.get("ranges")
        self.ranges = None if ranges is None else np.array(ranges, np.float32)

    @property
    def rows(self) -> int:
        """How many documents the piece has."""
        return len(self.codes)


def search_row(row: Row, multiplier: int) -> None:
    """Search a whole corpus of codes and write its run; one that is there is checked instead.

    `row`: its queries are dense vectors, not quantised, its corpus all pieces of codes.
    `multiplier`: 0 is without rescoring.
    """
    if made(row.output):
        return
    check_depth(row.top_k)
    vectors, meta = open_embeddings(row.queries)
    check_finite(vectors, row.queries)
    pieces = Pieces([Codes(path) for path in row.corpus])
    _check_same(row.queries, vectors, meta, pieces.pieces)
    docs, queries = read_ids(row.ids), read_ids(row.query_ids)
    if (len(vectors), pieces.rows) != (len(queries), len(docs)):
        raise UserError(
            f"{row.output}: {len(vectors)} queries and {pieces.rows} passages are encoded, "
            f"{row.query_ids} has {len(queries)}, {row.ids} {len(docs)}; encode them again"
        )
    merge = Merge(docs, queries, row.top_k, row.spare_identical_ids)
    found = scan(vectors, pieces, merge.depth, docs.take, multiplier)
    write_listings(row.output, merge.listings([batch] for batch in found), row.tag)


def scan(
    queries: np.ndarray, corpus: Pieces[Codes], k: int, ids: Ids, multiplier: int
) -> Iterator[Batch]:
    """Yield, query group by query group, (first query, rows (g, m), scores (g, m)).

    m = min(k, documents). Rows and `ids` count over the corpus.
    """
    found = min(k, corpus.rows)
    best = Best(min(found * max(1, multiplier), corpus.rows), IdRank(ids, corpus.rows))
    for start, stop in query_groups(len(queries), 12 * best.k):
        vectors = np.asarray(queries[start:stop])
        scores = [np.empty(0, np.float32)] * len(vectors)
        rows = [np.empty(0, np.int64)] * len(vectors)
        for first, block in _scored(vectors, corpus):
            for number, values in enumerate(block):
                scores[number], rows[number] = best.of(scores[number], rows[number], values, first)
        chosen, values = best.ordered(scores, rows, ids)
        if multiplier:
            chosen, values = _rescored(vectors, corpus, chosen, ids)
        yield start, chosen[:, :found], values[:, :found]


def _scored(vectors: np.ndarray, corpus: Pieces[Codes]) -> Iterator[tuple[int, np.ndarray]]:
    """(First row, integer scores (g, n) float32) of one block after the other."""
    for piece, begin in zip(corpus.pieces, corpus.starts.tolist(), strict=True):
        asked = _numbers(quantize(vectors, piece.precision, piece.ranges), piece)
        step = max(1, BLOCK // piece.dim)
        for start in range(0, piece.rows, step):
            products = asked @ _numbers(np.asarray(piece.codes[start : start + step]), piece).T
            if piece.precision == "binary":
                products = (products - piece.dim) / 2  # minus the bits that differ
            yield begin + start, products.astype(np.float32)


def _numbers(codes: np.ndarray, piece: Codes) -> np.ndarray:
    """Codes as numbers whose dot product is the score, in a dtype that holds it exactly."""
    wide = np.float32 if piece.dim <= EXACT_FLOAT32 else np.float64
    if piece.precision == "binary":
        return unpack(codes, piece.dim).astype(wide) * 2 - 1
    return codes.astype(wide)


def _rescored(
    vectors: np.ndarray, corpus: Pieces[Codes], chosen: np.ndarray, ids: Ids
) -> tuple[np.ndarray, np.ndarray]:
    """The documents `chosen` (g, m) of each query in the order of their second score, and it."""
    scores = np.empty(chosen.shape, np.float32)
    for number, rows in enumerate(chosen):
        query = torch.from_numpy(vectors[number].astype(np.float32))
        for piece, places, own in corpus.split(rows):
            given = restore(piece.codes[own], piece.precision, piece.ranges, piece.dim)
            found = dot(query.expand(len(own), -1), torch.from_numpy(given))
            scores[number, places] = found.numpy()
    query_of = np.repeat(np.arange(len(chosen)), chosen.shape[1])
    order = trec_order(query_of, scores.ravel(), chosen.ravel(), ids).reshape(chosen.shape)
    return chosen.ravel()[order], scores.ravel()[order]


def _check_same(
    path: Path | str, vectors: np.ndarray, meta: dict[str, Any], pieces: Sequence[Codes]
) -> None:
    first = pieces[0]
    for piece in pieces:
        same = all(
            piece.meta.get(key) == first.meta.get(key) for key in ("precision", "dim", "ranges")
        )
        if not same:
            raise UserError(f"{piece.path}: quantised otherwise than {first.path}; make both again")
        if vectors.shape[1] != piece.dim or meta.get("model_id") != piece.meta.get("model_id"):
            raise UserError(
                f"{path} has {vectors.shape[1]} dimensions of {meta.get('model_id')}, {piece.path} "
                f"{piece.dim} of {piece.meta.get('model_id')}; encode both with the same model"
            )
