"""Exact MaxSim over made-up passages: seconds and memory, on a GPU or a CPU.

    python tests/benchmarks/maxsim.py --passages 1000000 --folder /scratch/maxsim
    python tests/benchmarks/maxsim.py --passages 2000 --queries 4 --device cpu

Passages are random unit vectors in float16 (80 of 128 numbers each), queries 32 such vectors in
float32. `--check N` holds the first N queries' scores against brute force in float64.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import torch
from embedrepro.encode import pick_device
from embedrepro.search import maxsim
from embedrepro.vectors.multivector import TokenVectors, TokenWriter

BLOCK = 4096  # passages made at a time


def make(path: Path, rows: int, tokens: int, dim: int, dtype: type, seed: int) -> None:
    """A piece of `rows` texts of about `tokens` random unit vectors each."""
    spans = [(start, min(BLOCK, rows - start)) for start in range(0, rows, BLOCK)]

    def draw(span: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        dice = np.random.default_rng([seed, span[0]])
        lengths = dice.integers(tokens // 2, tokens + tokens // 2 + 1, span[1])
        vectors = dice.standard_normal((int(lengths.sum()), dim), np.float32)
        vectors /= np.linalg.norm(vectors, axis=1)[:, None]
        return lengths, vectors.astype(dtype)

    workers = os.cpu_count() or 1
    with TokenWriter(path, rows, dim, np.dtype(dtype)) as writer, ThreadPoolExecutor() as pool:
        for first in range(0, len(spans), workers):  # so many blocks in memory at a time
            group = spans[first : first + workers]
            for (start, count), (lengths, vectors) in zip(
                group, pool.map(draw, group), strict=True
            ):
                writer.put(np.arange(start, start + count), lengths, vectors)
        writer.seal(model_id="made-up")


def check(queries: TokenVectors, shard: TokenVectors, best: list, count: int) -> float:
    """The largest difference of a score found to float64's, over the first `count` queries."""
    worst = 0.0
    for query in range(count):
        rows, scores = best[query]
        for row, score in list(zip(rows.tolist(), scores.tolist(), strict=True))[:20]:
            asked = queries.block(query, query + 1).astype(float)
            products = asked @ shard.block(row, row + 1).astype(float).T
            worst = max(worst, abs(float(products.max(1).sum()) - score))
    return worst


def main() -> None:
    """Make what is missing, search twice, print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--tokens", type=int, default=80)
    parser.add_argument("--dimension", type=int, default=128)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--query-tokens", type=int, default=32)
    parser.add_argument("--top-k", type=int, default=100)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--folder", type=Path, help="where vectors are made, and kept")
    parser.add_argument("--check", type=int, default=2, metavar="N")
    given = parser.parse_args()
    device = pick_device(given.device)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        corpus, asked = folder / f"c{given.passages}.npy", folder / f"q{given.queries}.npy"
        began = time.perf_counter()
        if not corpus.is_file():
            make(corpus, given.passages, given.tokens, given.dimension, np.float16, 0)
        make(asked, given.queries, given.query_tokens, given.dimension, np.float32, 1)
        made = time.perf_counter() - began
        report(given, device, TokenVectors(asked), TokenVectors(corpus, verify=False), made)


def report(
    given: argparse.Namespace,
    device: str,
    queries: TokenVectors,
    shard: TokenVectors,
    made: float,
) -> None:
    ids = pa.array([f"d{i}" for i in range(shard.rows)], pa.large_string())

    def ids_of(rows: np.ndarray) -> pa.Array:
        return ids.take(pa.array(rows))

    seconds = []
    for _ in range(2):  # the first also reads and checks the file's digests
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        batches = list(maxsim.scan(queries, shard, given.top_k, ids_of, device))
        seconds.append(round(time.perf_counter() - began, 2))
    best = [hit for _, rows, scores in batches for hit in zip(rows, scores, strict=True)]
    cuda = device == "cuda"
    found = {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "passages": shard.rows,
        "token_vectors": int(shard.offsets[-1]),
        "gigabytes": round(int(shard.offsets[-1]) * shard.fields["tokens"].bytes / 1e9, 2),
        "queries": queries.rows,
        "query_vectors": int(queries.offsets[-1]),
        "top_k": given.top_k,
        "seconds_making": round(made, 1),
        "seconds_first": seconds[0],
        "seconds_second": seconds[1],
        "queries_per_second": round(queries.rows / seconds[1], 2),
        "peak_gpu_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else None,
        "peak_host_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "largest_error": check(queries, shard, best, min(given.check, queries.rows)),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
