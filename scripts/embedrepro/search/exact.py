"""Exact top-k search of one shard of a corpus.

The score of a query and a document is defined as the float64 dot product of their stored vectors,
summed in one fixed order and rounded to float32. It depends on nothing but the two vectors, so any
cut into shards, any block size and any device give the same scores and the same order.

A small shard is searched here, pair by pair: that is done before torch would be imported. `scan`
searches the others.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import UserError
from ..files import whole
from ..vectors.dense import verify_array
from ..vectors.embeddings import check_finite, check_pair, open_embeddings
from .hits import Batch, group_size, write_hits
from .runs import Ids, read_ids, trec_order

SMALL = 2**28  # numbers multiplied, all pairs together: about a second
NARROW = 64  # narrower vectors count as this wide: what pairs take besides
BLOCK = 2**17  # numbers of a block of documents: its float64 products stay in the cache


def search_shard(
    queries: Path | str,
    corpus: Path | str,
    ids: Path | str,
    k: int,
    output: Path | str,
    device: str,
) -> None:
    """Search one shard and write its hits (see `hits`).

    `queries`, `corpus`: float16 or float32 arrays (n, dim) with sidecars. `ids`: corpus.parquet.
    `device`: cpu or cuda, or auto, which needs neither where there is little to do.
    Raises `UserError` for arrays that don't belong together, are damaged or hold NaN.
    """
    if k < 1:
        raise UserError(f"--top-k is {k}; give at least 1")
    vectors, query_meta = open_embeddings(queries)
    documents, meta = open_embeddings(corpus, verify=False)
    check_pair(queries, vectors, query_meta, corpus, documents, meta)
    start, stop = meta.get("rows", [0, len(documents)])
    known = pq.ParquetFile(whole(ids)).metadata.num_rows
    if stop - start != len(documents) or stop > known:
        raise UserError(
            f"{corpus}: {len(documents)} vectors for rows {start} to {stop} of {ids}, "
            f"which has {known}; encode that shard again"
        )
    facts = {
        "rows": [start, stop],
        "k": k,
        "queries": len(vectors),
        "queries_sha256": query_meta["sha256"],
        "corpus_sha256": meta["sha256"],
    }

    @cache
    def shard_ids() -> pa.Array:
        return read_ids(ids, start, stop)

    def ids_of(rows: np.ndarray) -> pa.Array:
        return shard_ids().take(pa.array(rows))

    work = len(vectors) * len(documents) * max(documents.shape[1], NARROW)
    if device == "auto" and work <= SMALL:
        verify_array(corpus, meta)
        check_finite(vectors, queries)
        check_finite(documents, corpus)
        batches = score_all(vectors, documents, k, ids_of)
    else:
        from ..encode import pick_device
        from ..vectors.shard import Shard
        from .scan import scan  # imports torch

        batches = scan(vectors, Shard(corpus, pick_device(device)), k, ids_of, str(queries))
    write_hits(output, ((first, docs + start, scores) for first, docs, scores in batches), facts)


def score_all(queries: np.ndarray, documents: np.ndarray, k: int, ids: Ids) -> Iterator[Batch]:
    """Yield, query group by query group, (first query, rows (g, m), scores (g, m)).

    m = min(k, n) for `documents` (n, dim); `ids` as for `trec_order`.
    """
    n, dim = documents.shape
    found, size, group = min(k, n), max(1, BLOCK // dim), group_size(k)
    for first in range(0, len(queries), group):
        wide = queries[first : first + group].astype(np.float64)
        scores = np.empty((len(wide), n), np.float32)
        for at in range(0, n, size):
            block = np.ascontiguousarray(documents[at : at + size].T, np.float64)
            for row, query in enumerate(wide):
                scores[row, at : at + size] = add_up(block * query[:, None])
        scores += np.float32(0)  # no negative zero
        of_query = np.repeat(np.arange(len(wide)), n)
        rows = np.tile(np.arange(n), len(wide))
        best = trec_order(of_query, scores.ravel(), rows, ids).reshape(len(wide), n)[:, :found]
        yield first, rows[best], scores.ravel()[best]


def add_up(products: np.ndarray) -> np.ndarray:
    """Sums (n) of `products` (dim, n), by halves as `scores.dot` does; overwrites `products`."""
    while (n := len(products)) > 1:
        half = n // 2
        products[:half] += products[half : half * 2]
        if n % 2:
            products[0] += products[-1]
        products = products[:half]
    return products[0]
