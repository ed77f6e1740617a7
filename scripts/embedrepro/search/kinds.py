"""Sparse and token vectors as a search job takes them, beside dense ones.

`queries_class` and `corpus_class` say by a piece's sidecar which class opens it. A further kind of
vectors is one format, one scan and one entry of `SCANS`.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ..files import read_json
from ..vectors import multivector, sparse
from ..vectors.dense import sidecar
from ..vectors.ragged import Ragged
from .hits import Batch
from .pieces import check_same_model, rows_of
from .runs import Ids

Scan = Callable[[Any, Any, int, Ids, str], Iterator[Batch]]
T = TypeVar("T")


def _scan_sparse(queries: Any, corpus: Any, k: int, ids: Ids, device: str) -> Iterator[Batch]:
    from .sparse import scan

    return scan(queries, corpus, k, ids)


def _scan_tokens(queries: Any, corpus: Any, k: int, ids: Ids, device: str) -> Iterator[Batch]:
    from ..encode import pick_device
    from .maxsim import scan  # imports torch

    return scan(queries, corpus, k, ids, pick_device(device))


OPENERS: dict[str, Callable[..., Ragged]] = {
    sparse.KIND: sparse.SparseVectors,
    multivector.KIND: multivector.TokenVectors,
}
SCANS: dict[str, Scan] = {sparse.KIND: _scan_sparse, multivector.KIND: _scan_tokens}


class RaggedQueries:
    """Query vectors of one of `SCANS`' kinds, whole."""

    def __init__(self, kind: str, path: Path | str) -> None:
        self.path = path
        self.vectors = OPENERS[kind](path)
        self.meta = self.vectors.meta


class RaggedCorpus:
    """One piece of a corpus of one of `SCANS`' kinds, checked once however often it is searched."""

    def __init__(self, kind: str, path: Path | str) -> None:
        self.kind, self.path = kind, path
        self.vectors = OPENERS[kind](path)
        self.meta = self.vectors.meta

    def rows(self, ids: Path | str) -> tuple[int, int]:
        """Which rows of corpus.parquet these are; refuses a piece of another corpus."""
        return rows_of(self.vectors, ids)

    def search(self, queries: RaggedQueries, k: int, ids: Ids, device: str) -> Iterator[Batch]:
        """Hits, docs by row of corpus.parquet; `ids` by row of this piece."""
        check_same_model(queries.vectors, self.vectors)
        start = self.meta.get("rows", [0])[0]
        for first, rows, scores in SCANS[self.kind](queries.vectors, self.vectors, k, ids, device):
            yield first, rows + start, scores


def queries_class(path: Path | str, dense: T) -> T | Callable[[Path | str], RaggedQueries]:
    """What opens the query vectors at `path`: `dense` unless they are of another kind."""
    kind = kind_of(path)
    return dense if kind is None else partial(RaggedQueries, kind)


def corpus_class(path: Path | str, dense: T) -> T | Callable[[Path | str], RaggedCorpus]:
    """What opens the corpus' vectors at `path`: `dense` unless they are of another kind."""
    kind = kind_of(path)
    return dense if kind is None else partial(RaggedCorpus, kind)


def kind_of(path: Path | str) -> str | None:
    """The kind of a piece's vectors by its sidecar; None is dense."""
    kind = read_json(sidecar(path)).get("format")
    return kind if kind in SCANS else None
