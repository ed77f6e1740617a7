"""Searching rows and pieces of any kind of vectors: dense ones by `job`, the others here.

A further kind of vectors is one format, one scan, and one entry each of `OPENERS` and `SCANS`.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..errors import UserError
from ..files import read_json
from ..vectors import multivector, sparse
from ..vectors.dense import sidecar
from ..vectors.ragged import Ragged
from . import job
from .hits import Batch, Merge, group_size, regrouped, write_hits
from .pieces import Pieces, check_depth, check_same_model, ids_between, rows_of
from .runs import Ids, read_ids, write_listings

Scan = Callable[..., Iterator[Batch]]  # queries, corpus, k, ids, device


def _scan_sparse(
    queries: sparse.SparseVectors, corpus: sparse.SparseVectors, k: int, ids: Ids, device: str
) -> Iterator[Batch]:
    from .sparse import scan

    return scan(queries, corpus, k, ids)


def _scan_tokens(
    queries: multivector.TokenVectors,
    corpus: multivector.TokenVectors,
    k: int,
    ids: Ids,
    device: str,
) -> Iterator[Batch]:
    from ..encode import pick_device
    from .maxsim import scan  # imports torch

    return scan(queries, corpus, k, ids, pick_device(device))


OPENERS: dict[str, Callable[..., Ragged]] = {
    sparse.KIND: sparse.SparseVectors,
    multivector.KIND: multivector.TokenVectors,
}
SCANS: dict[str, Scan] = {sparse.KIND: _scan_sparse, multivector.KIND: _scan_tokens}


def search_rows(rows: Sequence[job.Row], device: str = "auto") -> None:
    """`job.search_rows` for rows of any kind: vectors to runs, in memory."""
    for row in rows:
        kind = kind_of(row.queries)
        if kind is None:
            job.search_rows([row], device)
        elif not job.made(row.output):
            _search_row(kind, row, device)


def search_pieces(pieces: Sequence[job.Piece], device: str = "auto") -> None:
    """`job.search_pieces` for pieces of any kind: vectors to hits, for `job.merge_rows`."""
    kinds = [kind_of(piece.queries) for piece in pieces]
    dense = [piece for piece, kind in zip(pieces, kinds, strict=True) if kind is None]
    if dense:
        job.search_pieces(dense, device)
    for piece, kind in zip(pieces, kinds, strict=True):
        if kind is not None and not job.made(piece.output):
            _search_piece(kind, piece, device)


def kind_of(path: Path | str) -> str | None:
    """The kind of a piece's vectors by its sidecar; None is dense."""
    kind = read_json(sidecar(path)).get("format")
    return kind if kind in SCANS else None


def _search_row(kind: str, row: job.Row, device: str) -> None:
    check_depth(row.top_k)
    asked = OPENERS[kind](row.queries)
    pieces = Pieces([OPENERS[kind](path) for path in row.corpus])
    docs, queries = read_ids(row.ids), read_ids(row.query_ids)
    for path, count, ids, known in (
        (row.queries, asked.rows, row.query_ids, len(queries)),
        (row.corpus[-1], pieces.rows, row.ids, len(docs)),
    ):
        if count != known:
            raise UserError(f"{path}: ends with row {count} of {ids}'s {known}; encode them again")
    merge = Merge(docs, queries, row.top_k, row.spare_identical_ids)
    found = []
    for piece, start in zip(pieces.pieces, pieces.starts.tolist(), strict=True):
        ids = docs.slice(start, piece.rows)
        hits = list(_hits(kind, asked, piece, merge.depth, ids.take, device))
        found.append(regrouped(hits, group_size(merge.depth)))
    write_listings(row.output, merge.listings(zip(*found, strict=True)), row.tag)


def _search_piece(kind: str, piece: job.Piece, device: str) -> None:
    check_depth(piece.top_k)
    asked, corpus = OPENERS[kind](piece.queries), OPENERS[kind](piece.corpus)
    start, stop = rows_of(corpus, piece.ids)
    facts = {
        "rows": [start, stop],
        "k": piece.top_k,
        "queries": asked.rows,
        "queries_sha256": asked.meta["sha256"],
        "corpus_sha256": corpus.meta["sha256"],
    }
    ids = ids_between(piece.ids, start, stop)
    write_hits(piece.output, _hits(kind, asked, corpus, piece.top_k, ids, device), facts)


def _hits(
    kind: str, asked: Ragged, corpus: Ragged, k: int, ids: Ids, device: str
) -> Iterator[Batch]:
    """Hits, docs by row of corpus.parquet; `ids` by row of this piece."""
    check_same_model(asked, corpus)
    start = corpus.meta.get("rows", [0])[0]
    for first, rows, scores in SCANS[kind](asked, corpus, k, ids, device):
        yield first, rows + start, scores
