"""Results in the files of other tools: MTEB's result JSON, FlagEmbedding's search results."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import read_json, write_json, write_text
from ..search.runs import iter_listed
from .metrics import parse

# family -> MTEB's name (mteb/_evaluators/retrieval_metrics.py, make_score_dict, mteb 2.26.24)
MTEB_NAMES = {
    "nDCG": "ndcg",
    "AP": "map",
    "R": "recall",
    "P": "precision",
    "RR": "mrr",
    "Success": "hit_rate",
}
MAIN = "nDCG@10"  # the main score of MTEB's retrieval tasks


def export_mteb(scores: Iterable[Path | str], spec_path: Path | str, output: Path | str) -> None:
    """Write one task's result as `mteb.TaskResult.from_disk` reads it.

    `scores` are one model's files of all subsets and splits of the task, scored under the `mteb`
    protocol. Spec JSON: {"mteb_task", "dataset_revision", "subsets": {our dataset: {"hf_subset",
    "languages": ["eng-Latn"]}}, "splits": {our split: MTEB's, where they differ}}.
    `mteb_version` is null: MTEB's rules were followed, MTEB did not run.
    """
    spec = read_json(spec_path)
    splits: dict[str, list[dict[str, Any]]] = {}
    for path in scores:
        result = read_json(path)
        subset = spec["subsets"].get(result["dataset"])
        if subset is None:
            raise UserError(f"{spec_path}: subsets says nothing of {result['dataset']} ({path})")
        split = spec.get("splits", {}).get(result["split"], result["split"])
        splits.setdefault(split, []).append(_mteb_scores(path, result) | subset)
    write_json(
        output,
        {
            "task_name": spec["mteb_task"],
            "dataset_revision": spec["dataset_revision"],
            "mteb_version": None,
            "scores": splits,
            "evaluation_time": None,
            "kg_co2_emissions": None,
        },
    )


def _mteb_scores(path: Path | str, result: dict[str, Any]) -> dict[str, float]:
    scored = result["protocols"].get("mteb", {})
    if MAIN not in scored:
        raise UserError(f"{path}: no {MAIN} under the mteb protocol; add both to the config")
    named = {}
    for name, entry in scored.items():
        measure = parse(name)
        if measure.family in MTEB_NAMES and measure.cutoff is not None:
            named[f"{MTEB_NAMES[measure.family]}_at_{measure.cutoff}"] = entry["value"]
    return named | {"main_score": scored[MAIN]["value"]}


def export_flagembedding(run: Path | str, spec_path: Path | str, output: Path | str) -> None:
    """Write a run as FlagEmbedding's evaluators save and read their search results.

    Spec JSON: {"eval_name", "model_name", "reranker_name" (or "NoReranker"), "split",
    "dataset_name" (or null)}. The evaluator reads `<dataset_name>-<split>.json`, or `<split>.json`.
    """
    spec = read_json(spec_path)
    keys = ("eval_name", "model_name", "reranker_name", "split", "dataset_name")
    missing = [key for key in keys if key not in spec]
    if missing:
        raise UserError(f"{spec_path}: lacks {', '.join(missing)}")
    # Not write_json: it sorts, and FlagEmbedding's MRR breaks ties by the order it reads.
    found = {key: spec[key] for key in keys} | {"search_results": dict(iter_listed(run))}
    write_text(output, json.dumps(found, ensure_ascii=False))
