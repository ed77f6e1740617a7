"""Searching and merging, row by row or piece by piece, all of a job in one process.

A small row goes from vectors to its run in memory (`search_rows`). A large corpus is searched piece
by piece (`search_pieces`), perhaps by many jobs, and merged (`merge_rows`). Both give the same run,
byte for byte, for any cut into pieces. What is there and whole is not made again.
"""

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import UserError
from ..files import whole
from ..vectors.dense import verify_array
from ..vectors.embeddings import check_finite, check_pair, open_embeddings
from .exact import search_array
from .hits import Batch, Merge, group_size, read_hits, regrouped, write_hits
from .runs import Ids, in_parallel, read_ids, write_listings

if TYPE_CHECKING:
    from ..vectors.shard import Shard

# Numbers multiplied. Up to SMALL matrix products in NumPy are done before a GPU has begun, up to
# LARGE before torch is imported.
SMALL = 2**31
LARGE = 2**34


@dataclass(frozen=True)
class Row:
    """One small search. queries, corpus: float16 or float32 vectors with sidecars, the corpus'
    pieces in order; ids, query_ids: corpus.parquet and queries.parquet; output: the TREC run."""

    queries: Path
    corpus: Sequence[Path]
    ids: Path
    query_ids: Path
    top_k: int
    tag: str
    output: Path
    spare_identical_ids: bool = False


@dataclass(frozen=True)
class Piece:
    """One search of a piece of a large corpus, `top_k` deep; output: hits (see `hits`).

    A run that spares identical ids takes hits one deeper than itself.
    """

    queries: Path
    corpus: Path
    ids: Path
    top_k: int
    output: Path


@dataclass(frozen=True)
class MergeRow:
    """Hits of all pieces of a corpus, in any order, and the run that they become (see `Row`)."""

    hits: Sequence[Path]
    ids: Path
    query_ids: Path
    top_k: int
    tag: str
    output: Path
    spare_identical_ids: bool = False


def needs_torch(queries: int, documents: int, dim: int) -> bool:
    """Whether a search of so many vectors imports torch, and uses a GPU where there is one."""
    return queries * documents * dim > LARGE


def search_rows(rows: Sequence[Row], device: str = "auto") -> None:
    """Search each row and write its run; runs that are there are checked instead.

    `device`: cpu or cuda, or auto, which is the cheapest for the amount of work. Raises `UserError`
    for vectors that don't belong together, are damaged or hold NaN.
    """
    for row in rows:
        if not made(row.output):
            _search_row(row, device)


def search_pieces(pieces: Sequence[Piece], device: str = "auto") -> None:
    """Search each piece and write its hits; queries and pieces are opened once for all of them."""
    queries = cache(Queries.open)
    for path, searches in groupby(sorted(pieces, key=_corpus), key=_corpus):
        missing = [search for search in searches if not made(search.output)]
        if not missing:
            continue
        corpus = Corpus(path)
        for search in missing:
            _check_depth(search.top_k)
            asked = queries(search.queries)
            start, stop = corpus.rows(search.ids)
            hits = corpus.search(asked, search.top_k, _late_ids(search.ids, start, stop), device)
            facts = {
                "rows": [start, stop],
                "k": search.top_k,
                "queries": len(asked.vectors),
                "queries_sha256": asked.meta["sha256"],
                "corpus_sha256": corpus.meta["sha256"],
            }
            write_hits(search.output, hits, facts)


def merge_rows(rows: Sequence[MergeRow]) -> None:
    """Merge each row's hits into its run; runs that are there are checked instead.

    Raises `UserError` when hits don't tile the corpus, were searched with different queries or not
    deep enough.
    """
    for row in rows:
        if not made(row.output):
            with ThreadPoolExecutor(1) as pool:
                merging = pool.submit(_merge, row)
                deque(in_parallel(whole, row.hits), 0)  # hashed while ids are read
                merge = merging.result()
            write_listings(row.output, merge.listings(read_hits(row.hits, merge)), row.tag)


def _late_ids(path: Path, start: int, stop: int) -> Ids:
    """Ids of a piece's rows, read once some scores tie."""
    names = cache(partial(read_ids, path, start, stop))
    return lambda rows: names().take(pa.array(rows))


def made(path: Path) -> bool:
    """Whether a file and its digest are there; raises `UserError` where it is damaged."""
    return Path(path).exists() and Path(f"{path}.sha256").exists() and bool(whole(path))


def _check_depth(k: int) -> None:
    if k < 1:
        raise UserError(f"top_k is {k}; give at least 1")


