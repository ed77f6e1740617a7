"""The texts of a piece: rows of a prepared corpus.parquet or queries.parquet."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from ..datasets import reading
from ..datasets.shards import corpus_bounds
from ..errors import UserError


def row_range(path: Path, shard: int, of: int) -> tuple[int, int]:
    """Rows of shard `shard` (from 0) of `of`; an unsharded file needs no `chars` column."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; prepare the dataset first")
    if not 0 <= shard < of:
        raise UserError(f"shard {shard} of {of}: use 0 to {of - 1}")
    ends = _bounds(path, of, path.stat().st_mtime_ns)
    return ends[shard], ends[shard + 1]


@lru_cache(1024)
def _bounds(path: Path, of: int, _time: int) -> list[int]:
    """First rows of the shards, and the number of rows; one column is read once a process."""
    if of == 1:
        with reading.Checked(path) as table:
            return [0, table.rows]
    return corpus_bounds(path, of).tolist()


def read_texts(path: Path, start: int, stop: int, role: str, title: str) -> Iterator[str]:
    """The texts of rows [start, stop), read as they are asked for, row group by row group.

    `title`: how a passage's title and text are joined (see `datasets.records.passage`).
    """
    return reading.read_texts(path, None if role == "query" else title, start, stop)
