"""From a run file and a prepared dataset to the scores that tables, verdicts and tests read."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ..errors import UserError, printable
from ..files import read_json, sealed, whole, write_record
from ..search.runs import iter_listed, read_ids
from . import metrics, protocols

PASSED_ON = ("model_id", "model", "revision", "dataset", "split")


def read_qrels(dataset: Path | str, split: str) -> dict[str, dict[str, int]]:
    """Judgements of one split of a prepared dataset, queries in the order of the file."""
    path = Path(dataset) / split / "qrels.parquet"
    if not path.exists():
        raise UserError(f"{path}: no such file; is {printable(split)!r} a split of this dataset?")
    # Not read_table: that imports pandas.
    table = pq.ParquetFile(whole(path)).read(["query_id", "doc_id", "relevance"])
    qrels: dict[str, dict[str, int]] = {}
    for query, doc, grade in zip(*(column.to_pylist() for column in table.columns), strict=True):
        qrels.setdefault(query, {})[doc] = grade
    return qrels


def read_queries(dataset: Path | str, split: str) -> set[str]:
    """Ids of the queries that one split of a prepared dataset has texts for."""
    return set(read_ids(Path(dataset) / split / "queries.parquet").to_pylist())


def score_run(
    run: Path | str,
    dataset: Path | str,
    split: str,
    spec_path: Path | str,
    output: Path | str,
    per_query: Path | str,
    encoded: Iterable[Path | str] = (),
) -> None:
    """Write `output` (scores JSON) and `per_query` (TSV of the default protocol).

    `encoded` are sidecars of the embeddings that the run was made from, one of each role: what they
    say of prompts and lengths joins the facts, as do the dataset's title rule and revision.

    Scores JSON: the spec's model_id, model, revision, dataset, split and facts; queries (judged),
    answered, relevance_threshold, ignore_identical_ids, default_protocol and
    protocols: {protocol: {metric: {value, ci_low, ci_high}}}.
    """
    spec = read_json(spec_path)
    missing = [key for key in (*PASSED_ON, "metrics") if key not in spec]
    if missing:
        raise UserError(f"{spec_path}: lacks {', '.join(missing)}")
    about = read_json(Path(dataset) / "dataset.json")
    drops = bool(spec.get("ignore_identical_ids", about.get("ignore_identical_ids", False)))
    threshold = int(spec.get("relevance_threshold", about.get("relevance_threshold", 1)))
    asked = [metrics.parse(name) for name in spec["metrics"]]
    shown = spec.get("default_protocol", protocols.DEFAULT)
    names = list(dict.fromkeys([shown, *spec.get("protocols", [])]))
    qrels = read_qrels(dataset, split)
    found = iter_listed(run)
    rules = spec["dataset"], drops, threshold, spec.get("top_k"), read_queries(dataset, split)
    scores = protocols.score(found, qrels, asked, names, *rules)

    default = scores[shown]
    with sealed(per_query) as temporary:
        temporary.write_text(_per_query_table(default), encoding="utf-8")
    result = {key: spec[key] for key in PASSED_ON} | {
        "facts": known_facts(about, encoded) | spec.get("facts", {}),
        "queries": len(qrels),
        "answered": int(default.answered.sum()),
        "relevance_threshold": threshold,
        "ignore_identical_ids": drops,
        "default_protocol": shown,
        "protocols": {name: summarise(scores[name], protocols.named(name)) for name in names},
    }
    write_record(output, result)


def known_facts(about: dict[str, Any], encoded: Iterable[Path | str]) -> dict[str, Any]:
    """What a published number must share to be comparable, as far as files tell."""
    source = about.get("source")
    revision = source.get("revision") if isinstance(source, dict) else None
    facts: dict[str, Any] = {"title": about.get("title"), "dataset_revision": revision}
    facts["max_length"] = {}
    for path in encoded:
        sidecar = read_json(path)
        role, settings = sidecar["role"], sidecar["settings"]
        prompt = settings[f"{role}_prompt"]
        facts[f"{role}_prompt"] = prompt.replace("{task}", sidecar.get("instruction") or "")
        facts["max_length"][role] = settings["max_length"][role]
    return facts


def _per_query_table(scores: protocols.Scores) -> str:
    lines = ["query_id\tmetric\tvalue"]
    for query, row in zip(scores.queries, scores.values.tolist(), strict=True):
        lines += [f"{query}\t{m}\t{v!r}" for m, v in zip(scores.measures, row, strict=True)]
    return "\n".join(lines) + "\n"


def summarise(scores: protocols.Scores, protocol: protocols.Protocol) -> dict[str, dict[str, Any]]:
    """{metric: {value, ci_low, ci_high}}, means rounded as the protocol's tool rounds them."""
    columns = scores.kept(protocol)
    intervals = np.empty((2, len(columns)))
    for size in {len(column) for column in columns}:
        same = [c for c, column in enumerate(columns) if len(column) == size]
        intervals[:, same] = metrics.bootstrap(np.stack([columns[c] for c in same], axis=1))
    summary = {}
    for measure, column, low, high in zip(scores.measures, columns, *intervals, strict=True):
        mean = float(column.sum() / len(column)) if len(column) else 0.0
        if protocol.decimals is not None:
            mean = round(mean, protocol.decimals)
        summary[str(measure)] = {"value": mean, "ci_low": float(low), "ci_high": float(high)}
    return summary
