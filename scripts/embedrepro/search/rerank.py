"""Reranking: a staged reranker scores the top of a run again, sharded by query.

How a pair becomes a score is the model's recipe, which staging found: sentence-transformers'
CrossEncoder, FlagEmbedding's four classes under its own names, or Qwen3-Reranker's question with
its yes and no. Queries are scored in chunks of 32 counted from the run's first query, and shards
are cut between chunks, so that each batch holds the same pairs, and gives the same scores, for any
number of shards.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from ..datasets.reading import Checked
from ..datasets.records import passage
from ..errors import UserError, printable
from ..files import digest, sealed, whole
from ..models.rerankers import LAYERWISE, RECIPES
from ..models.staged import verify_code
from ..schema import over_defaults
from ..startup import uncollected
from .runs import Ranking, iter_run, ranked

DEFAULTS = {
    "engine": "auto",  # the recipe that staging found
    "depth": 100,  # documents of each query to score
    "max_length": 512,
    "batch_size": 32,
    "dtype": "float32",  # float16, bfloat16 on a GPU
    "instruction": None,  # the task that qwen3-reranker is told; None: its card's
    "prompt": None,  # what FlagEmbedding's language models are asked; None: their own
    "options": {},  # further arguments of FlagEmbedding's class: prompt, cutoff_layers, ...
}
CHOICES = {
    "engine": ("auto", *RECIPES),
    "dtype": ("float32", "float16", "bfloat16"),
}
CHUNK = 32  # queries
META = b"embed-repro"
SCHEMA = pa.schema([("query", pa.string()), ("doc", pa.string()), ("score", pa.float32())])
Score = Callable[[list[tuple[str, str]]], Sequence[float]]  # (query, passage) pairs to scores


def read_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """`spec` over DEFAULTS; raises `UserError` naming an unknown key or value."""
    settings = over_defaults(dict(spec), DEFAULTS, CHOICES, "rerank")
    if settings["engine"] == "encoder-only-base" and settings["dtype"] == "bfloat16":
        raise UserError("rerank: FlagEmbedding's encoder-only-base knows no bfloat16; use float16")
    return settings


@uncollected()
def load_reranker(
    staged: Path | str, settings: Mapping[str, Any], device: str, address: str | None = None
) -> Score:
    """Load a staged reranker on one device ("cpu" or "cuda"); nothing reaches for the network but
    one on a server, which is at `address` now.

    Scores are raw logits: a sigmoid keeps their order, but where it saturates it makes ties. A pair
    longer than the model has places for is cut there. Raises `UserError`.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    staged = Path(staged)
    if not (staged / "stage.json").is_file():
        raise UserError(f"{staged}: no stage.json there; stage the reranker first")
    record = verify_code(staged)
    if "server" in record:
        return _load_server(record, address or record["address"])
    engine = record["scoring"] if settings["engine"] == "auto" else settings["engine"]
    length = min(settings["max_length"], record["longest"] or settings["max_length"])
    refuse_idle(record["id"], settings, engine)
    settings = {**settings, "engine": engine, "max_length": length}
    if engine == "cross-encoder":
        return _load_cross_encoder(staged, record, settings, device)
    if engine == "qwen3-reranker":
        return _load_question(staged, record, settings, device)
    return _load_flag(staged, record, settings, device)


def refuse_idle(model_id: str, settings: Mapping[str, Any], engine: str) -> None:
    """Refuse what would change nothing in this recipe."""
    asked = engine.startswith("decoder-only")
    for key, used, whose in (
        ("instruction", engine == "qwen3-reranker", "qwen3-reranker"),
        ("prompt", asked, "the decoder-only recipes"),
        ("options", asked or engine == "encoder-only-base", "FlagEmbedding's recipes"),
    ):
        if settings[key] and not used:
            raise UserError(
                f"{model_id}: rerank: {key}: is of {whose}, and this model scores as {engine}; "
                f"remove {key}: or set engine:"
            )


