"""Hits of one shard as Parquet, and their merge into a TREC run. Needs no torch.

A hits file has the columns query (int32, row of the query), doc (int64, row of corpus.parquet) and
score (float32), sorted by (query, score descending, document id descending). Every query has
min(k, documents of the shard) hits. Its schema metadata says which rows, which k and which arrays.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import UserError
from ..files import sealed, whole
from .runs import Ranking, kept, read_ids, trec_order

META = b"embed-repro"
SCHEMA = pa.schema([("query", pa.int32()), ("doc", pa.int64()), ("score", pa.float32())])
Batch = tuple[int, np.ndarray, np.ndarray]  # first query, docs (g, m) int64, scores (g, m) float32


def group_size(k: int) -> int:
    """Queries per row group: the same for every shard, so that a merge reads group by group."""
    return max(1, 2**18 // k)


def write_hits(path: Path | str, batches: Iterable[Batch], meta: dict[str, Any]) -> None:
    """Write batches whose sizes, but the last, are multiples of `group_size(meta["k"])`.

    `meta`: rows [start, stop] in corpus.parquet, k, queries (count), queries_sha256, corpus_sha256.
    """
    step = group_size(meta["k"])
    schema = SCHEMA.with_metadata({META: json.dumps(meta, sort_keys=True).encode()})
    with sealed(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for first, docs, scores in batches:
            for at in range(0, len(docs), step):
                part = docs[at : at + step]
                query = np.arange(first + at, first + at + len(part), dtype=np.int32)
                columns = [
                    np.repeat(query, docs.shape[1]),
                    part.ravel(),
                    scores[at : at + step].ravel(),
                ]
                table = pa.table([pa.array(column) for column in columns], schema=schema)
                writer.write_table(table, row_group_size=max(1, len(table)))


def merge_hits(
    paths: Sequence[Path | str],
    corpus: Path | str,
    queries: Path | str,
    k: int,
    spare_identical_ids: bool = False,
) -> Iterator[Ranking]:
    """Merge the hits of all shards; yield per query the best `k` in trec_eval's order.

    With `spare_identical_ids` a document whose id is the query's doesn't count among the `k`, so
    that a protocol which drops it finds `k` others; that takes hits at least `k` + 1 deep. Raises
    `UserError` when the shards don't tile the corpus, were searched with different queries or not
    deep enough.
    """
    doc_ids, query_ids = read_ids(corpus), read_ids(queries).to_pylist()
    files = _open_shards(paths, len(doc_ids), len(query_ids), k + spare_identical_ids)
    for group in range(max(file.num_row_groups for file in files)):
        tables = [file.read_row_group(group) for file in files]
        query, doc, score = (
            np.concatenate([table.column(name).to_numpy() for table in tables])
            for name in SCHEMA.names
        )
        order = trec_order(query, score, doc, doc_ids.take)
        query, doc, score = query[order], doc[order], score[order]
        starts = np.flatnonzero(np.r_[True, query[1:] != query[:-1]])
        for start, stop in zip(starts, np.r_[starts[1:], len(query)], strict=True):
            name = query_ids[query[start]]
            docs = doc_ids.take(pa.array(doc[start : min(stop, start + k + 1)])).to_pylist()
            docs = docs[: kept(name, docs, k) if spare_identical_ids else k]
            yield name, docs, score[start : start + len(docs)]


def _open_shards(
    paths: Sequence[Path | str], documents: int, queries: int, depth: int
) -> list[pq.ParquetFile]:
    """Open hits files in the order of their rows, after checking that they belong together."""
    shards = []
    for path in paths:
        file = pq.ParquetFile(whole(path))
        meta = json.loads((file.schema_arrow.metadata or {}).get(META, b"null"))
        if meta is None:
            raise UserError(f"{path}: not a hits file of search_shard.py")
        shards.append((meta["rows"], meta, path, file))
    shards.sort(key=lambda shard: shard[0])
    expected = 0
    for (start, stop), meta, path, _ in shards:
        if start != expected:
            what = "come twice" if start < expected else "are missing"
            rows = sorted((start, expected))
            raise UserError(
                f"{path}: rows {rows[0]} to {rows[1]} of the corpus {what}; "
                "give every shard's hits exactly once"
            )
        expected = stop
        if meta["queries_sha256"] != shards[0][1]["queries_sha256"] or meta["queries"] != queries:
            raise UserError(
                f"{path}: was searched with other queries ({meta['queries']} of them) than "
                f"{shards[0][2]} or the queries given ({queries}); search that shard again"
            )
        if meta["k"] < depth or meta["k"] != shards[0][1]["k"]:
            raise UserError(
                f"{path}: holds {meta['k']} hits a query, {shards[0][2]} {shards[0][1]['k']}; "
                f"this merge needs {depth} in each; search again with --top-k {depth}"
            )
    if expected != documents:
        raise UserError(
            f"hits cover {expected} of the corpus's {documents} documents; "
            "give every shard's hits exactly once"
        )
    return [file for _, _, _, file in shards]
