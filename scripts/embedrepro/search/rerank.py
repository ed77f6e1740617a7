"""Reranking: a cross-encoder scores the top of a run again, sharded by query.

Two engines: `cross-encoder`, sentence-transformers' CrossEncoder, and FlagEmbedding's four classes
of rerankers under its own names. Queries are scored in chunks of 32 counted from the run's first
query, and shards are cut between chunks, so that each batch holds the same pairs, and gives the
same scores, for any number of shards.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from .. import shards
from ..errors import UserError
from ..files import digest, read_json, sealed, whole
from ..schema import over_defaults
from ..startup import uncollected
from .runs import Ranking, iter_run, ranked

FLAG_CLASSES = (
    "encoder-only-base",
    "decoder-only-base",
    "decoder-only-layerwise",
    "decoder-only-lightweight",
)
DEFAULTS = {
    "engine": "cross-encoder",
    "depth": 100,  # documents of each query to score
    "max_length": 512,
    "batch_size": 32,
    "dtype": "float32",  # float16, bfloat16 on a GPU
    "trust_remote_code": False,
    "options": {},  # further arguments of FlagEmbedding's class: prompt, cutoff_layers, ...
}
CHOICES = {
    "engine": ("cross-encoder", *FLAG_CLASSES),
    "dtype": ("float32", "float16", "bfloat16"),
}
CHUNK = 32  # queries
META = b"embed-repro"
SCHEMA = pa.schema([("query", pa.string()), ("doc", pa.string()), ("score", pa.float32())])
Score = Callable[[list[tuple[str, str]]], Sequence[float]]  # (query, passage) pairs to scores


def read_spec(spec: dict[str, Any]) -> dict[str, Any]:
    """`spec` over DEFAULTS; raises `UserError` naming an unknown key or value."""
    settings = over_defaults(spec, DEFAULTS, CHOICES, "rerank")
    if settings["engine"] == "encoder-only-base" and settings["dtype"] == "bfloat16":
        raise UserError("rerank: FlagEmbedding's encoder-only-base knows no bfloat16; use float16")
    return settings


@uncollected()
def load_reranker(model: Path | str, settings: dict[str, Any], device: str) -> Score:
    """Load a reranker from a local folder on one device ("cpu" or "cuda").

    Scores are raw logits: a sigmoid keeps their order, but where it saturates it makes ties.
    """
    if settings["engine"] == "cross-encoder":
        return _load_cross_encoder(str(model), settings, device)
    from FlagEmbedding import FlagAutoReranker

    precision = {"use_fp16": settings["dtype"] == "float16"}
    if settings["engine"] != "encoder-only-base":
        precision["use_bf16"] = settings["dtype"] == "bfloat16"
    reranker = FlagAutoReranker.from_finetuned(
        str(model),
        model_class=settings["engine"],
        trust_remote_code=settings["trust_remote_code"],
        devices=[device],
        batch_size=settings["batch_size"],
        max_length=settings["max_length"],
        **precision,
        **settings["options"],
    )
    return reranker.compute_score


def _load_cross_encoder(model: str, settings: dict[str, Any], device: str) -> Score:
    import torch
    from sentence_transformers import CrossEncoder

    encoder = CrossEncoder(
        model,
        max_length=settings["max_length"],
        device=device,
        local_files_only=True,
        trust_remote_code=settings["trust_remote_code"],
        model_kwargs={"dtype": settings["dtype"]},
    )
    return lambda pairs: encoder.predict(
        pairs,
        batch_size=settings["batch_size"],
        activation_fn=torch.nn.Identity(),
        show_progress_bar=False,
    )


def rerank_shard(
    run: Path | str,
    dataset: Path | str,
    split: str,
    model: Path | str,
    spec: dict[str, Any],
    shard: tuple[int, int],
    output: Path | str,
    device: str,
) -> None:
    """Score shard `(i, n)` of a run's queries with the reranker in folder `model`.

    `dataset` is a prepared folder. Writes Parquet with the columns query, doc (ids) and score
    (float32). Raises `UserError` for a query or document of the run that the dataset lacks.
    """
    settings = read_spec(spec)
    rankings = [(query, docs[: settings["depth"]]) for query, docs, _ in iter_run(run)]
    start, stop = shard_bounds(len(rankings), *shard)
    mine = rankings[start:stop]
    queries, passages = read_pairs(Path(dataset), split, mine)
    score = load_reranker(model, settings, device)
    facts = {"settings": settings, "run": digest(rankings), "queries": len(rankings)}
    facts |= {"rows": [start, stop], "model": Path(model).name}
    schema = SCHEMA.with_metadata({META: json.dumps(facts, sort_keys=True).encode()})
    with sealed(output) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for at in tqdm(range(0, len(mine), CHUNK), desc="rerank", unit=f" x {CHUNK} queries"):
            ids = [(query, doc) for query, docs in mine[at : at + CHUNK] for doc in docs]
            scores = np.asarray(score([(queries[q], passages[d]) for q, d in ids]), np.float32)
            if scores.shape != (len(ids),) or not np.isfinite(scores).all():
                raise UserError(
                    f"{model}: gave scores of shape {scores.shape}, not one finite number for each "
                    f"of {len(ids)} pairs; is it a reranker, and does dtype suit it?"
                )
            columns = [*zip(*ids, strict=True), scores]
            writer.write_table(pa.table([pa.array(column) for column in columns], schema=schema))


def shard_bounds(queries: int, shard: int, of: int) -> tuple[int, int]:
    """First query and end of shard `shard` (from 0) of `of`, cut between chunks."""
    if not 0 <= shard < of:
        raise UserError(f"shard {shard} of {of}: use 0 to {of - 1}")
    chunks = -(-queries // CHUNK)
    start, stop = (min(queries, chunks * i // of * CHUNK) for i in (shard, shard + 1))
    return start, stop


def read_pairs(
    dataset: Path, split: str, rankings: list[tuple[str, list[str]]]
) -> tuple[dict[str, str], dict[str, str]]:
    """{id: text} of the queries and of the passages that `rankings` name."""
    title = read_json(dataset / "dataset.json")["title"]
    queries = _read_texts(dataset / split / "queries.parquet", {query for query, _ in rankings})
    docs = {doc for _, docs in rankings for doc in docs}
    return queries, _read_texts(dataset / "corpus.parquet", docs, title)


def _read_texts(path: Path, wanted: set[str], title: str | None = None) -> dict[str, str]:
    """{id: text} of `wanted`; row groups without any of them are not read but for their ids."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; prepare the dataset first")
    columns = ["id", "text"] + ["title"] * (title is not None)
    file, values, texts = pq.ParquetFile(whole(path)), pa.array(list(wanted), pa.string()), {}
    for group in range(file.num_row_groups):
        here = pc.is_in(file.read_row_group(group, ["id"]).column("id"), value_set=values)
        if not pc.any(here).as_py():
            continue
        for row in file.read_row_group(group, columns).filter(here).to_pylist():
            heading = row.get("title") or ""
            texts[row["id"]] = shards.passage(heading, row["text"], title) if title else row["text"]
    for missing in sorted(wanted - texts.keys())[:1]:
        raise UserError(
            f"the run names {missing!r}, which {path} lacks; was it made with this data?"
        )
    return texts


