"""Parquet tables written row by row, and ids that must be unique, in little memory."""

from array import array
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import UserError
from .records import Text

GROUP_ROWS = 16384
GROUP_CHARS = 16_000_000  # long documents make smaller row groups
CORPUS = pa.schema(
    [("id", pa.string()), ("title", pa.string()), ("text", pa.string()), ("chars", pa.int32())]
)
QUERIES = pa.schema([("id", pa.string()), ("text", pa.string())])
QRELS = pa.schema([("query_id", pa.string()), ("doc_id", pa.string()), ("relevance", pa.int32())])


class Table:
    """A Parquet file under construction; row groups of at most `GROUP_ROWS` rows."""

    def __init__(self, path: Path, schema: pa.Schema, where: Callable[[int], str]) -> None:
        self.writer = pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False)
        self.schema, self.where = schema, where
        self.rows: list[tuple[Any, ...]] = []
        self.lines = array("q")
        self.chars = 0
        self.parts: list[pa.Table] = []  # of the row group that `extend` fills

    def add(self, line: int, row: tuple[Any, ...], chars: int = 0) -> None:
        """Append `row`, which stood on `line` of its source and holds `chars` characters."""
        self.rows.append(row)
        self.lines.append(line)
        self.chars += chars
        if len(self.rows) == GROUP_ROWS or self.chars >= GROUP_CHARS:
            self.flush()

    def extend(self, batch: pa.RecordBatch, chars: np.ndarray) -> None:
        """Append the rows of `batch`, each with its number of characters; `add`'s row groups."""
        start, held = 0, sum(map(len, self.parts))
        while start < len(batch):
            ends = self.chars + np.cumsum(chars[start : start + GROUP_ROWS - held])
            taken = min(len(ends), int(np.searchsorted(ends, GROUP_CHARS)) + 1)
            self.parts.append(pa.Table.from_batches([batch.slice(start, taken)]))
            start, held, self.chars = start + taken, held + taken, int(ends[taken - 1])
            if held == GROUP_ROWS or self.chars >= GROUP_CHARS:
                self.flush()
                held = 0

    def flush(self) -> None:
        if self.parts:
            self.writer.write_table(pa.concat_tables(self.parts).combine_chunks())
            self.parts, self.chars = [], 0
            return
        columns = list(zip(*self.rows, strict=True)) or [()] * len(self.schema)
        try:
            arrays = [pa.array(c, f.type) for c, f in zip(columns, self.schema, strict=True)]
        except UnicodeEncodeError:
            raise UserError(f"{self.where(self.broken_line())}: holds half a character") from None
        self.writer.write_table(pa.table(arrays, schema=self.schema))
        self.rows, self.lines, self.chars = [], array("q"), 0

    def broken_line(self) -> int:
        r"""The line of the first row with a lone surrogate (an escape like "\ud800" in JSON)."""
        texts = ("".join(v for v in row if isinstance(v, str)) for row in self.rows)
        return next(
            line
            for line, text in zip(self.lines, texts, strict=True)
            if any("\ud800" <= c <= "\udfff" for c in text)
        )


@contextmanager
def table(path: Path, schema: pa.Schema, where: Callable[[int], str]) -> Iterator[Table]:
    """A `Table` that is finished on leaving; `where` names a line of the source in messages."""
    made = Table(path, schema, where)
    with made.writer:
        yield made
        made.flush()


def chunk(column: pq.ColumnChunkMetaData) -> tuple[int, int]:
    """Offset and length of a column's bytes within a row group."""
    start = column.data_page_offset
    if column.has_dictionary_page:
        start = min(start, column.dictionary_page_offset)
    return start, column.total_compressed_size


def table_facts(path: Path | str) -> dict[str, Any]:
    """What a record says of a Parquet file, so that a reader can check the part that it reads.

    {"size", "sha256", "row_groups": [[offset, length, sha256], …], "columns": {name: sha256 of its
    bytes in all row groups}, "footer": [offset, length, sha256]}. Row groups and footer together
    are the whole file.
    """
    meta, size = pq.read_metadata(path), Path(path).stat().st_size
    names = meta.schema.to_arrow_schema().names
    whole, columns = sha256(), {name: sha256() for name in names}
    groups: list[list[Any]] = []
    offset = 0
    with open(path, "rb", buffering=0) as file, ThreadPoolExecutor(3) as pool:
        for group in map(meta.row_group, range(meta.num_row_groups)):
            chunks = [chunk(group.column(i)) for i in range(len(names))]
            end = max(start + length for start, length in chunks)
            content = memoryview(file.read(end - offset))
            found = pool.submit(sha256, content)
            hashed = [pool.submit(whole.update, content)]
            for name, (start, length) in zip(names, chunks, strict=True):
                some = content[start - offset : start - offset + length]
                hashed.append(pool.submit(columns[name].update, some))
            wait(hashed)  # each goes on with the next row group where it stands
            groups.append([offset, end - offset, found.result().hexdigest()])
            offset = end
        footer = file.read(size - offset)
        whole.update(footer)
    return {
        "size": size,
        "sha256": whole.hexdigest(),
        "row_groups": groups,
        "columns": {name: found.hexdigest() for name, found in columns.items()},
        "footer": [offset, size - offset, sha256(footer).hexdigest()],
    }


class Ids:
    """Ids seen so far: 8 bytes each, whatever their length."""

    def __init__(self) -> None:
        self.hashes = array("q")

    def __len__(self) -> int:
        return len(self.hashes)

    def add(self, id_: str) -> None:
        self.hashes.append(hash(id_))

    def extend(self, ids: list[str]) -> None:
        self.hashes.extend(map(hash, ids))

    def check(self, again: Callable[[], Iterable[Text]], where: Callable[[int], str]) -> None:
        """Raise `UserError` if an id came twice.

        Equal hashes are only a suspicion: `again` reads the source once more, to compare the ids
        themselves and to name both lines.
        """
        hashes = np.sort(np.frombuffer(self.hashes, dtype=np.int64))
        suspects = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
        first: dict[str, int] = {}
        for record in again() if suspects else ():
            if hash(record.id) in suspects:
                if record.id in first:
                    raise UserError(
                        f"{where(record.line)}: id {record.id} stands on line {first[record.id]} "
                        "already"
                    )
                first[record.id] = record.line
