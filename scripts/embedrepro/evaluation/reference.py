"""FlagEmbedding's own evaluator, unmodified, on a staged model, and its numbers beside ours.

Its multi-device pool pickles the model to its workers, which the staged folder's name makes safe.
All that its evaluator would choose by itself is passed: precision (it rounds to float16 on CPU
too), lengths, prompts, pooling, normalisation. It believes results that it finds in its output
folder, so each run gets a new one.
"""

import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..datasets.export import export_flagembedding
from ..encode.facts import Facts, resolve
from ..errors import UserError, printable
from ..files import atomic, read_json, remove, write_json, write_record
from ..models.staged import verify_code
from ..search import runs
from . import metrics, protocols, watchdog
from .judgements import Judgements
from .scoring import summarise

# Our name of a measure: its name in FlagEmbedding's eval_results.json.
MEASURES = {"nDCG@10": "ndcg_at_10", "RR@10": "mrr_at_10", "R@100": "recall_at_100"}
# Datasets for which FlagEmbedding has an evaluator of their own: (module, name, splits).
OWN = {
    "msmarco-passage": ("msmarco", "passage", ("dev", "dl19", "dl20")),
    "msmarco-document": ("msmarco", "document", ("dev", "dl19", "dl20")),
}
PROTOCOL = "flagembedding"


def evaluator(dataset: str, split: str) -> tuple[str, str | None, str]:
    """Module, dataset name and split by which FlagEmbedding knows a dataset: `custom` knows one."""
    module, name, splits = OWN.get(dataset, ("custom", None, ()))
    return (module, name, split) if split in splits else ("custom", None, "test")


def export(spec: Mapping[str, Any], output: Path) -> None:
    """Write a split of a prepared dataset where and as its evaluator looks for it (new folder)."""
    _, name, known_as = evaluator(spec["dataset"], spec["split"])
    with atomic(output) as folder:
        place = folder / name if name else folder
        export_flagembedding(Path(spec["corpus"]).parent, Path(spec["queries"]).parent, place)
        for part in ("queries", "qrels"):
            (place / f"test_{part}.jsonl").rename(place / f"{known_as}_{part}.jsonl")


def run(spec: Mapping[str, Any], output: Path) -> dict[str, Any]:
    """Run the evaluator under the watchdog and write `output`, JSON; returns what it holds.

    `spec`: model_id, dataset, split, staged (the folder), corpus, queries and qrels (prepared
    Parquet), sidecar (of our corpus' vectors: which precision to run in), query_prompt and
    passage_prompt (None: as staged), instruction, devices, batch_size, timeout_minutes, top_k,
    ignore_identical_ids. Raises watchdog.JobFailed when the evaluator fails, hangs, or a worker of
    its pool dies.
    """
    prompts = {k: spec[k] for k in ("query_prompt", "passage_prompt")}
    facts = resolve(spec["staged"], prompts)
    if facts.trust_remote_code:
        verify_code(facts.staged)
    compute_dtype = read_json(spec["sidecar"])["compute_dtype"]
    folder = Path(output).with_suffix("")
    remove(folder)
    folder.mkdir(parents=True)
    export(spec, folder / "exported")
    data = with_passage_prompt(folder / "exported", facts, spec, folder / "data")
    results = folder / "results"
    command = command_line(facts, data, spec, compute_dtype, results)
    print("FlagEmbedding's command:", shlex.join(command), sep="\n", file=sys.stderr, flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder) as caches:
        watchdog.run(
            [sys.executable, *command[1:]],
            timeout=60 * spec["timeout_minutes"],
            env=os.environ | environment(spec["devices"], Path(caches).resolve()),
            name=f"FlagEmbedding on {printable(facts.model_id, 80)}",
        )
    result = {key: spec[key] for key in ("model_id", "dataset", "split", "devices", "batch_size")}
    result |= {
        "command": shlex.join(command),
        "metrics": read_results(results),
        "dtype": precision(compute_dtype),
        "seconds": round(time.monotonic() - began, 1),
        "versions": {name: version(name) for name in ("FlagEmbedding", "transformers", "torch")},
    }
    remove(folder)
    write_record(output, result)
    return result


def with_passage_prompt(data: Path, facts: Facts, spec: Mapping[str, Any], folder: Path) -> Path:
    """`data`, or a copy in `folder` whose passages begin with the model's prompt.

    The evaluator has no argument for it. It strips the white space around a passage.
    """
    prompt = facts.prompt("passage", None)
    if not prompt:
        return data
    name = evaluator(spec["dataset"], spec["split"])[1] or ""
    place = folder / name
    place.mkdir(parents=True)
    for path in (data / name).iterdir():
        if path.name != "corpus.jsonl":
            (place / path.name).symlink_to(path.resolve())
    with (
        open(data / name / "corpus.jsonl", encoding="utf-8") as source,
        open(place / "corpus.jsonl", "w", encoding="utf-8") as target,
    ):
        for line in source:
            row = json.loads(line)
            text = prompt + f"{row['title']} {row['text']}".strip()
            target.write(json.dumps({"id": row["id"], "text": text}, ensure_ascii=False) + "\n")
    return folder


