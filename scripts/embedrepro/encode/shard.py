"""One shard of a prepared dataset to one `.npy` file with its sidecar."""

import resource
import secrets
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from tqdm import tqdm

from .. import files, shards
from ..errors import UserError
from ..vectors.dense import ArrayWriter, seal_array

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
        seal_array(temporary, output, **meta)
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
