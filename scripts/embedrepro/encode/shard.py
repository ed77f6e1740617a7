"""One shard of a prepared dataset to one `.npy` file with its sidecar."""

import os
import resource
import secrets
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from tqdm import tqdm

from .. import files, shards
from ..errors import UserError

VERSIONS = {"packed": ("torch", "transformers", "tokenizers"), "flagembedding": ("FlagEmbedding",)}


def row_range(texts: Path, shard: int, of: int) -> tuple[int, int]:
    """Rows of shard `shard` (from 0) of `of`; an unsharded file needs no `chars` column."""
    if not texts.is_file():
        raise UserError(f"{texts}: no such file; prepare the dataset first")
    if not 0 <= shard < of:
        raise UserError(f"shard {shard} of {of}: use 0 to {of - 1}")
    if of == 1:
        return 0, pq.ParquetFile(files.whole(texts)).metadata.num_rows
    ends = shards.corpus_bounds(texts, of)
    return int(ends[shard]), int(ends[shard + 1])


def read_texts(path: Path, start: int, stop: int, role: str, title: str) -> Iterator[str]:
    """The texts to encode of rows [start, stop), read as they are asked for."""
    if role == "query":
        for batch in shards.read_rows(path, start, stop, ["text"]):
            yield from batch["text"].to_pylist()
        return
    for batch in shards.read_rows(path, start, stop, ["title", "text"]):
        for heading, text in zip(
            batch["title"].to_pylist(), batch["text"].to_pylist(), strict=True
        ):
            yield shards.passage(heading or "", text, title)


def encode_shard(
    engine: Any,
    texts: Path,
    spec: dict[str, Any],
    role: str,
    shard: int,
    of: int,
    output: Path,
) -> dict[str, Any]:
    """Encode one shard of a Parquet file into `output`; returns the sidecar's own facts.

    Vectors go straight to a temporary file, which gets its name when it is whole. Progress goes to
    stderr. Raises `UserError` for a file, shard or setting that doesn't fit.
    """
    start, stop = row_range(texts, shard, of)
    source = read_texts(texts, start, stop, role, spec.get("title") or "join")
    parts = engine.encode(source, role, spec.get("instruction"))
    began = time.perf_counter()
    totals = {"docs": stop - start, "tokens": 0, "truncated": 0}
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.parent / f"{files.TEMPORARY}{secrets.token_hex(4)}-{output.name[:100]}"
    try:
        shape = (stop - start, engine.facts.dimension)
        with (
            ArrayWriter(temporary, shape, engine.array_dtype) as writer,
            progress(stop - start, f"{texts.stem} {shard + 1}/{of}") as bar,
        ):
            for part in parts:
                writer.put(part.rows, part.vectors)
                totals["tokens"] += part.tokens
                totals["truncated"] += part.truncated
                bar.set_postfix(tokens=totals["tokens"], refresh=False)
                bar.update(len(part.rows))
        meta = totals | {"seconds": round(time.perf_counter() - began, 4)}
        meta |= {"rows": [start, stop]} | describe(engine, role, spec)
        files.seal_array(temporary, output, **meta)
    except BaseException:
        files.remove(temporary)
        raise
    return meta


def progress(total: int, name: str) -> tqdm:
    """A bar on a terminal; elsewhere a line each half minute."""
    quiet = not sys.stderr.isatty()
    return tqdm(total=total, desc=name, unit="doc", mininterval=30 if quiet else 0.5, ascii=quiet)


def describe(engine: Any, role: str, spec: dict[str, Any]) -> dict[str, Any]:
    """What produced the vectors, for the sidecar."""
    import torch

    cuda = engine.device.type == "cuda"
    device = torch.cuda.get_device_name(engine.device) if cuda else "cpu"
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    peak = torch.cuda.max_memory_allocated(engine.device) / 2**20 if cuda else host
    packages = VERSIONS["packed"] + (VERSIONS["flagembedding"] if engine.name != "packed" else ())
    effect = getattr(engine, "fp8_effect", None)
    return ({"fp8_effect": effect} if effect else {}) | {
        "model_id": engine.facts.model_id,
        "engine": engine.name,
        "compute_dtype": engine.compute_dtype,
        "device": device,
        "peak_memory_mb": round(peak, 1),
        "peak_host_memory_mb": round(host, 1),
        "tokens_per_batch": engine.tokens_per_batch,
        "role": role,
        "instruction": spec.get("instruction"),
        "settings": engine.facts.record(),
        "versions": {name: version(name) for name in packages},
    }


class ArrayWriter:
    """A `.npy` file of `shape` and `dtype`, written row by row in any order.

    Written with plain writes, not through a memory map: the pages are the kernel's, so memory
    doesn't grow with the file. On leaving, raises RuntimeError if rows are missing.
    """

    def __init__(self, path: Path, shape: tuple[int, int], dtype: np.dtype) -> None:
        self.dtype = np.dtype(dtype)
        self.width = shape[1] * self.dtype.itemsize
        self.written = np.zeros(shape[0], bool)
        self.file = open(path, "wb")  # noqa: SIM115
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.file, header)
        self.file.flush()
        self.begin = self.file.tell()

    def put(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Write `vectors` (n, width) at `rows` (n,), runs of neighbours at once."""
        order = np.argsort(rows)
        rows = rows[order]
        vectors = np.ascontiguousarray(vectors[order], self.dtype)
        starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
        for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
            place = self.begin + int(rows[start]) * self.width
            _write_all(self.file.fileno(), memoryview(vectors[start:stop]).cast("B"), place)
        self.written[rows] = True

    def __enter__(self) -> "ArrayWriter":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        with self.file:
            if kind is not None:
                return
            if not self.written.all():
                raise RuntimeError(f"row {int(np.argmin(self.written))} was never written")


def _write_all(descriptor: int, data: memoryview, place: int) -> None:
    while data:
        done = os.pwrite(descriptor, data, place)
        data, place = data[done:], place + done
