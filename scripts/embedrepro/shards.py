"""Cut a corpus into shards, read a range of its rows, and join title and text.

The cut depends only on the number of characters of each passage and on the number of shards, so it
is the same in every process and on every machine.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .errors import UserError
from .files import whole


def bounds(chars: np.ndarray, shards: int) -> np.ndarray:
    """Row offsets of `shards` runs of passages with about equal numbers of characters.

    `chars`: (documents,) integers ≥ 0. Returns (shards + 1,) int64, from 0 to `documents`, strictly
    increasing; shard i holds rows [result[i], result[i + 1]). No shard holds more than the mean and
    the longest passage. Raises `UserError` when there are more shards than passages.
    """
    documents = len(chars)
    if not 1 <= shards <= documents:
        raise UserError(
            f"shards: {shards} for {documents} passages; give a number from 1 to {documents}"
        )
    ends = np.concatenate([[0], np.cumsum(chars, dtype=np.int64)])  # ends[r]: characters before r
    order = np.arange(shards + 1, dtype=np.int64)
    targets = ends[-1] * order // shards
    above = np.searchsorted(ends, targets)
    below = np.maximum(above - 1, 0)
    cuts = np.where(targets - ends[below] <= ends[above] - targets, below, above)
    cuts[-1] = documents
    cuts = np.maximum.accumulate(cuts - order) + order  # at least one passage each …
    return np.minimum(cuts, documents - shards + order)  # … and enough left for those that follow


def corpus_bounds(corpus: Path | str, shards: int) -> np.ndarray:
    """`bounds` of a prepared corpus.parquet; reads its `chars` column only."""
    chars = pq.ParquetFile(whole(corpus), memory_map=True).read(["chars"])["chars"].to_numpy()
    return bounds(chars, shards)


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
    with pq.ParquetFile(whole(path), memory_map=True) as file:
        rows = file.metadata.num_rows
        stop = rows if stop is None else stop
        if not 0 <= start <= stop <= rows:
            raise UserError(f"{path}: rows {start}–{stop} asked for, it holds {rows}")
        first = 0
        for group in range(file.num_row_groups):
            last = first + file.metadata.row_group(group).num_rows
            if first < stop and last > start:
                table = file.read_row_group(group, columns=columns)
                low = max(start - first, 0)
                part = table.slice(low, min(stop, last) - first - low)
                yield from part.to_batches(max_chunksize=batch)
            first = last


def passage(title: str, text: str, mode: str = "join") -> str:
    """The text that is encoded for a passage: what MTEB, BEIR and FlagEmbedding make of it.

    `mode`: `join` puts a non-empty title and a space before the text, `drop` leaves the title out.
    """
    return f"{title} {text}".strip() if title and mode == "join" else text.strip()