def _load_flag(
    staged: Path, record: Mapping[str, Any], settings: Mapping[str, Any], device: str
) -> Score:
    from FlagEmbedding import FlagAutoReranker

    precision = {"use_fp16": settings["dtype"] == "float16"}
    if settings["engine"] != "encoder-only-base":
        precision["use_bf16"] = settings["dtype"] == "bfloat16"
    if settings["engine"] == LAYERWISE:
        from ..models.minicpm import mend

        mend()
    reranker = FlagAutoReranker.from_finetuned(
        str(staged),
        model_class=settings["engine"],
        trust_remote_code=record["trust_remote_code"],
        devices=[device],
        batch_size=settings["batch_size"],
        max_length=settings["max_length"],
        **precision,
        **({"prompt": settings["prompt"]} if settings["prompt"] else {}),
        **settings["options"],
    )
    score: Score = reranker.compute_score
    return score


def _load_cross_encoder(
    staged: Path, record: Mapping[str, Any], settings: Mapping[str, Any], device: str
) -> Score:
    import torch
    from sentence_transformers import CrossEncoder

    encoder = CrossEncoder(
        str(staged),
        max_length=settings["max_length"],
        device=device,
        local_files_only=True,
        trust_remote_code=record["trust_remote_code"],
        model_kwargs={"dtype": settings["dtype"]},
    )
    return lambda pairs: encoder.predict(
        pairs,
        batch_size=settings["batch_size"],
        activation_fn=torch.nn.Identity(),
        show_progress_bar=False,
    )


def _load_question(
    staged: Path, record: Mapping[str, Any], settings: Mapping[str, Any], device: str
) -> Score:
    """A language model that is asked about each pair: the logit of yes less that of no.

    Prefix and suffix are never cut; the text between them is, at its end, as the card of
    Qwen3-Reranker cuts it.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    words = record["template"]
    if not words:
        raise UserError(f"{record['id']}: staged without a recipe's words; stage it again")
    tokenizer = AutoTokenizer.from_pretrained(staged, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(
        staged, dtype=getattr(torch, settings["dtype"]), local_files_only=True
    )
    model.to(device).eval()
    yes, no = (tokenizer.convert_tokens_to_ids(words[word]) for word in ("yes", "no"))
    before, after = (
        tokenizer.encode(words[part], add_special_tokens=False) for part in ("prefix", "suffix")
    )
    task = settings["instruction"] or words["task"]
    room = settings["max_length"] - len(before) - len(after)
    if room < 1:
        raise UserError(
            f"{record['id']}: max_length {settings['max_length']} leaves nothing for the pair; its "
            f"question alone takes {len(before) + len(after)} tokens"
        )

    @torch.inference_mode()
    def score(pairs: list[tuple[str, str]]) -> list[float]:
        texts = [words["body"].format(task=task, query=q, passage=p) for q, p in pairs]
        cut = {"truncation": True, "max_length": room, "add_special_tokens": False}
        rows = [before + ids + after for ids in tokenizer(texts, **cut)["input_ids"]]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        found = [0.0] * len(rows)
        for at in range(0, len(order), settings["batch_size"]):
            some = order[at : at + settings["batch_size"]]
            batch = tokenizer.pad(
                {"input_ids": [rows[i] for i in some]}, padding_side="left", return_tensors="pt"
            ).to(device)
            logits = model(**batch, logits_to_keep=1, use_cache=False).logits[:, -1].float()
            for i, value in zip(some, (logits[:, yes] - logits[:, no]).tolist(), strict=True):
                found[i] = value
        return found

    return score


def _load_server(record: Mapping[str, Any], address: str) -> Score:
    """A reranker on a server: each query's passages together, some requests at once."""
    from ..sources.server import Refused, Server, opened

    def ask(server: Server, task: tuple[str, list[str]]) -> list[float]:
        query, texts = task
        try:
            return server.rerank(query, texts)
        except Refused as error:
            if len(texts) == 1:
                shown = printable(query, 60)
                raise UserError(
                    f"{record['id']}: a passage of {len(texts[0]):,} characters for the query "
                    f"'{shown}' is refused by its server: {error}"
                ) from None
            half = len(texts) // 2
            return ask(server, (query, texts[:half])) + ask(server, (query, texts[half:]))

    def score(pairs: list[tuple[str, str]]) -> list[float]:
        with opened(record["server"], address) as server:
            tasks: list[tuple[str, list[str]]] = []
            for query, passages in groupby(pairs, key=lambda pair: pair[0]):
                texts = [text for _, text in passages]
                size = server.batch
                tasks += [(query, texts[i : i + size]) for i in range(0, len(texts), size)]
            return [s for some in server.each(tasks, partial(ask, server)) for s in some]

    return score


