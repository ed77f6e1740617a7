"""TREC runs: six columns `qid Q0 docid rank score tag`, ordered as trec_eval orders them.

trec_eval sorts by score (held in single precision), highest first, and breaks ties by document id,
highest first, compared byte by byte; it ignores the rank column and the order of the lines. Every
run written here is already in that order, so the rank in the file is the rank that is scored.
"""

import math
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, groupby, islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import UserError, printable
from ..files import sealed, whole
from .run_text import check_fields, run_text

Ids = Callable[[np.ndarray], pa.Array]  # row numbers to document ids
Ranking = tuple[str, list[str], np.ndarray]  # query id, document ids, float32 scores; in order

T = TypeVar("T")
R = TypeVar("R")

QUERIES = 256  # of Python objects made into one listing
READ = 2**22  # bytes of a run that are parsed at once: their hits stay in the cache
COLUMNS = {
    "query": pa.string(),
    "q0": pa.string(),
    "doc": pa.string(),
    "rank": pa.int64(),
    "score": pa.float64(),
    "tag": pa.string(),
}
USED = ["query", "doc", "rank", "score"]


@dataclass(frozen=True)
class Listing:
    """Hits of some whole queries, as a run lists them.

    queries: ids (g); starts: int64 (g + 1), query i has the hits starts[i] to starts[i + 1];
    docs: ids (n); scores: float32, or float64 as read from a run, (n).
    """

    queries: pa.Array
    starts: np.ndarray
    docs: pa.Array
    scores: np.ndarray

    @property
    def of_query(self) -> np.ndarray:
        """The query's number of each hit, int64 (n)."""
        return np.repeat(np.arange(len(self.queries)), np.diff(self.starts))


def trec_order(query: np.ndarray, score: np.ndarray, doc: np.ndarray, ids: Ids) -> np.ndarray:
    """Permutation that sorts hits by (query, score descending, document id descending in UTF-8).

    `query`, `score` (float32) and `doc` (row numbers) have one entry per hit. `ids(rows)` gives the
    document ids of rows; it is asked only about rows whose score ties within a query.
    """
    key = sort_key(query, score)
    order = np.argsort(key, kind="stable")  # merges runs in order, as hits of shards are
    ordered = key[order]
    same = ordered[1:] == ordered[:-1]
    if same.any():
        tied = np.flatnonzero(np.r_[False, same] | np.r_[same, False])
        order[tied] = order[tied[tie_order(ordered[tied], doc[order[tied]], ids)]]
    return order


def sort_key(query: np.ndarray, score: np.ndarray) -> np.ndarray:
    """One int64 for each hit: upwards by query (integer), then downwards by score (float32)."""
    bits = (score + np.float32(0)).view(np.int32)  # -0 becomes 0
    upward = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # integers in the order of the scores
    return (query.astype(np.int64) << 32) + (0x7FFFFFFF - upward.astype(np.int64))


def tie_order(key: np.ndarray, doc: np.ndarray, ids: Ids) -> np.ndarray:
    """Permutation of tied hits, already sorted by `key`, that sorts each tie by id downwards."""
    rows, place = np.unique(doc, return_inverse=True)
    by_id = pc.sort_indices(ids(rows), sort_keys=[("", "descending")]).to_numpy()
    rank = np.empty(len(rows), dtype=np.int64)
    rank[by_id] = np.arange(len(rows))
    return np.lexsort((rank[place], key))


def kept(query: str, docs: Sequence[str], k: int) -> int:
    """How many of `docs`, best first, make a run of `k`: the query's own document doesn't count.

    So a protocol that drops it finds `k` others.
    """
    return k + (query in docs[: k + 1])


def read_ids(path: Path | str, start: int = 0, stop: int | None = None) -> pa.Array:
    """The `id` column of a Parquet file's rows `start:stop`, as one large_string array."""
    file = pq.ParquetFile(whole(path))
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    stop = sum(sizes) if stop is None else stop
    firsts = [0, *accumulate(sizes)]
    groups = [g for g, size in enumerate(sizes) if firsts[g] < stop and firsts[g] + size > start]
    # Groups read one by one and joined would need twice the memory, and the time to get it.
    ids = file.read_row_groups(groups, columns=["id"]).column("id").cast(pa.large_string())
    ids = ids.slice(start - firsts[groups[0]] if groups else 0, stop - start)
    return ids.chunk(0) if ids.num_chunks == 1 else ids.combine_chunks()


