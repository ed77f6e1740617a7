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

import mmap
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ..encode import pick_device
from ..errors import UserError
from ..files import load_array, verify_array, whole
from .hits import Batch, group_size, write_hits
from .runs import Ids, read_ids, tie_order, trec_order

CPU_SCORES = 2**22  # float32 scores held at a time: 16 MiB stay in the last-level cache
CUDA_SCORES = 2**29
CPU_POOL = 192 * 2**20  # bytes of candidates held at a time
UNDERFLOW = 2.0**-110  # covers products too small for float32, for up to 2^16 dimensions
CHUNK = 64  # neighbouring scores whose maximum is compared with the threshold first
PAIRS = {"cpu": 2**12, "cuda": 2**16}  # pairs scored exactly at a time


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
    queries: Path | str, vectors: np.ndarray, meta: dict, corpus: Path | str, shard: "Shard"
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


class Shard:
    """The stored vectors (n, dim) of one shard, read from disk block by block.

    On a CPU the rows can also be fetched in any order through a memory map. On CUDA they can when
    all of them fit in half of the free memory: then the first pass leaves them there.
    """

    def __init__(self, path: Path | str, device: str):
        array, self.meta = load_array(path, verify=False)
        if array.ndim != 2 or array.dtype not in (np.float16, np.float32):
            raise UserError(f"{path}: {array.dtype}{list(array.shape)} is no matrix of embeddings")
        self.path, self.device = path, device
        self.rows, self.dim = array.shape
        self.dtype = torch.float16 if array.dtype == np.float16 else torch.float32
        self.offset = array.offset
        self.verified = False
        self.resident: torch.Tensor | None = None  # (n, dim) on the device
        self.norm: float | None = None  # the largest of all rows, once all were read
        if device == "cpu":
            self.random_access = True
        else:
            self.random_access = array.nbytes <= torch.cuda.mem_get_info()[0] // 2
        self._mapped: np.ndarray | None = None

    def __len__(self) -> int:
        return self.rows

    def blocks(self, size: int) -> Iterator[tuple[int, torch.Tensor, float]]:
        """Yield (first row, up to `size` rows on the device, their largest norm), in order.

        On a CPU rows come widened to float32. A yielded tensor is overwritten later, so use it
        before asking for the next. The first pass checks the file's digests meanwhile.
        """
        if self.resident is not None and self.norm is not None:
            for first in range(0, self.rows, size):
                yield first, self.resident[first : first + size], self.norm
            return
        if self.device == "cuda" and self.random_access:
            self.resident = torch.empty((self.rows, self.dim), dtype=self.dtype, device="cuda")
        largest = 0.0
        with ThreadPoolExecutor(1) as pool:
            check = None if self.verified else pool.submit(verify_array, self.path, self.meta)
            for first, host, copied in self._stream(size):
                block = self._upload(first, host, copied)
                norm = self._largest_norm(first, block)
                largest = max(largest, norm)
                yield first, block, norm
            if check:
                check.result()
        self.norm, self.verified = largest, True

    def _upload(
        self, first: int, host: torch.Tensor, copied: "torch.cuda.Event | None"
    ) -> torch.Tensor:
        if copied is None:
            return host.float()
        if self.resident is None:
            block = host.to("cuda", non_blocking=True)
        else:
            block = self.resident[first : first + len(host)].copy_(host, non_blocking=True)
        copied.record()
        return block

    def _largest_norm(self, first: int, block: torch.Tensor) -> float:
        norms = torch.linalg.vector_norm(block, dim=1, dtype=torch.float32)
        largest = float(norms.max())
        if not np.isfinite(largest):
            row = first + int((~torch.isfinite(norms)).nonzero()[0])
            raise not_finite(self.path, row)
        return largest

    def _stream(self, size: int) -> Iterator[tuple[int, torch.Tensor, "torch.cuda.Event | None"]]:
        """Read ahead into three buffers: one in use, one ready, one being read."""
        cuda = self.device == "cuda"
        shape = (min(size, self.rows), self.dim)
        buffers = [torch.empty(shape, dtype=self.dtype, pin_memory=cuda) for _ in range(3)]
        copied = [torch.cuda.Event() if cuda else None for _ in range(3)]
        starts = range(0, self.rows, size)
        with open(self.path, "rb", buffering=0) as file, ThreadPoolExecutor(1) as reader:
            file.seek(self.offset)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)

            def read(number: int) -> torch.Tensor:
                if cuda and number >= 3:
                    copied[number % 3].synchronize()
                block = buffers[number % 3][: min(size, self.rows - starts[number])]
                read_whole(file, memoryview(block.numpy()).cast("B"), self.path)
                return block

            pending = [reader.submit(read, number) for number in range(min(2, len(starts)))]
            for number, first in enumerate(starts):
                yield first, pending.pop(0).result(), copied[number % 3]
                if number + 2 < len(starts):
                    pending.append(reader.submit(read, number + 2))

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """The stored vectors of `rows`, sorted upwards (CPU) or in any order (CUDA)."""
        if self.resident is not None:
            return self.resident[rows]
        if self._mapped is None:
            with open(self.path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            kind = np.float16 if self.dtype == torch.float16 else np.float32
            flat = np.frombuffer(self._map, kind, self.rows * self.dim, self.offset)
            self._mapped = flat.reshape(self.rows, self.dim)
        found = torch.from_numpy(self._mapped[rows.numpy()])
        self._map.madvise(mmap.MADV_DONTNEED)  # give the pages back: memory stays bounded
        return found


def read_whole(file, view: memoryview, path: Path | str) -> None:
    while view:
        count = file.readinto(view)
        if not count:
            raise UserError(f"{path}: ends early; delete it and run again")
        view = view[count:]


def not_finite(path: Path | str, row: int) -> UserError:
    return UserError(
        f"{path}: row {row} holds NaN, infinity or values too large for float32; "
        "check the model's dtype and encode again"
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


class Product:
    """Products of fixed queries with blocks, in float32 precision or better, into one buffer.

    Tensor cores multiply float16 exactly and add in float32. Blocks come widened on a CPU.
    """

    def __init__(self, queries: torch.Tensor, size: int):
        torch.set_float32_matmul_precision("highest")
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        self.half = queries.is_cuda and queries.dtype == torch.float16
        self.queries = queries if self.half else queries.float()
        self.scores = torch.empty(len(queries) * size, dtype=torch.float32, device=queries.device)

    def __call__(self, block: torch.Tensor) -> torch.Tensor:
        """Scores (g, rows of the block), overwritten by the next call."""
        shape = (len(self.queries), len(block))
        out = self.scores[: shape[0] * shape[1]].view(shape)
        if self.half:
            return torch.mm(self.queries, block.T, out_dtype=torch.float32, out=out)
        return torch.mm(self.queries, block.T, out=out)


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
    if a.dtype == torch.float16:
        x = (a.float() * b.float()).double()
    else:
        x = a.double() * b.double()
    while (n := x.shape[1]) > 1:
        y = x[:, : n // 2] + x[:, n // 2 : n // 2 * 2]
        if n % 2:
            y[:, 0] += x[:, -1]
        x = y
    return x[:, 0].float() + 0.0  # no negative zero


class Pool:
    """The candidates of g queries while blocks of scores pass by.

    values, rows (g, capacity): approximate score and shard row; the first count[q] entries are in
    use, the rest of values is -inf. kth (g): a lower bound of the k-th best approximate score of
    all blocks offered so far.
    """

    def __init__(
        self, error: torch.Tensor, k: int, capacity: int, exact: Callable | None, ids: Ids
    ):
        """`error` (g): bound of a score's error for documents of norm 1.

        `exact(q, rows)` gives the exact scores of any pairs; None when only the block at hand can
        be read, then candidates are scored exactly as they come in.
        """
        self.error, self.k, self.exact, self.ids = error, k, exact, ids
        shape, device = (len(error), capacity), error.device
        self.values = torch.full(shape, -torch.inf, device=device)
        self.rows = torch.zeros(shape, dtype=torch.int32, device=device)
        self.count = torch.zeros(len(error), dtype=torch.int64, device=device)
        self.kth = torch.full((len(error),), -torch.inf, device=device)
        self.norm = 0.0

    def threshold(self) -> torch.Tensor:
        return self.kth - 2 * (self.error * self.norm + UNDERFLOW)

    def offer(
        self, scores: torch.Tensor, first: int, norm: float, in_block: Callable | None
    ) -> None:
        """Take the candidates among `scores` (g, block) of the rows from `first` on."""
        size = scores.shape[1]
        self.norm = max(self.norm, norm)
        if first == 0:
            self._raise(scores)
        pairs = above(scores, self.threshold())
        if len(pairs) > len(scores) * self.k:  # a block of much better documents
            self._raise(scores)
            pairs = above(scores, self.threshold())
        q, column = pairs // size, pairs % size
        value = in_block(q, column) if in_block else scores.view(-1)[pairs]
        rows = (column + first).int()
        if self._overfull(q).any():
            self._compact()
            keep = value >= self.threshold()[q]
            q, rows, value = q[keep], rows[keep], value[keep]
        for query in self._overfull(q).nonzero().ravel().tolist():
            mine = q == query
            self._cut(query, rows[mine], value[mine])
            q, rows, value = q[~mine], rows[~mine], value[~mine]
        self._append(q, rows, value)

    def _raise(self, scores: torch.Tensor) -> None:
        """Raise kth by the block's own k-th best."""
        if scores.shape[1] >= self.k:
            kth = scores.topk(self.k, sorted=False).values.amin(1)
            self.kth = torch.maximum(self.kth, kth)

    def _overfull(self, q: torch.Tensor) -> torch.Tensor:
        coming = torch.bincount(q, minlength=len(self.count))
        return self.count + coming > self.values.shape[1]

    def _append(self, q: torch.Tensor, rows: torch.Tensor, value: torch.Tensor) -> None:
        """Add pairs sorted by `q`."""
        coming = torch.bincount(q, minlength=len(self.count))
        start = self.count - (coming.cumsum(0) - coming)
        place = start[q] + torch.arange(len(q), device=q.device) + q * self.values.shape[1]
        self.values.view(-1).index_copy_(0, place, value)
        self.rows.view(-1).index_copy_(0, place, rows)
        self.count += coming

    def _compact(self) -> None:
        """Update kth and drop what can't be among the best k any more."""
        kth = self.values.topk(self.k, sorted=False).values.amin(1)
        self.kth = torch.maximum(self.kth, kth)
        q, rows, value = self._candidates()
        self.values.fill_(-torch.inf)
        self.count.zero_()
        self._append(q, rows, value)

    def _candidates(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        floor = self.threshold().clamp(min=torch.finfo(torch.float32).min)
        pairs = true_positions(self.values >= floor[:, None])
        q = pairs // self.values.shape[1]
        return q, self.rows.view(-1)[pairs], self.values.view(-1)[pairs]

    def _cut(self, query: int, rows: torch.Tensor, value: torch.Tensor) -> None:
        """More near-ties than fit: keep exactly the best k of one query, by score and id."""
        count = int(self.count[query])
        rows = torch.cat([self.rows[query, :count], rows])
        value = torch.cat([self.values[query, :count], value])
        if self.exact:
            value = self.exact(torch.full_like(rows, query, dtype=torch.int64), rows.long())
        zeros = np.zeros(len(rows), dtype=np.int8)
        order = trec_order(zeros, value.cpu().numpy(), rows.cpu().numpy(), self.ids)
        best = torch.from_numpy(order[: self.k]).to(rows.device)
        self.values[query] = -torch.inf
        self.values[query, : self.k] = value[best]
        self.rows[query, : self.k] = rows[best]
        self.count[query] = self.k
        self.kth[query] = torch.maximum(self.kth[query], value[best[-1]])

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """The best k of each query: rows (g, k) int64, exact scores (g, k) float32, in order."""
        self._compact()
        q, rows, value = self._candidates()
        if self.exact:
            value = self.exact(q, rows.long())
        key, order = sort_key(q, value).sort()
        same = key[1:] == key[:-1]
        edge = torch.zeros(1, dtype=torch.bool, device=same.device)
        tied = true_positions(torch.cat([edge, same]) | torch.cat([same, edge]))
        if len(tied):
            docs = rows[order[tied]].cpu().numpy()
            by_id = torch.from_numpy(tie_order(key[tied].cpu().numpy(), docs, self.ids))
            order[tied] = order[tied[by_id.to(tied.device)]]
        start = self.count.cumsum(0) - self.count
        best = order[start[:, None] + torch.arange(self.k, device=order.device)]
        return rows[best].cpu().numpy().astype(np.int64), value[best].cpu().numpy()


def sort_key(q: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
    """`runs.sort_key` of tensors: int64, upwards by query, then downwards by score."""
    bits = (score + 0.0).view(torch.int32)
    upward = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (q << 32) + (0x7FFFFFFF - upward.long())


def above(scores: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Flat positions of the scores (g, n) that reach their row's threshold, in order.

    Only chunks whose largest score does are looked into: a maximum is cheaper than a mask.
    """
    width = CHUNK if scores.shape[1] % CHUNK == 0 else 1
    chunks = scores.view(len(scores), -1, width)
    hot = true_positions(chunks.amax(2) >= threshold[:, None])
    limit = threshold[hot // chunks.shape[1], None]
    inner = true_positions(chunks.view(-1, width)[hot] >= limit)
    return hot[inner // width] * width + inner % width


def true_positions(mask: torch.Tensor) -> torch.Tensor:
    """Flat positions of what is true, in order."""
    if mask.is_cuda:
        return mask.view(-1).nonzero().ravel()
    return torch.from_numpy(np.flatnonzero(mask.numpy()))  # five times as fast as torch's
