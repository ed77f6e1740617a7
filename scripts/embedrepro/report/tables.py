"""`metrics.tsv`, `speed.tsv` and `provenance.json`: the report as data."""

from collections.abc import Iterable
from typing import Any

from ..errors import printable
from ..files import sha256
from .collect import Report

INTERVALS = ("value", "ci_low", "ci_high", "rounding_low", "rounding_high")
METRICS = [
    *("model_id", "model", "revision", "dataset", "split", "metric"),
    *INTERVALS,
    "queries",
]
SPEED = [
    "model",
    "dataset",
    "part",
    "shard",
    "docs",
    "tokens",
    "seconds",
    "docs_per_second",
    "tokens_per_second",
    "device",
    "peak_memory_mb",
]


def tsv(header: list[str], rows: Iterable[Iterable[object]]) -> str:
    """Tab-separated text; a control character in a value is escaped, None is an empty field."""
    lines = ["\t".join(header)]
    lines += ("\t".join(map(field, row)) for row in rows)
    return "\n".join(lines) + "\n"


def field(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return printable(value, limit=10_000)


def metrics_tsv(report: Report) -> str:
    """One row for each model, dataset, split and metric, under the dataset's default protocol."""
    return tsv(METRICS, metric_rows(report))


def metric_rows(report: Report) -> Iterable[list[object]]:
    for model in report.models:
        for column in report.columns:
            key = column.key(model.slug)
            queries = report.scores[key]["queries"] if key in report.scores else None
            for metric, entry in report.protocol(key).items():
                yield [
                    *(model.id, model.slug, model.revision, column.name, column.split, metric),
                    *(entry.get(name) for name in INTERVALS),
                    queries,
                ]


def speed_tsv(report: Report) -> str:
    """One row for each embedding file; seconds are of encoding alone, without start-up."""
    rows = ([speed_row(e).get(name) for name in SPEED] for e in report.embeddings)
    return tsv(SPEED, rows)


def speed_row(embedding: dict[str, Any]) -> dict[str, Any]:
    seconds = embedding["seconds"]
    return embedding | {
        "docs_per_second": embedding["docs"] / seconds if seconds else None,
        "tokens_per_second": embedding["tokens"] / seconds if seconds else None,
    }


def provenance(report: Report) -> dict[str, Any]:
    """Versions, revisions, digests and the command of every number, as JSON."""
    spec = report.spec
    return {
        "experiment": spec["experiment"],
        "command": spec["command"],
        "git_commit": spec.get("git_commit"),
        "dirty": spec.get("dirty"),
        "versions": spec.get("versions", {}),
        "models": [
            {
                "id": m.id,
                "model": m.slug,
                "revision": m.revision,
                "pinned": m.pinned,
                "stage": report.stages.get(m.slug),
            }
            for m in report.models
        ],
        "datasets": [
            {"name": c.name, "split": c.split, "dataset": report.datasets.get(c.slug)}
            for c in report.columns
        ],
        "embeddings": report.embeddings,
        "cells": [
            {
                "model_id": model.id,
                "dataset": column.name,
                "split": column.split,
                "run": str(report.runs[column.key(model.slug)]),
                "sha256": sha256(report.runs[column.key(model.slug)]),
                "command": report.command(column.key(model.slug)),
            }
            for model in report.models
            for column in report.columns
            if column.key(model.slug) in report.runs
        ],
    }
