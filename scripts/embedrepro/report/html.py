"""`report.html`: one page that needs nothing beside itself."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from .charts import charts
from .collect import WORST_FIRST, Column, Key, Model, Report
from .cost import Cost, costs, dataset_costs
from .explorer import explore
from .markdown import SIGNS
from .text import decimals, literal, number, one_line, quantity, source_label, web_address

PAGE = Path(__file__).parent / "page"
PARITY = 1e-4  # how far FlagEmbedding's own number may lie from ours
EARLY = 'document.documentElement.classList.add("scripted");'  # before anything is laid out


def html(report: Report) -> str:
    """The whole page. Every string from outside is escaped, by jinja2 or by `script_json`."""
    environment = Environment(
        loader=FileSystemLoader(PAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "decimals": decimals,
        "quantity": quantity,
        "one_line": one_line,
        "link": web_address,
        "source_label": source_label,
        "csp_hash": csp_hash,
        "literal": literal,
    }
    return environment.get_template("page.html.j2").render(
        report=report,
        spec=report.spec,
        counts=report.verdict_counts(),
        signs=SIGNS,
        boards=[board(report, metric) for metric in report.metrics],
        verdicts=verdict_rows(report),
        several=len(report.columns) > 1,
        parity_bound=PARITY,
        charts=charts(report),
        costs=costs(report),
        style=Markup((PAGE / "style.css").read_text(encoding="utf-8")),
        early=Markup(EARLY),
        script=Markup((PAGE / "page.js").read_text(encoding="utf-8")),
        data=script_json(page_data(report)),
    )


def csp_hash(script: str) -> str:
    """The source that lets a content security policy run this script and no other."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def script_json(value: Any) -> Markup:
    """JSON for a `<script>` element: no character in it can end the element or a line."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def board(report: Report, metric: str) -> dict[str, Any]:
    """The leaderboard of one metric, best average first; cells in the columns' order."""
    averages = {model.slug: report.average(model.slug, metric) for model in report.models}
    top = max((average.value for average in averages.values() if average), default=None)
    best = {column: report.best(column, metric) for column in report.columns}
    rows = [
        {
            "model": model,
            "index": report.models.index(model),
            "average": averages[model.slug],
            "best": top is not None and top == getattr(averages[model.slug], "value", None),
            "cells": [cell(report, column, model, metric, best) for column in report.columns],
        }
        for model in report.ranked(metric)
    ]
    return {"metric": metric, "rows": rows}


def cell(report: Report, column: Column, model: Model, metric: str, best: dict) -> dict[str, Any]:
    """One number with what is shown beside it: significance letters, verdict, whether it leads."""
    key = column.key(model.slug)
    score = report.score(key, metric)
    name = report.metric_name(key, metric)
    found = {row["verdict"] for row in report.cell_verdicts(key) if row["metric"] == name}
    return {
        "score": score,
        "letters": report.letters(key, metric),
        "best": score is not None and score.value == best[column],
        "verdict": next((verdict for verdict in WORST_FIRST if verdict in found), None),
    }


def verdict_rows(report: Report) -> list[dict[str, Any]]:
    """The rows of `verdicts.tsv`, the worst first, each with its cell's position if it has one."""
    places = {}
    for m, model in enumerate(report.models):
        for c, column in enumerate(report.columns):
            for row in report.cell_verdicts(column.key(model.slug)):
                places[id(row)] = f"{m},{c}"
    return [row | {"cell": places.get(id(row), "")} for row in report.worst_first()]


def page_data(report: Report) -> dict[str, Any]:
    """What page.js shows on demand: the cells' details and the per-query explorer."""
    spent = {(cost.model.slug, cost.dataset): cost for cost in dataset_costs(report)}
    return {
        "command": one_line(report.spec["command"]),
        "metric": report.main_metric,
        "models": [[one_line(m.label), one_line(m.revision)] for m in report.models],
        "columns": [one_line(column.label) for column in report.columns],
        "ranked": [report.models.index(model) for model in report.ranked(report.main_metric)],
        "cells": [
            [cell_data(report, column.key(model.slug), spent) for column in report.columns]
            for model in report.models
        ],
        "explorer": explore(report),
    }


def cell_data(report: Report, key: Key, spent: dict) -> dict[str, Any] | None:
    """What the page tells about one number; `spent` is the encoding's cost by model and dataset."""
    scores = report.scores.get(key)
    if scores is None:
        return None
    rounded = {
        protocol: [
            [name, *(None if e.get(k) is None else round(e[k], 5) for k in FIELDS)]
            for name, e in metrics.items()
        ]
        for protocol, metrics in scores["protocols"].items()
    }
    return {
        "queries": scores["queries"],
        "default": scores["default_protocol"],
        "protocols": rounded,
        "cost": cost_data(spent.get((key.model, key.dataset))),
        "target": report.target(key) if key in report.runs else None,
    }


def cost_data(cost: Cost | None) -> list[Any] | None:
    if cost is None or not cost.seconds:
        return None
    seconds = float(f"{cost.seconds:.4g}")
    return [cost.docs, cost.tokens, seconds, cost.peak_memory_mb, one_line(cost.device)]


FIELDS = ("value", "ci_low", "ci_high")
