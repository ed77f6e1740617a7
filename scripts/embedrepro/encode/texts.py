"""The texts that are encoded: rows of a prepared Parquet file, each part checked before it is read.

The record beside the file (corpus.json, split.json, dataset.json) has a digest of the file and may
have digests of its parts, `row_groups`: [[offset, length, sha256], …]. With these a job that reads
some rows hashes only the row groups that hold them; without them a process hashes the file once.
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import UserError
from ..files import damaged, digest_of, read_json, sha256
from ..shards import bounds, passage

RECORDS = ("corpus.json", "split.json", "dataset.json")


class Table:
    """A prepared Parquet file and what its record says of it. Parts are hashed once a process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record, facts = _recorded(path)
        self.sha256: str | None = facts.get("sha256")
        self.ranges: list[tuple[int, int, str]] = [
            (start, start + length, digest) for start, length, digest in facts.get("row_groups", [])
        ]
        if facts and facts.get("size") != path.stat().st_size:
            raise self.damaged()
        self._proven: set[tuple[int, int]] = set()
        self._lock = Lock()
        with self.open() as file:
            self.metadata = file.metadata
        self.rows: int = self.metadata.num_rows
        if self.ranges:
            self._prove_rest()

    def open(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self.path, memory_map=True, page_checksum_verification=True)
        except pa.ArrowInvalid:
            raise self.damaged() from None

    def damaged(self) -> UserError:
        if self.record is None:
            return damaged(self.path, "not a whole Parquet file")
        return damaged(self.path, f"not the file that {self.record.name} lists", self.record)

    def read(self, group: int, columns: list[str]) -> pa.Table:
        """Columns of one row group, its bytes checked."""
        self.prove(group)
        with self.open() as file:
            return file.read_row_group(group, columns=columns)

    def prove(self, group: int) -> None:
        """Hold the bytes of a row group against the record."""
        if not self.ranges:
            self._prove(0, self.path.stat().st_size, self.sha256)
            return
        start, stop = self._place(group)
        reached = start
        for begin, end, digest in sorted(self.ranges):
            if begin <= reached < min(end, stop):
                self._prove(begin, end, digest)
                reached = end
        if reached < stop:
            raise self.damaged()

    def _prove_rest(self) -> None:
        """Ranges behind the last row group: the footer, where it is listed."""
        behind = max((self._place(i)[1] for i in range(self.metadata.num_row_groups)), default=0)
        for begin, end, digest in self.ranges:
            if begin >= behind:
                self._prove(begin, end, digest)

    def _prove(self, begin: int, end: int, digest: str | None) -> None:
        with self._lock:
            if digest is None or (begin, end) in self._proven:
                return
            whole = (begin, end) == (0, self.path.stat().st_size)
            found = sha256(self.path) if whole else digest_of(self.path, begin, end - begin)
            if found != digest:
                raise self.damaged()
            self._proven.add((begin, end))

    def _place(self, group: int) -> tuple[int, int]:
        """First byte of a row group and the one behind its last."""
        facts = self.metadata.row_group(group)
        spans = []
        for i in range(facts.num_columns):
            column = facts.column(i)
            begin = column.data_page_offset
            if column.has_dictionary_page and column.dictionary_page_offset is not None:
                begin = min(begin, column.dictionary_page_offset)
            spans.append((begin, begin + column.total_compressed_size))
        return min(start for start, _ in spans), max(stop for _, stop in spans)


def _recorded(path: Path) -> tuple[Path | None, dict[str, Any]]:
    """The record that lists `path`, and what it says; (None, {}) for a file from elsewhere."""
    for folder in (path.parent, path.parent.parent):
        for name in RECORDS:
            if (folder / name).is_file():
                listed = read_json(folder / name).get("files") or {}
                if facts := listed.get(path.relative_to(folder).as_posix()):
                    return folder / name, facts
    return None, {}


def table(path: Path | str) -> Table:
    """The file as it now is; the same object while it doesn't change."""
    path = Path(path)
    try:
        info = path.stat()
    except OSError:
        raise UserError(f"{path}: no such file; prepare the dataset first") from None
    return _table(path, info.st_size, info.st_mtime_ns, info.st_ino)


@lru_cache(1024)
def _table(path: Path, *_mark: int) -> Table:
    return Table(path)


@lru_cache(1024)
def _bounds(given: Table, of: int) -> list[int]:
    """`shards.bounds` by the `chars` column, which is read alone."""
    with given.open() as file:
        chars = file.read(["chars"])["chars"].to_numpy()
    return bounds(chars, of).tolist()


def row_range(path: Path | str, shard: int, of: int) -> tuple[int, int]:
    """Rows of shard `shard` (from 0) of `of`; an unsharded file needs no `chars` column."""
    given = table(path)
    if not 0 <= shard < of:
        raise UserError(f"shard {shard} of {of}: use 0 to {of - 1}")
    if of == 1:
        return 0, given.rows
    ends = _bounds(given, of)
    return ends[shard], ends[shard + 1]


def checked_rows(
    path: Path | str, start: int, stop: int, columns: list[str], batch: int = 1024
) -> Iterator[pa.RecordBatch]:
    """Rows [start, stop) in order, in record batches of at most `batch` rows.

    Only the row groups that hold them are read and checked, one at a time. Raises `UserError` for
    bytes that are not as recorded, and for a range that doesn't lie within the file.
    """
    given = table(path)
    if not 0 <= start <= stop <= given.rows:
        raise UserError(f"{path}: rows {start}–{stop} asked for, it holds {given.rows}")
    first = 0
    for group in range(given.metadata.num_row_groups):
        last = first + given.metadata.row_group(group).num_rows
        if first < stop and last > start:
            low = max(start - first, 0)
            part = given.read(group, columns).slice(low, min(stop, last) - first - low)
            yield from part.to_batches(max_chunksize=batch)
        first = last


def read_texts(path: Path | str, start: int, stop: int, role: str, title: str) -> Iterator[str]:
    """The texts to encode of rows [start, stop), read as they are asked for.

    `title`: how a passage's title and text are joined (see `shards.passage`).
    """
    if role == "query":
        for rows in checked_rows(path, start, stop, ["text"]):
            yield from rows["text"].to_pylist()
        return
    for rows in checked_rows(path, start, stop, ["title", "text"]):
        for heading, text in zip(rows["title"].to_pylist(), rows["text"].to_pylist(), strict=True):
            yield passage(heading or "", text, title)
