"""`report.html`: one page that needs nothing beside itself."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from .charts import charts
from .collect import Report
from .cost import costs, dataset_costs
from .explorer import explore
from .markdown import SIGNS, best_score, headline, ranked
from .text import number, one_line, quantity, web_address

PAGE = Path(__file__).parent / "page"


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
        "quantity": quantity,
        "one_line": one_line,
        "link": web_address,
    }
    script = (PAGE / "page.js").read_text(encoding="utf-8")
    return environment.get_template("page.html.j2").render(
        report=report,
        spec=report.spec,
        headline=headline(report),
        counts=report.verdict_counts(),
        signs=SIGNS,
        boards=[board(report, metric) for metric in report.metrics],
        verdicts=report.verdicts,
        charts=charts(report),
        costs=costs(report),
        dataset_costs=dataset_costs(report),
        style=Markup((PAGE / "style.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=csp_hash(script),
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
    best = [best_score(report, column, metric) for column in report.columns]
    averages = {model.slug: report.average(model.slug, metric) for model in report.models}
    top = max((a for a in averages.values() if a is not None), default=None)
    verdicts = cell_verdicts(report)
    rows = []
    for model in ranked(report, metric):
        cells = []
        for index, column in enumerate(report.columns):
            key = column.key(model.slug)
            score = report.score(key, metric)
            name = report.metric_name(key, metric)
            cells.append(
                {
                    "score": score,
                    "best": score is not None and score.value == best[index],
                    "column": index,
                    "verdict": verdicts.get((model.id, column.slug, column.split, name)),
                }
            )
        average = averages[model.slug]
        rows.append(
            {
                "model": model,
                "index": report.models.index(model),
                "average": average,
                "best": average is not None and average == top,
                "cells": cells,
            }
        )
    return {"metric": metric, "rows": rows}


def cell_verdicts(report: Report) -> dict[tuple[str, str, str, str], str]:
    """(model id, dataset slug, split, metric) → verdict."""
    slugs = {column.name: column.slug for column in report.columns}
    return {
        (
            row["model_id"],
            slugs.get(row["dataset"], row["dataset"]),
            row["split"],
            row["metric"],
        ): row["verdict"]
        for row in report.verdicts
    }


def page_data(report: Report) -> dict[str, Any]:
    """What page.js shows on demand: the cells' details and the per-query explorer."""
    return {
        "command": one_line(report.spec["command"]),
        "metric": report.main_metric,
        "models": [[one_line(m.id), one_line(m.revision)] for m in report.models],
        "columns": [column.label for column in report.columns],
        "cells": [
            [cell_data(report, column.key(model.slug)) for column in report.columns]
            for model in report.models
        ],
        "explorer": explore(report),
    }


def cell_data(report: Report, key) -> dict[str, Any] | None:
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
        "run": str(report.runs[key]) if key in report.runs else None,
    }


FIELDS = ("value", "ci_low", "ci_high")