def write_run(path: Path | str, rankings: Iterable[Ranking], tag: str) -> None:
    """`write_listings` of rankings, each already in trec_eval's order."""
    write_listings(path, listings_of(rankings), tag)


def listings_of(rankings: Iterable[Ranking]) -> Iterator[Listing]:
    """The same hits, some hundred queries at a time."""
    rest = iter(rankings)
    while block := list(islice(rest, QUERIES)):
        yield Listing(
            pa.array([query for query, _, _ in block], pa.large_string()),
            np.cumsum([0, *(len(docs) for _, docs, _ in block)]),
            pa.array([doc for _, docs, _ in block for doc in docs], pa.large_string()),
            np.concatenate([np.asarray(scores) for _, _, scores in block]),
        )


def write_listings(path: Path | str, listings: Iterable[Listing], tag: str) -> None:
    """Write hits, each query's already in trec_eval's order, as a TREC run; whole or not at all.

    Scores are float32 and printed with nine significant digits, which round-trips them.
    """
    check_fields(pa.array([tag], pa.large_string()), "tag")
    with sealed(path) as temporary, open(temporary, "wb") as file:
        for text in in_parallel(lambda hits: _text(hits, tag), listings):
            file.write(text)


def _text(hits: Listing, tag: str) -> memoryview:
    return run_text(hits.queries, hits.starts, hits.docs, hits.scores, tag).data