def rerank_shard(
    run: Path | str,
    corpus: Path | str,
    queries: Path | str,
    title: str,
    staged: Path | str,
    spec: Mapping[str, Any],
    shard: tuple[int, int],
    output: Path | str,
    device: str,
    address: str | None = None,
) -> None:
    """Score shard `(i, n)` of a run's queries with the reranker staged in `staged`.

    `corpus` and `queries` are prepared Parquet files, `title` says how a passage's title and text
    are joined. Writes Parquet with the columns query, doc (ids) and score (float32). Raises
    `UserError` for a query or document of the run that the dataset lacks.
    """
    settings = read_spec(spec)
    rankings = [(query, docs[: settings["depth"]]) for query, docs, _ in iter_run(run)]
    start, stop = shard_bounds(len(rankings), *shard)
    mine = rankings[start:stop]
    asked, passages = read_pairs(Path(corpus), Path(queries), title, mine)
    score = load_reranker(staged, settings, device, address)
    facts = {"settings": settings, "run": digest(rankings), "queries": len(rankings)}
    facts |= {"rows": [start, stop], "model": Path(staged).name}
    schema = SCHEMA.with_metadata({META: json.dumps(facts, sort_keys=True).encode()})
    with sealed(output) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for at in tqdm(range(0, len(mine), CHUNK), desc="rerank", unit=f" x {CHUNK} queries"):
            ids = [(query, doc) for query, docs in mine[at : at + CHUNK] for doc in docs]
            scores = np.asarray(score([(asked[q], passages[d]) for q, d in ids]), np.float32)
            if scores.shape != (len(ids),) or not np.isfinite(scores).all():
                raise UserError(
                    f"{staged}: gave scores of shape {scores.shape}, not one finite number for "
                    f"each of {len(ids)} pairs; is it a reranker, and does dtype suit it?"
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
    corpus: Path, queries: Path, title: str, rankings: list[tuple[str, list[str]]]
) -> tuple[dict[str, str], dict[str, str]]:
    """{id: text} of the queries and of the passages that `rankings` name."""
    docs = {doc for _, docs in rankings for doc in docs}
    asked = _read_texts(queries, {query for query, _ in rankings})
    return asked, _read_texts(corpus, docs, title)


def _read_texts(path: Path, wanted: set[str], title: str | None = None) -> dict[str, str]:
    """{id: text} of `wanted`; row groups without any of them are not read but for their ids."""
    columns = ["id", "text"] + ["title"] * (title is not None)
    values, texts = pa.array(list(wanted), pa.string()), {}
    with Checked(path) as table:
        for group in range(table.file.num_row_groups):
            here = pc.is_in(table.row_group(group, ["id"]).column("id"), value_set=values)
            if not pc.any(here).as_py():
                continue
            for row in table.row_group(group, columns).filter(here).to_pylist():
                heading = row.get("title") or ""
                texts[row["id"]] = passage(heading, row["text"], title) if title else row["text"]
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
