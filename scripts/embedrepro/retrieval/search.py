"""Exact top-k search of one shard of a corpus.

The score of a query and a document is defined as the float64 dot product of their stored vectors,
summed in one fixed order and rounded to float32. It depends on nothing but the two vectors, so any
cut into shards, any block size and any device give the same scores and the same order.

Candidates come from fast float32 products f with |f - score| <= e, where
e = (dim + 4) * unit * |query| * max |document|, by the standard bound for an inner product in any
order of summation (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1).
Unit is 2^-24 on a CPU, which rounds to nearest. It is 2^-22 on CUDA, since tensor cores truncate
(Fasi et al., Numerical behavior of NVIDIA tensor cores, PeerJ CS 2021). The k documents with
the highest f all score at least kth - e, where kth is the lowest of their f; so a document with
f < kth - 2e is not among the best k. Everything else is kept and scored again exactly.
"""

from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ..encode import pick_device
from ..errors import UserError
from ..files import load_array, whole
from .candidates import CHUNK, Pool
from .hits import Batch, group_size, write_hits
from .runs import Ids, read_ids
from .scores import Product, score_pairs, score_rows
from .vectors import Shard, not_finite

CPU_SCORES = 2**22  # float32 scores held at a time: 16 MiB stay in the last-level cache
CUDA_SCORES = 2**29
CPU_POOL = 192 * 2**20  # bytes of candidates held at a time


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
    Raises `UserError` for arrays that don't belong together, are damaged or hold NaN.
    """
    if k < 1:
        raise UserError(f"--top-k is {k}; give at least 1")
    device = pick_device(device)
    vectors, query_meta = load_array(queries)
    shard = Shard(corpus, device)
    check_pair(queries, vectors, query_meta, corpus, shard)
    start, stop = shard.meta.get("rows", [0, len(shard)])
    documents = pq.ParquetFile(whole(ids)).metadata.num_rows
    if stop - start != len(shard) or stop > documents:
        raise UserError(
            f"{corpus}: {len(shard)} vectors for rows {start} to {stop} of {ids}, "
            f"which has {documents}; encode that shard again"
        )
    meta = {
        "rows": [start, stop],
        "k": k,
        "queries": len(vectors),
        "queries_sha256": query_meta["sha256"],
        "corpus_sha256": shard.meta["sha256"],
    }

    @cache
    def shard_ids() -> pa.Array:
        return read_ids(ids, start, stop)

    batches = search(vectors, shard, k, lambda rows: shard_ids().take(pa.array(rows)), str(queries))
    write_hits(output, ((first, docs + start, scores) for first, docs, scores in batches), meta)


def check_pair(
    queries: Path | str, vectors: np.ndarray, meta: dict, corpus: Path | str, shard: Shard
) -> None:
    """Refuse query and corpus embeddings that were not made to be compared."""
    if vectors.ndim != 2 or vectors.shape[1] != shard.dim:
        raise UserError(
            f"{queries} has shape {list(vectors.shape)}, {corpus} has "
            f"{shard.dim} dimensions; encode both with the same model and settings"
        )
    for key in ("dtype", "compute_dtype", "model_id"):
        if meta.get(key) != shard.meta.get(key):
            raise UserError(
                f"{queries} has {key} {meta.get(key)}, {corpus} has {shard.meta.get(key)}; "
                "encode both with the same model and settings"
            )


def search(
    queries: np.ndarray, shard: Shard, k: int, ids: Ids, name: str = "queries"
) -> Iterator[Batch]:
    """Yield, query group by query group, (first query, rows (g, m), scores (g, m)).

    `queries` (n, dim) float16 or float32; m = min(k, rows of the shard). Rows count from the
    shard's first. `ids(rows)` gives document ids, asked only where scores tie.
    """
    found = min(k, len(shard))
    capacity = min(len(shard), 4 * found + 1024)
    budget = CPU_POOL if shard.device == "cpu" else torch.cuda.mem_get_info()[0] // 8
    step = group_size(k)
    group = max(step, budget // (capacity * 8) // step * step)
    for first in range(0, len(queries), group):
        part = torch.from_numpy(np.array(queries[first : first + group])).to(shard.device)
        norms = torch.linalg.vector_norm(part, dim=1, dtype=torch.float32)
        bad = (~torch.isfinite(norms)).nonzero()
        if len(bad):
            raise not_finite(name, first + int(bad[0]))
        rows, scores = search_group(part, norms, shard, found, capacity, ids)
        yield first, rows, scores


def search_group(
    queries: torch.Tensor, norms: torch.Tensor, shard: Shard, k: int, capacity: int, ids: Ids
) -> tuple[np.ndarray, np.ndarray]:
    """One pass over the shard with `queries` (g, dim): rows (g, k) int64, scores (g, k) float32."""
    unit = 2.0**-24 if shard.device == "cpu" else 2.0**-22
    error = (shard.dim + 4) * unit * 1.001 * norms
    exact = (lambda q, rows: score_rows(queries, shard, q, rows)) if shard.random_access else None
    pool = Pool(error, k, capacity, exact, ids)
    limit = CPU_SCORES if shard.device == "cpu" else cuda_scores()
    size = max(CHUNK, limit // len(queries) // CHUNK * CHUNK)
    product = Product(queries, min(size, len(shard)))
    for first, block, norm in shard.blocks(size):
        in_block = None
        if exact is None:
            in_block = partial(score_pairs, queries, gather=block.__getitem__)
        pool.offer(product(block), first, norm, in_block)
    return pool.finish()


def cuda_scores() -> int:
    return min(CUDA_SCORES, torch.cuda.mem_get_info()[0] // 128)