def merge_reranked(paths: Sequence[Path | str]) -> Iterator[Ranking]:
    """Merge all shards of one reranking; yield rankings in the order of the first run's queries."""
    parts = []
    for path in paths:
        table = pq.read_table(whole(path))
        meta = json.loads((table.schema.metadata or {}).get(META, b"null"))
        if meta is None or "run" not in meta:
            raise UserError(f"{path}: not an output of rerank_shard.py")
        parts.append((meta["rows"], path, meta, table))
    parts.sort(key=lambda part: part[0])
    expected, total = 0, parts[0][2]["queries"]
    for (start, stop), path, meta, _ in parts:
        same = all(meta[key] == parts[0][2][key] for key in ("run", "settings", "model"))
        if start != expected or not same:
            why = "is of another run, model or settings" if not same else f"starts at {start}"
            raise UserError(
                f"{path}: {why}, but query {expected} of {total} comes next; "
                "give every shard of one reranking exactly once"
            )
        expected = stop
    if expected != total:
        raise UserError(f"scores of {expected} of {total} queries; give every shard exactly once")
    for _, _, _, table in parts:
        scores: dict[str, dict[str, float]] = {}
        for row in table.to_pylist():
            scores.setdefault(row["query"], {})[row["doc"]] = row["score"]
        for query, docs in scores.items():
            yield ranked(query, docs)
