"""Speed and memory of exact search, beside the machine's own matrix products, faiss and the disk.

    python tests/benchmarks/search.py [--rows 2000000]
    python tests/benchmarks/search.py --device cuda --rows 8841823 --dim 1536 --queries 6980

On a CPU each measurement is a process of its own, and they take turns; faiss's time is its search
alone, ours includes reading, checking and widening the file. On CUDA the same file is searched
resident and streamed, and both are held against float64. Ratios come last.
"""

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import pyarrow as pa  # noqa: E402
from embedrepro.search import scan  # noqa: E402
from embedrepro.search.scores import Product  # noqa: E402
from embedrepro.vectors import shard as vectors  # noqa: E402
from embedrepro.vectors.dense import seal_array  # noqa: E402

PIECE = 2**16  # rows made, or read, at a time


def unit_vectors(rows: int, dim: int, seed: int, device: str) -> torch.Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    vectors = torch.randn(rows, dim, generator=generator, device=device)
    return torch.nn.functional.normalize(vectors).half()


def make_corpus(path: Path, rows: int, dim: int, device: str) -> None:
    """Random unit vectors in float16 with their sidecar."""
    header = {"descr": "<f2", "fortran_order": False, "shape": (rows, dim)}
    temporary = path.with_suffix(".part")
    with open(temporary, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for first in range(0, rows, PIECE):
            unit_vectors(min(PIECE, rows - first), dim, first, device).cpu().numpy().tofile(file)
        file.flush()
        os.fsync(file.fileno())
    seal_array(temporary, path, rows=[0, rows])


def ids(rows: np.ndarray) -> pa.Array:
    return pa.array([f"{row:08d}" for row in rows], pa.large_string())


def seconds(function, device: str = "cpu") -> float:
    start = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def products(rows: int, dim: int, queries: torch.Tensor, device: str) -> float:
    """Seconds of the bare products of all queries with `rows` rows, at the best block size."""
    best = float("inf")
    for size in (2**12, 2**14) if device == "cpu" else (2**15, 2**16):
        block = unit_vectors(size, dim, 1, device)
        product = Product(queries, size, block.dtype)
        block = block.float() if device == "cpu" else block
        times = [seconds(lambda: product(block), device) for _ in range(7)]  # noqa: B023
        best = min(best, statistics.median(times[2:]) * rows / size)
    return best


def ours(path: Path, queries: torch.Tensor, k: int) -> float:
    shard = vectors.Shard(path, "cpu")
    return seconds(lambda: list(scan.scan(queries.numpy(), shard, k, ids)))


def faiss_flat(path: Path, queries: torch.Tensor, k: int) -> float:
    import faiss

    corpus = np.load(path, mmap_mode="r")
    index = faiss.IndexFlatIP(corpus.shape[1])
    for first in range(0, len(corpus), PIECE):
        index.add(corpus[first : first + PIECE].astype(np.float32))
    wide = queries.float().numpy()
    return seconds(lambda: index.search(wide, k))


def one(what: str, path: Path, args: argparse.Namespace) -> None:
    """Run one measurement and print it as JSON."""
    queries = unit_vectors(args.queries, args.dim, -1, "cpu")
    if what == "products":
        took = products(args.rows, args.dim, queries, "cpu")
    else:
        took = {"ours": ours, "faiss": faiss_flat}[what](path, queries, args.k)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(json.dumps({"seconds": took, "peak_mb": peak}))


def compare_on_cpu(path: Path, args: argparse.Namespace) -> None:
    make_corpus(path, args.rows, args.dim, "cpu")
    found: dict[str, list[dict]] = {"products": [], "ours": [], "faiss": []}
    for _ in range(args.rounds):
        for what, measured in found.items():
            command = [sys.executable, __file__, "--one", what, "--folder", str(path.parent)]
            command += [
                f"--{name}={getattr(args, name)}" for name in ("rows", "dim", "queries", "k")
            ]
            result = subprocess.run(command, check=True, capture_output=True, text=True)
            measured.append(json.loads(result.stdout.splitlines()[-1]))
            print(f"{what}: {measured[-1]['seconds']:.2f} s, {measured[-1]['peak_mb']:.0f} MB")
    times = {what: statistics.median(m["seconds"] for m in found[what]) for what in found}
    print(f"{args.rows} x {args.dim} float16, {args.queries} queries, top {args.k}, medians:")
    print(", ".join(f"{what} {took:.2f} s" for what, took in times.items()))
    print(f"peak memory: {max(m['peak_mb'] for m in found['ours']):.0f} MB (target 1000)")
    print(f"ours / products: {times['ours'] / times['products']:.2f} (target 1.5)")
    print(f"faiss / ours: {times['faiss'] / times['ours']:.2f} (target 1.4)")


def forget(path: Path) -> None:
    """Drop the file from the page cache, so that the next read comes from the disk."""
    os.sync()
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_all(path: Path) -> None:
    buffer = memoryview(bytearray(2**26))
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def check_against_float64(path: Path, queries: torch.Tensor, k: int, batches, device: str) -> None:
    """The first queries' ranking from float64 products, which are exact for these vectors."""
    corpus = np.load(path, mmap_mode="r")
    wide = queries.to(device).double()
    scores = torch.cat(
        [
            wide @ torch.from_numpy(corpus[first : first + PIECE].copy()).to(device).double().T
            for first in range(0, len(corpus), PIECE)
        ],
        dim=1,
    ).float()
    _, rows, values = batches[0]
    for query, row in enumerate(scores.cpu().numpy()):
        best = np.lexsort((-np.arange(len(row)), -row))[:k]
        assert (rows[query] == best).all() and (values[query] == row[best]).all(), query


def measure_on_device(path: Path, args: argparse.Namespace) -> None:
    """Resident and streamed search; runs on a CPU too, to try the script."""
    device = args.device
    took = seconds(lambda: make_corpus(path, args.rows, args.dim, device))
    size = path.stat().st_size / 1e9
    print(f"made {size:.1f} GB in {took:.1f} s", flush=True)
    queries = unit_vectors(args.queries, args.dim, 2**40, device).cpu()
    forget(path)
    disk = seconds(lambda: read_all(path))
    print(f"disk: {size / disk:.2f} GB/s", flush=True)
    data = bytes(2**28)
    print(f"sha256: {0.268 / seconds(lambda: hashlib.sha256(data)):.2f} GB/s", flush=True)
    streamed = vectors.Shard(path, device)
    streamed.random_access = False
    found = {}

    def run(shard: vectors.Shard, name: str) -> None:
        found[name] = list(scan.scan(queries.numpy(), shard, args.k, ids))

    forget(path)
    stream = seconds(lambda: run(streamed, "streamed"), device)
    print(f"streamed from disk {stream:.2f} s", flush=True)
    cached = seconds(lambda: run(streamed, "again"), device)
    print(f"streamed from memory, not hashed {cached:.2f} s", flush=True)
    resident = vectors.Shard(path, device)
    first = seconds(lambda: run(resident, "resident"), device)
    print(f"first pass, upload included {first:.2f} s", flush=True)
    times = [seconds(lambda: run(resident, "resident"), device) for _ in range(3)]
    bare = products(args.rows, args.dim, queries.to(device), device)
    for (_, rows, scores), (_, rows2, scores2) in zip(*list(found.values())[::2], strict=True):
        assert (rows == rows2).all() and (scores == scores2).all()
    check_against_float64(path, queries[:4], args.k, found["resident"], device)
    print(f"{args.rows} x {args.dim} float16, {args.queries} queries, top {args.k}:")
    print("streamed, resident and float64 agree in every row and score")
    print(f"resident {', '.join(f'{t:.3f}' for t in times)} s (target 1.5); products {bare:.3f} s")
    print(f"streamed / disk rate: {disk / stream:.2f} (target 0.80)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--k", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--try-cuda-path", action="store_true", help="its steps, on the CPU")
    parser.add_argument("--folder", help="where the vectors go (default: a temporary folder)")
    parser.add_argument("--one", choices=["ours", "products", "faiss"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        if args.one:
            one(args.one, Path(args.folder) / "corpus.npy", args)
        elif args.device == "cuda" or args.try_cuda_path:
            measure_on_device(Path(folder) / "corpus.npy", args)
        else:
            compare_on_cpu(Path(folder) / "corpus.npy", args)


if __name__ == "__main__":
    main()
