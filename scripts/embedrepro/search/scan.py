"""One pass over a shard for the best k of each query: fast products, a bound, exact scores.

Candidates come from fast float32 products f with |f - score| <= e, where
e = (dim + 4) * unit * |query| * max |document|, by the standard bound for an inner product in any
order of summation (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1).
Unit is 2^-24 on a CPU, which rounds to nearest. It is 2^-22 on CUDA, since tensor cores truncate
(Fasi et al., Numerical behavior of NVIDIA tensor cores, PeerJ CS 2021). The k documents with
the highest f all score at least kth - e, where kth is the lowest of their f; so a document with
f < kth - 2e is not among the best k. Everything else is kept and scored again exactly. Where
queries are rounded for the products, e grows by |query - rounded query| * max |document|
(Cauchy-Schwarz).
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from ..vectors.embeddings import not_finite
from ..vectors.shard import Shard
from .candidates import CHUNK, Pool
from .hits import Batch, group_size
from .runs import Ids
from .scores import Product, score_pairs, score_rows

CPU_SCORES = 2**22  # float32 scores held at a time: 16 MiB stay in the last-level cache
CUDA_SCORES = 2**29
CPU_POOL = 192 * 2**20  # bytes of candidates held at a time


def scan(
    queries: np.ndarray, shard: Shard, k: int, ids: Ids, name: str = "queries"
) -> Iterator[Batch]:
    """Yield, query group by query group, (first query, rows (g, m), scores (g, m)).

    `queries` (n, dim) float16 or float32, whichever the shard is; m = min(k, rows of the shard).
    Rows count from the shard's first. `ids(rows)` gives document ids, asked only where scores tie.
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
        rows, scores = scan_group(part, norms, shard, found, capacity, ids)
        yield first, rows, scores


def scan_group(
    queries: torch.Tensor, norms: torch.Tensor, shard: Shard, k: int, capacity: int, ids: Ids
) -> tuple[np.ndarray, np.ndarray]:
    """One pass over the shard with `queries` (g, dim): rows (g, k) int64, scores (g, k) float32."""
    unit = 2.0**-24 if shard.device == "cpu" else 2.0**-22
    limit = CPU_SCORES if shard.device == "cpu" else cuda_scores()
    size = max(CHUNK, limit // len(queries) // CHUNK * CHUNK)
    product = Product(queries, min(size, len(shard)), shard.dtype)
    lost = product.left_out
    error = (shard.dim + 4) * unit * 1.001 * (norms + lost) + lost
    exact = (lambda q, rows: score_rows(queries, shard, q, rows)) if shard.random_access else None
    pool = Pool(error, k, capacity, exact, ids)
    for first, block, norm in shard.blocks(size):
        in_block = None
        if exact is None:
            in_block = partial(score_pairs, queries, gather=block.__getitem__)
        pool.offer(product(block), first, norm, in_block)
    return pool.finish()


def cuda_scores() -> int:
    return min(CUDA_SCORES, torch.cuda.mem_get_info()[0] // 128)
