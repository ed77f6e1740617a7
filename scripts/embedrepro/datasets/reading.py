"""Read prepared Parquet, checking what is read, and only that, against its folder's record."""

from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import UserError
from ..files import damaged, digest_of, listed, whole
from .records import passage
from .tables import chunk

Mark = tuple[str, int, int, int]  # a file as it is now: path, size, time, inode
_proven: set[tuple[Mark, Any]] = set()  # parts that this process has hashed


class Checked:
    """A Parquet file, open; each part is hashed when it is first read in this process.

    What it is held against is the corpus.json or split.json beside it (`tables.table_facts`); a
    file that has a `.sha256` instead is hashed whole, one without a record is taken as it is.
    Raises `UserError` that names the file and what to delete.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            info = self.path.stat()
        except OSError as error:
            raise UserError(f"{path}: can't be read ({error.strerror})") from None
        self.mark = (str(self.path), info.st_size, info.st_mtime_ns, info.st_ino)
        found = listed(self.path)
        self.facts: dict[str, Any] = {}
        if found is None:
            whole(self.path)
        else:
            self.record, self.facts = found
            if self.facts["size"] != info.st_size:
                raise self.damage("")
            self._check_range(self.facts["footer"], "its footer is ")
        self.file = pq.ParquetFile(self.path, memory_map=True)
        self.rows: int = self.file.metadata.num_rows

    def __enter__(self) -> "Checked":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def damage(self, what: str) -> UserError:
        text = f"{what}not what {self.record.name} lists"
        return damaged(self.path, text, self.record)

    def _check_range(self, part: list[Any], what: str) -> None:
        offset, length, expected = part
        if (self.mark, offset) not in _proven:
            if digest_of(self.path, offset, length) != expected:
                raise self.damage(what)
            _proven.add((self.mark, offset))

    def row_group(self, group: int, columns: list[str] | None = None) -> pa.Table:
        """The rows of one row group, all columns or some."""
        if self.facts:
            self._check_range(self.facts["row_groups"][group], f"row group {group} is ")
        return self.file.read_row_group(group, columns=columns)

    def columns(self, names: list[str]) -> pa.Table:
        """All rows of some columns."""
        for name in names if self.facts else ():
            if (self.mark, name) not in _proven:
                if self._column_digest(name) != self.facts["columns"].get(name):
                    raise self.damage(f"column {name} is ")
                _proven.add((self.mark, name))
        return self.file.read(names)

    def _column_digest(self, name: str) -> str:
        column, found = self.file.schema_arrow.get_field_index(name), sha256()
        with open(self.path, "rb", buffering=0) as file:
            for group in range(self.file.num_row_groups):
                offset, length = chunk(self.file.metadata.row_group(group).column(column))
                file.seek(offset)
                found.update(file.read(length))
        return found.hexdigest()


def read_columns(path: Path | str, names: list[str]) -> pa.Table:
    """All rows of some columns; no other column's bytes are read."""
    with Checked(path) as table:
        return table.columns(names)


def read_rows(
    path: Path | str,
    start: int = 0,
    stop: int | None = None,
    columns: list[str] | None = None,
    batch: int = 1024,
) -> Iterator[pa.RecordBatch]:
    """Rows [start, stop) of a Parquet file in order, in record batches of at most `batch` rows.

    Row groups outside the range are never read; one row group at a time is in memory.
    `stop=None` is the end. Raises `UserError` when the range doesn't lie within the file.
    """
    with Checked(path) as table:
        stop = table.rows if stop is None else stop
        if not 0 <= start <= stop <= table.rows:
            raise UserError(f"{path}: rows {start}–{stop} asked for, it holds {table.rows}")
        first = 0
        for group in range(table.file.num_row_groups):
            last = first + table.file.metadata.row_group(group).num_rows
            if first < stop and last > start:
                rows = table.row_group(group, columns)
                low = max(start - first, 0)
                part = rows.slice(low, min(stop, last) - first - low)
                yield from part.to_batches(max_chunksize=batch)
            first = last


def read_texts(
    path: Path | str, title: str | None = None, start: int = 0, stop: int | None = None
) -> Iterator[str]:
    """The texts of rows [start, stop), read as they are asked for.

    `title`: `join` or `drop` for the passages of corpus.parquet (see `shards.passage`), None for a
    table without titles, queries.parquet.
    """
    if title is None:
        for batch in read_rows(path, start, stop, ["text"]):
            yield from batch["text"].to_pylist()
        return
    for batch in read_rows(path, start, stop, ["title", "text"]):
        columns = batch["title"].to_pylist(), batch["text"].to_pylist()
        for heading, text in zip(*columns, strict=True):
            yield passage(heading or "", text, title)


def absent_ids(path: Path | str, wanted: Iterable[str]) -> set[str]:
    """Those of `wanted` that are not in the `id` column of a table."""
    missing = set(wanted)
    asked = pa.array(missing, pa.string())
    for ids in read_columns(path, ["id"])["id"].chunks if missing else ():
        missing.difference_update(ids.filter(pc.is_in(ids, value_set=asked)).to_pylist())
    return missing