def _corpus(piece: Piece) -> Path:
    return piece.corpus


def _merge(row: Row | MergeRow) -> Merge:
    return Merge(read_ids(row.ids), read_ids(row.query_ids), row.top_k, row.spare_identical_ids)


def _search_row(row: Row, device: str) -> None:
    asked, merge, pieces = open_row(row)
    found, start, step = [], 0, group_size(merge.depth)
    for piece in pieces:
        names = merge.docs.slice(start, len(piece.vectors))
        found.append(regrouped(list(piece.search(asked, merge.depth, names.take, device)), step))
        start += len(piece.vectors)
    write_listings(row.output, merge.listings(zip(*found, strict=True)), row.tag)


def open_row(row: Row) -> tuple["Queries", Merge, list["Corpus"]]:
    """What a row is made of; raises `UserError` unless its pieces tile the corpus in order."""
    _check_depth(row.top_k)
    asked, merge = Queries.open(row.queries), _merge(row)
    if len(merge.queries) != len(asked.vectors):
        raise UserError(
            f"{row.queries}: {len(asked.vectors)} vectors for the {len(merge.queries)} queries of "
            f"{row.query_ids}; encode them again"
        )
    pieces, expected = [Corpus(path) for path in row.corpus], 0
    for piece in pieces:
        start, stop = piece.rows(row.ids)
        if start != expected:
            raise UserError(
                f"{piece.path}: begins with row {start} of the corpus where {expected} comes next; "
                "give every piece exactly once, in order"
            )
        expected = stop
    if expected != len(merge.docs):
        raise UserError(
            f"{row.corpus[-1]}: ends with row {expected} of the corpus's {len(merge.docs)}; "
            "give every piece exactly once, in order"
        )
    return asked, merge, pieces


@dataclass(frozen=True)
class Queries:
    """Query vectors (q, dim), whole and finite."""

    path: Path
    vectors: np.ndarray
    meta: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> "Queries":
        """Raises `UserError` for vectors that are damaged or hold NaN."""
        vectors, meta = open_embeddings(path)
        check_finite(vectors, path)
        return cls(path, vectors, meta)

    def part(self, which: np.ndarray) -> "Queries":
        """Some of them."""
        return replace(self, vectors=self.vectors[which])


class Corpus:
    """One piece of a corpus, checked once however often it is searched."""

    def __init__(self, path: Path | str):
        self.path = path
        self.vectors, self.meta = open_embeddings(path, verify=False)
        self._shard: Shard | None = None
        self._checked = False

    def rows(self, ids: Path | str) -> tuple[int, int]:
        """Which rows of corpus.parquet these are; refuses a piece of another corpus."""
        count = len(self.vectors)
        start, stop = self.meta.get("rows", [0, count])
        known = pq.ParquetFile(whole(ids)).metadata.num_rows
        if stop - start != count or stop > known:
            raise UserError(
                f"{self.path}: {count} vectors for rows {start} to {stop} of {ids}, which has "
                f"{known}; encode that shard again"
            )
        return start, stop

    def search(self, queries: Queries, k: int, ids: Ids, device: str) -> Iterator[Batch]:
        """Hits, docs by row of corpus.parquet; `ids` by row of this piece."""
        vectors, documents = queries.vectors, self.vectors
        check_pair(queries.path, vectors, queries.meta, self.path, documents, self.meta)
        start = self.meta.get("rows", [0])[0]
        if device == "auto" and not uses_torch(len(vectors), *documents.shape):
            self._check()
            batches = search_array(vectors, documents, k, ids)
        else:
            from .scan import scan  # imports torch

            batches = scan(vectors, self._on(device), k, ids, str(queries.path))
        for first, rows, scores in batches:
            yield first, rows + start, scores

    def _check(self) -> None:
        if not self._checked:
            verify_array(self.path, self.meta)
            check_finite(self.vectors, self.path)
            self._checked = True

    def _on(self, device: str) -> "Shard":
        from ..encode import pick_device
        from ..vectors.shard import Shard

        device = pick_device(device)
        if self._shard is None or self._shard.device != device:
            self._shard = Shard(self.path, device)
        return self._shard


def uses_torch(queries: int, documents: int, dim: int) -> bool:
    """`needs_torch`, or a GPU that this process has in use already does it sooner."""
    work = queries * documents * dim
    torch = sys.modules.get("torch")
    return work > LARGE or (work > SMALL and torch is not None and torch.cuda.is_initialized())
