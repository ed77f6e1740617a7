"""Scores of queries and documents: fast float32 products, and the exact score of a pair."""

from collections.abc import Callable

import numpy as np
import torch

from ..vectors.shard import Shard
from .exact import of_norm_1

PAIRS = {"cpu": 2**12, "cuda": 2**16}  # pairs scored exactly at a time


class Product:
    """Products of fixed queries with blocks, in float32 precision or better, into one buffer.

    Tensor cores multiply float16 exactly and add in float32: on CUDA queries of float16 documents
    are rounded to float16, and `left_out` (g) is the norm of what each loses by that. Blocks come
    widened on a CPU.
    """

    def __init__(self, queries: torch.Tensor, size: int, documents: torch.dtype):
        torch.set_float32_matmul_precision("highest")
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        self.half = queries.is_cuda and documents == torch.float16
        used = queries.half() if self.half else queries.float()
        if not torch.isfinite(used).all():
            self.half, used = False, queries.float()
        lost = torch.linalg.vector_norm(queries.double() - used.double(), dim=1)
        self.queries, self.left_out = used, lost.float() * 1.001
        self.scores = torch.empty(len(queries) * size, dtype=torch.float32, device=queries.device)

    def __call__(self, block: torch.Tensor) -> torch.Tensor:
        """Scores (g, rows of the block), overwritten by the next call."""
        shape = (len(self.queries), len(block))
        out = self.scores[: shape[0] * shape[1]].view(shape)
        if self.half:
            return torch.mm(self.queries, block.T, out_dtype=torch.float32, out=out)
        return torch.mm(self.queries, block.float().T, out=out)


class TensorScorer:
    """`refine.Scorer` on a device, which the queries are sent to once."""

    def __init__(self, queries: np.ndarray, device: str):
        self.device = device
        self.queries = self._sent(np.array(queries))  # a copy: they may be mapped from a file
        self.unit = self._sent(of_norm_1(queries))

    def largest_product(self, documents: np.ndarray) -> float:
        torch.set_float32_matmul_precision("highest")
        found = self.unit @ self._sent(documents).T
        return float(found.abs().max()) if found.numel() else 0.0

    def pairs(self, documents: np.ndarray, query: np.ndarray, row: np.ndarray) -> np.ndarray:
        held, q, rows = map(self._sent, (documents, query, row))
        scores: np.ndarray = score_pairs(self.queries, q, rows, held.__getitem__).cpu().numpy()
        return scores

    def _sent(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)


def score_rows(
    queries: torch.Tensor, shard: Shard, q: torch.Tensor, rows: torch.Tensor
) -> torch.Tensor:
    """Exact scores of pairs (query `q`, shard row), fetched in the order of the rows."""
    order = rows.argsort()
    scores = torch.empty(len(q), dtype=torch.float32, device=q.device)
    scores[order] = score_pairs(queries, q[order], rows[order], shard.gather)
    return scores


def score_pairs(
    queries: torch.Tensor, q: torch.Tensor, rows: torch.Tensor, gather: Callable
) -> torch.Tensor:
    step = PAIRS[queries.device.type]
    scores = torch.empty(len(q), dtype=torch.float32, device=queries.device)
    for at in range(0, len(q), step):
        part = slice(at, at + step)
        scores[part] = dot(queries[q[part]], gather(rows[part]))
    return scores


def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The score: row-wise float64 dot products of `a` and `b` (n, dim), rounded to float32.

    Products of float32 values are exact in float64, those of float16 values even in float32. They
    are added by halves, always in the same order and without fused multiply-add, so every device
    gives the same bits.
    """
    both_half = a.dtype == b.dtype == torch.float16
    x = a.float() * b.float() if both_half else a.double() * b.double()
    while (n := x.shape[1]) > 1:
        y = x[:, : n // 2].double()  # of float32 a copy, else what is overwritten
        y += x[:, n // 2 : n // 2 * 2]
        if n % 2:
            y[:, 0] += x[:, -1]
        x = y
    return x[:, 0].float() + 0.0  # no negative zero