def in_parallel(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`map(work, items)` in as many threads as there are cores, few items ahead, in order."""
    threads = min(4, len(os.sched_getaffinity(0)))
    pending: list[Future[R]] = []
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > threads:
                yield pending.pop(0).result()
        for future in pending:
            yield future.result()


def iter_run(path: Path | str) -> Iterator[Ranking]:
    """Read a TREC run query by query, each query's lines put into trec_eval's order.

    Raises what `read_listings` raises.
    """
    for query, scores in iter_listed(path):
        yield ranked(query, scores)


def iter_listed(path: Path | str) -> Iterator[tuple[str, dict[str, float]]]:
    """Read a TREC run query by query: its id, and {document id: score} as the file lists them.

    Raises what `read_listings` raises.
    """
    for hits in read_listings(path):
        for number, query in enumerate(hits.queries.to_pylist()):
            part = slice(*hits.starts[number : number + 2])
            docs = hits.docs[part].to_pylist()
            yield query, dict(zip(docs, hits.scores[part].tolist(), strict=True))


def read_listings(path: Path | str) -> Iterator[Listing]:
    """Read a TREC run, many whole queries at a time, as the file lists them; float64 scores.

    Raises `UserError` naming file and line for a malformed line, a score that is not finite, a
    document twice in one query, or a query whose lines are not together.
    """
    known = 0
    try:
        for hits in _parsed(whole(path)):
            yield hits
            known += len(hits.queries)
    except (pa.ArrowInvalid, _Unusual):  # other white space, or a mistake to be named
        rest = islice(_line_by_line(path), known, None)
        yield from listings_of((q, list(hits), np.array([*hits.values()])) for q, hits in rest)


class _Unusual(Exception):
    """A run that has to be read line by line."""


def _parsed(path: Path) -> Iterator[Listing]:
    """`read_listings` of a run of lines like ours; raises `_Unusual` or pyarrow's for others."""
    seen: set[str] = set()
    for hits in in_parallel(_parse, _chunks(path)):
        names = set(hits.queries.to_pylist())
        if len(names) < len(hits.queries) or not seen.isdisjoint(names):
            raise _Unusual
        seen |= names
        yield hits


def _chunks(path: Path) -> Iterator[pa.Buffer]:
    """The lines of whole queries, about `READ` bytes at a time."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            return
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def line_end(at: int) -> int:
        return mapped.find(b"\n", at) + 1 or size

    text, start = pa.py_buffer(mapped), 0
    while start < size:
        stop = line_end(min(start + READ, size) - 1)
        last = max(start, mapped.rfind(b"\n", start, stop - 1) + 1)
        query = mapped[last : mapped.find(b" ", last, stop) + 1]
        while query and mapped[stop : stop + len(query)] == query:
            stop = line_end(stop)
        yield text.slice(start, stop - start)
        start = stop


def _parse(text: pa.Buffer) -> Listing:
    from pyarrow import csv

    size = min(len(text), 2**30)  # in one block, which needn't be joined
    table = csv.read_csv(
        pa.BufferReader(text),
        csv.ReadOptions(column_names=list(COLUMNS), block_size=size, use_threads=False),
        csv.ParseOptions(delimiter=" ", quote_char=False, ignore_empty_lines=False),
        csv.ConvertOptions(column_types=COLUMNS, null_values=[], include_columns=USED),
    )
    query, doc, score = (table[name].combine_chunks() for name in ("query", "doc", "score"))
    runs = pc.run_end_encode(query, run_end_type=pa.int64())
    hits = Listing(runs.values, np.r_[0, runs.run_ends.to_numpy()], doc, score.to_numpy())
    if not np.isfinite(hits.scores).all() or _comes_twice(hits):
        raise _Unusual
    return hits


def _comes_twice(hits: Listing) -> bool:
    """Whether some query lists a document twice. One in 10^6 runs of 10^7 hits is said to."""
    keys = _hashes(hits.docs)
    keys += hits.of_query.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    keys ^= keys >> np.uint64(29)
    keys *= np.uint64(0xBF58476D1CE4E5B9)
    keys.sort()
    return bool((keys[1:] == keys[:-1]).any())


def _hashes(texts: pa.Array) -> np.ndarray:
    """A hash of each text (n), uint64, over eight bytes at a time."""
    _, offsets, data = texts.buffers()
    width = np.int32 if texts.type == pa.string() else np.int64
    ends = np.frombuffer(offsets, width).astype(np.int64)
    ends = ends[texts.offset : texts.offset + len(texts) + 1]
    raw = np.frombuffer(data, np.uint8)[ends[0] : ends[-1]] if data and len(ends) else b""
    padded = np.zeros(len(raw) + 8, np.uint8)
    padded[:-8] = raw
    words = np.ndarray(len(raw) + 1, "<u8", padded, strides=(1,))  # one from each byte on
    start, left = ends[:-1] - ends[:1], np.diff(ends)
    found = left.astype(np.uint64)
    masks = np.array([256**size - 1 for size in range(9)], np.uint64)
    for at in range(0, int(left.max(initial=0)), 8):
        size = np.clip(left - at, 0, 8)
        word = words[np.minimum(start + at, len(raw))] & masks[size]
        found = (found ^ word) * np.uint64(0xD6E8FEB86659FD93)
        found ^= found >> np.uint64(32)
    return found


def _line_by_line(path: Path | str) -> Iterator[tuple[str, dict[str, float]]]:
    """Query ids and {document id: score}; names the line that is wrong."""
    seen: set[str] = set()
    for query, lines in groupby(_lines(path), key=lambda line: line[1]):
        scores: dict[str, float] = {}
        for number, _, doc, score in lines:
            if query in seen or doc in scores:
                what = "query" if query in seen else "document"
                raise UserError(
                    f"{path}:{number}: {what} {printable(query if query in seen else doc)} comes "
                    "a second time; a run lists a query's documents once and together"
                )
            scores[doc] = score
        seen.add(query)
        yield query, scores


def ranked(query: str, scores: dict[str, float]) -> Ranking:
    """Put one query's {document id: score} into trec_eval's order, scores rounded to float32."""
    docs = list(scores)
    values = np.fromiter(scores.values(), dtype=np.float32, count=len(docs)) + np.float32(0)
    ids = pa.array(docs, pa.large_string())
    order = trec_order(np.zeros(len(docs), np.int8), values, np.arange(len(docs)), ids.take)
    return query, [docs[i] for i in order], values[order]


def read_run(path: Path | str) -> dict[str, dict[str, float]]:
    """{query id: {document id: score}} of a TREC run, best document first (see `iter_run`)."""
    return {
        query: dict(zip(docs, scores.tolist(), strict=True))
        for query, docs, scores in iter_run(path)
    }


def _lines(path: Path | str) -> Iterator[tuple[int, str, str, float]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                query, _, doc, rank, score, _ = line.decode("utf-8").split()
                int(rank)
                value = float(score)
            except ValueError:
                value = math.nan
            if not math.isfinite(value):
                shown = printable(line.decode("utf-8", "replace").strip(), 80)
                raise UserError(
                    f"{path}:{number}: not a line of a TREC run "
                    f"(qid Q0 docid rank score tag): {shown!r}"
                )
            yield number, query, doc, value
