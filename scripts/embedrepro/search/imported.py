"""Runs that were made elsewhere, as rows like any other."""

from collections.abc import Iterator
from pathlib import Path

from .runs import Ranking, iter_run, kept, write_run


def import_run(file: Path, k: int, tag: str, output: Path) -> None:
    """Write the best `k` hits of each query (see `kept`) of the TREC run `file`, in our order.

    Raises what `iter_run` raises: a malformed line is named.
    """

    def best() -> Iterator[Ranking]:
        for query, docs, scores in iter_run(file):
            depth = kept(query, docs, k)
            yield query, docs[:depth], scores[:depth]

    write_run(output, best(), tag)