def command_line(
    facts: Facts, data: Path, spec: Mapping[str, Any], compute_dtype: str, results: Path
) -> list[str]:
    """The command as a user would type it; prompts that begin with a dash stay values."""
    module, name, split = evaluator(spec["dataset"], spec["split"])
    last_token = facts.pooling == "last_token"
    dtype = precision(compute_dtype)
    drop = protocols.PROTOCOLS[PROTOCOL].drops(spec["dataset"], spec["ignore_identical_ids"])
    options = {
        "eval_name": module,
        "dataset_dir": Path(data).resolve(),
        "dataset_names": name,
        "splits": split,
        "output_dir": results.resolve(),
        "search_top_k": spec["top_k"],
        "k_values": [10, 100],
        "eval_metrics": list(MEASURES.values()),
        "eval_output_path": results.resolve() / "eval_results.md",
        "ignore_identical_ids": drop,
        "embedder_name_or_path": Path(facts.staged).resolve(),
        "embedder_model_class": "decoder-only-base" if last_token else "encoder-only-base",
        "trust_remote_code": facts.trust_remote_code,
        "pooling_method": facts.pooling,
        "normalize_embeddings": facts.normalize,
        "use_fp16": dtype == "float16",
        "use_bf16": dtype == "bfloat16",
        "embedder_query_max_length": facts.max_length["query"],
        "embedder_passage_max_length": facts.max_length["passage"],
        "embedder_batch_size": spec["batch_size"],
        "truncate_dim": facts.dimensions,
        "devices": spec["devices"],
    }
    if prompt := facts.prompt("query", spec["instruction"]):
        options["query_instruction_for_retrieval"] = prompt
        options["query_instruction_format_for_retrieval"] = "{}{}"
    return ["python", "-m", f"FlagEmbedding.evaluation.{module}", *_arguments(options)]


def _arguments(options: dict[str, Any]) -> Iterator[str]:
    for key, value in options.items():
        if isinstance(value, list):
            yield from (f"--{key}", *map(str, value))
        elif isinstance(value, str):
            yield f"--{key}={value}"
        elif value is not None:
            yield from (f"--{key}", str(value))


def precision(compute_dtype: str) -> str:
    """The same precision or, as FlagEmbedding has no fp8, the next."""
    return "bfloat16" if compute_dtype == "fp8" else compute_dtype


def environment(devices: list[str], caches: Path) -> dict[str, str]:
    """No network, caches of its own, and the threads shared among workers that run on CPU."""
    threads = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    share = max(1, threads // max(1, devices.count("cpu")))
    return {
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(caches / "modules"),
        "HF_DATASETS_CACHE": str(caches / "datasets"),
        "OMP_NUM_THREADS": str(share),
        "TOKENIZERS_PARALLELISM": "false",
    }


def read_results(results: Path) -> dict[str, float]:
    """{our name of a measure: value} from the one eval_results.json below `results`."""
    found = list(results.glob("*/NoReranker/EVAL/eval_results.json"))
    if len(found) != 1:
        raise UserError(f"{results}: FlagEmbedding ended without a result; see its output above")
    (values,) = read_json(found[0]).values()
    return {ours: values[theirs] for ours, theirs in MEASURES.items()}


def compare(rows: Sequence[Mapping[str, Any]], output: Path) -> list[dict[str, Any]]:
    """Write for every run and measure FlagEmbedding's number, ours and their delta, as JSON.

    `rows`: model_id, model, dataset, split, ignore_identical_ids, reference (what `run` wrote), run
    (ours), qrels (prepared). Ours is scored by FlagEmbedding's rules from our run.
    """
    parity = [line for row in rows for line in compare_run(row)]
    write_json(output, parity)
    return parity


def compare_run(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    reference = read_json(row["reference"])
    settings = protocols.Settings(
        asked=tuple(metrics.parse(name) for name in MEASURES),
        protocols=(PROTOCOL,),
        dataset=row["dataset"],
        drop_identical=row["ignore_identical_ids"],
    )
    judged, run = Judgements.read(Path(row["qrels"])), runs.read_listings(row["run"])
    scores = protocols.score_listings(run, judged, settings, judged.queries)[PROTOCOL]
    ours = summarise(scores, protocols.PROTOCOLS[PROTOCOL])
    for measure in MEASURES:
        theirs = reference["metrics"][measure]
        yield {key: row[key] for key in ("model_id", "model", "dataset", "split")} | {
            "metric": measure,
            "flagembedding": theirs,
            "ours": ours[measure]["value"],
            "delta": round(ours[measure]["value"] - theirs, 10),
            "command": reference["command"],
            "devices": reference["devices"],
            "dtype": reference["dtype"],
            "seconds": reference["seconds"],
        }


def table(parity: list[dict[str, Any]]) -> str:
    """The parity table as text."""
    head = ("model", "dataset", "split", "metric", "FlagEmbedding", "ours", "delta")
    lines: list[tuple[str, ...]] = [head]
    for row in parity:
        numbers = (f"{row['flagembedding']:.5f}", f"{row['ours']:.5f}", f"{row['delta']:+.5f}")
        names = (printable(row[key], 60) for key in ("model_id", "dataset", "split", "metric"))
        lines.append((*names, *numbers))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(row.rstrip() for row in rows)
