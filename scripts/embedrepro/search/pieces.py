"""What searching a piece of sparse or of token vectors needs besides their arithmetic."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import UserError
from ..files import whole
from ..vectors.ragged import Ragged
from .runs import Ids, Ranking, ranked, read_ids

POOL = 192 * 2**20  # bytes of candidates held at a time
Pairs = Callable[[np.ndarray, np.ndarray], np.ndarray]  # query and corpus rows (n,) to float32 (n,)


def check_depth(k: int) -> None:
    """Refuse a search for nothing."""
    if k < 1:
        raise UserError(f"top k is {k}; give at least 1")


def check_same_model(queries: Ragged, corpus: Ragged) -> None:
    """Refuse query and corpus vectors that were not made to be compared."""
    for key in ("model_id", "width", "dimension", "similarity"):
        if queries.meta.get(key) != corpus.meta.get(key):
            raise UserError(
                f"{queries.path} has {key} {queries.meta.get(key)}, {corpus.path} has "
                f"{corpus.meta.get(key)}; encode both with the same model and settings"
            )


def rows_of(corpus: Ragged, ids: Path | str) -> tuple[int, int]:
    """The rows of corpus.parquet `ids` that a piece holds."""
    start, stop = corpus.meta.get("rows", [0, corpus.rows])
    known = pq.ParquetFile(whole(ids)).metadata.num_rows
    if stop - start != corpus.rows or stop > known:
        raise UserError(
            f"{corpus.path}: {corpus.rows} vectors for rows {start} to {stop} of {ids}, "
            f"which has {known}; encode that shard again"
        )
    return start, stop


def ids_between(path: Path | str, start: int, stop: int) -> Ids:
    """Document ids by row of a piece; read when first asked for."""

    @cache
    def of_piece() -> pa.Array:
        return read_ids(path, start, stop)

    return lambda rows: of_piece().take(pa.array(rows))


def query_groups(queries: int, bytes_each: int) -> Iterator[tuple[int, int]]:
    """Runs [start, stop) of queries whose candidates fit in `POOL`."""
    size = max(1, POOL // max(1, bytes_each))
    for start in range(0, queries, size):
        yield start, min(queries, start + size)


class Rows(Protocol):
    """A piece of any kind: how many rows, and a sidecar that says which."""

    @property
    def path(self) -> Path: ...

    @property
    def meta(self) -> dict[str, Any]: ...

    @property
    def rows(self) -> int: ...


Piece = TypeVar("Piece", bound=Rows)


class Pieces(Generic[Piece]):
    """The pieces of one corpus as one: which of them holds a row of corpus.parquet, and where.

    Raises `UserError` when the pieces don't tile the corpus.
    """

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces = sorted(pieces, key=lambda piece: self._start(piece))
        self.starts = np.array([self._start(piece) for piece in self.pieces], np.int64)
        ends = np.cumsum([piece.rows for piece in self.pieces])
        if self.starts.tolist() != [0, *ends[:-1].tolist()]:
            names = ", ".join(str(piece.path) for piece in self.pieces)
            raise UserError(f"{names}: don't tile a corpus; give every shard exactly once")
        self.rows = int(ends[-1])

    @staticmethod
    def _start(piece: Rows) -> int:
        return int(piece.meta.get("rows", [0])[0])

    def split(self, rows: np.ndarray) -> Iterator[tuple[Piece, np.ndarray, np.ndarray]]:
        """Each piece that holds some of `rows` (n,): the places in `rows`, and its own rows."""
        owner = np.searchsorted(self.starts, rows, "right") - 1
        for number in np.unique(owner).tolist():
            places = np.flatnonzero(owner == number)
            yield self.pieces[number], places, rows[places] - self.starts[number]


def rescore(
    rankings: Iterable[Ranking],
    query_ids: pa.Array,
    doc_ids: pa.Array,
    depth: int,
    pairs: Pairs,
    source: Path | str,
) -> Iterator[Ranking]:
    """Each ranking's best `depth` documents with their scores from `pairs`, in trec_eval's order.

    Raises `UserError` for a query or document of the run `source` that the ids lack.
    """
    for name, docs, _ in rankings:
        best = docs[:depth]
        query = pc.index_in(pa.array([name], query_ids.type), query_ids)
        rows = pc.index_in(pa.array(best, doc_ids.type), doc_ids)
        if query.null_count or rows.null_count:
            lost = name if query.null_count else best[pc.is_null(rows).to_pylist().index(True)]
            raise UserError(f"{source} names {lost!r}, which the dataset lacks; is it this data's?")
        places = rows.to_numpy().astype(np.int64)
        scores = pairs(np.full(len(best), query[0].as_py()), places)
        yield ranked(name, dict(zip(best, scores.tolist(), strict=True)))
