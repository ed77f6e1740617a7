"""Hits of one shard as Parquet, and their merge into a TREC run. Needs no torch.

A hits file has the columns query (int32, row of the query), doc (int64, row of corpus.parquet) and
score (float32), sorted by (query, score descending, document id descending). Every query has
min(k, documents of the shard) hits. Its schema metadata says which rows, which k and which arrays.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import UserError
from ..files import sealed, whole
from .runs import Ids, Listing, in_parallel, trec_order

META = b"embed-repro"
TYPES = {"query": pa.int32(), "doc": pa.int64(), "score": pa.float32()}
SCHEMA = pa.schema([pa.field(name, kind, nullable=False) for name, kind in TYPES.items()])
# Rows and scores hardly shrink, and plain columns are read as fast as they are copied.
PLAIN = {"compression": "none", "use_dictionary": ["query"], "write_statistics": False}
CACHED = 2**19  # hits merged at once: what they need is small enough to be used again and again
Batch = tuple[int, np.ndarray, np.ndarray]  # first query, docs (g, m) int64, scores (g, m) float32


def group_size(k: int) -> int:
    """Queries per row group: the same for every shard, so that a merge reads group by group."""
    return max(1, 2**18 // k)


def write_hits(path: Path | str, batches: Iterable[Batch], meta: dict[str, Any]) -> None:
    """Write the hits of all queries, in order.

    `meta`: rows [start, stop] in corpus.parquet, k, queries (count), queries_sha256, corpus_sha256.
    """
    schema = SCHEMA.with_metadata({META: json.dumps(meta, sort_keys=True).encode()})
    with sealed(path) as temporary, pq.ParquetWriter(temporary, schema, **PLAIN) as writer:
        for first, docs, scores in regrouped(batches, group_size(meta["k"])):
            query = np.arange(first, first + len(docs), dtype=np.int32)
            columns = [np.repeat(query, docs.shape[1]), docs.ravel(), scores.ravel()]
            table = pa.table([pa.array(column) for column in columns], schema=schema)
            writer.write_table(table, row_group_size=max(1, len(table)))


def regrouped(batches: Iterable[Batch], step: int) -> Iterator[Batch]:
    """The same hits, `step` queries in each batch but the last."""
    first, waiting, count = 0, [], 0
    for _, docs, scores in batches:
        waiting.append((docs, scores))
        count += len(docs)
        if count < step:
            continue
        docs, scores = (np.concatenate(parts) for parts in zip(*waiting, strict=True))
        whole_groups = count // step * step
        for at in range(0, whole_groups, step):
            yield first + at, docs[at : at + step], scores[at : at + step]
        first, count = first + whole_groups, count - whole_groups
        waiting = [(docs[whole_groups:], scores[whole_groups:])]
    if count:
        docs, scores = (np.concatenate(parts) for parts in zip(*waiting, strict=True))
        yield first, docs, scores


def first_of_each(
    query: np.ndarray, doc: np.ndarray, score: np.ndarray, queries: int, k: int, ids: Ids
) -> np.ndarray:
    """Positions (queries, k) of the first `k` hits of each query in trec_eval's order.

    One entry for each hit, at least `k` of each query from 0 to `queries` - 1; `ids` as for
    `trec_order`.
    """
    order = trec_order(query, score, doc, ids)
    count = np.bincount(query, minlength=queries)
    places: np.ndarray = (np.cumsum(count) - count)[:, None] + np.arange(k)
    best: np.ndarray = order[places]
    return best


@dataclass(frozen=True)
class Merge:
    """How the hits of all shards become a run `k` deep.

    docs, queries: ids by row. With `spare_identical_ids` a document whose id is the query's doesn't
    count among the `k`, so that a protocol which drops it finds `k` others; that takes hits at
    least `k` + 1 deep.
    """

    docs: pa.Array
    queries: pa.Array
    k: int
    spare_identical_ids: bool = False

    @property
    def depth(self) -> int:
        return self.k + self.spare_identical_ids

    def listings(self, batches: Iterable[Sequence[Batch]]) -> Iterator[Listing]:
        """`batches`: for some queries after the other the hits in each shard, docs by row."""
        own = self._own() if self.spare_identical_ids else None
        few = (part for parts in batches for part in _few_queries(parts))
        return in_parallel(partial(self._listing, own), few)

    def _listing(self, own: np.ndarray | None, parts: Sequence[Batch]) -> Listing:
        first, docs, scores = self.best(parts)
        kept = np.ones(docs.shape, bool)
        if own is not None and docs.shape[1] > self.k:
            itself = docs == own[first : first + len(docs), None]
            kept[:, self.k] = itself.any(axis=1)
        return Listing(
            self.queries.slice(first, len(docs)),
            np.r_[0, np.cumsum(kept.sum(axis=1))],
            self.docs.take(pa.array(docs[kept])),
            scores[kept],
        )

    def best(self, parts: Sequence[Batch]) -> Batch:
        """The first `depth` of all shards' hits of the same queries."""
        first = parts[0][0]
        docs = np.concatenate([docs for _, docs, _ in parts], axis=1)
        scores = np.concatenate([scores for _, _, scores in parts], axis=1)
        width = docs.shape[1]
        k = min(self.depth, width)
        if len(parts) == 1:  # in order already
            return first, docs[:, :k], scores[:, :k]
        hits = np.arange(docs.size)
        if k < width:
            kth = np.partition(scores, width - k, axis=1)[:, width - k]
            hits = np.flatnonzero(scores >= kth[:, None])
        doc, score = docs.ravel()[hits], scores.ravel()[hits]
        of = first_of_each(hits // width, doc, score, len(docs), k, self.docs.take)
        return first, doc[of], score[of]

    def _own(self) -> np.ndarray:
        """The row of each query's own id among the documents, int64 (queries); -1: none."""
        found = pc.index_in(self.docs, value_set=self.queries.cast(self.docs.type))
        rows = np.flatnonzero(found.is_valid().to_numpy(zero_copy_only=False))
        own = np.full(len(self.queries), -1)
        own[found.take(pa.array(rows)).to_numpy()] = rows
        return own


def _few_queries(parts: Sequence[Batch]) -> Iterator[list[Batch]]:
    """The same hits, `CACHED` at a time."""
    step = max(1, CACHED // sum(docs.shape[1] for _, docs, _ in parts))
    for at in range(0, len(parts[0][1]), step):
        yield [(first + at, docs[at : at + step], sc[at : at + step]) for first, docs, sc in parts]


def read_hits(paths: Sequence[Path | str], merge: Merge) -> Iterator[list[Batch]]:
    """The hits of all shards, group of queries by group of queries, for `Merge.listings`.

    Raises `UserError` when the shards don't tile the corpus, were searched with different queries
    or not deep enough.
    """
    files = _open_shards(paths, len(merge.docs), len(merge.queries), merge.depth)
    for group in range(max(file.num_row_groups for file in files)):
        yield [_read_batch(file, group) for file in files]


def _read_batch(file: pq.ParquetFile, group: int) -> Batch:
    table = file.read_row_group(group)
    query, docs, scores = (table.column(name).to_numpy() for name in SCHEMA.names)
    shape = (query[-1] - query[0] + 1, -1)
    return int(query[0]), docs.reshape(shape), scores.reshape(shape)


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
