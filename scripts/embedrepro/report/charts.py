"""Dot plots of the main metric, one for each dataset, as positions in percent of the axis."""

import math
from dataclasses import dataclass
from typing import Any

from .collect import Column, Key, Model, Report, Score


@dataclass(frozen=True)
class Dot:
    """One row: x positions in percent of the axis's width."""

    model: Model
    score: Score
    x: float
    low: float | None
    high: float | None
    published: float | None


@dataclass(frozen=True)
class Chart:
    column: Column
    metric: str
    dots: list[Dot]
    ticks: list[tuple[float, str]]  # position, label


def charts(report: Report) -> list[Chart]:
    """One chart for each column with a score, best model first."""
    found = (chart(report, column) for column in report.columns)
    return [one for one in found if one is not None]


def chart(report: Report, column: Column) -> Chart | None:
    keys = {model: column.key(model.slug) for model in report.models}
    rows = [
        (model, score, published_value(report, key))
        for model, key in keys.items()
        if (score := report.score(key, report.main_metric))
    ]
    if not rows:
        return None
    rows.sort(key=lambda row: -row[1].value)
    ends = [x for _, score, value in rows for x in (*score, value) if x is not None]
    low, high, step = axis(min(ends), max(ends))

    def place(x: float | None) -> Any:  # None where that is
        return None if x is None else round(100 * (x - low) / (high - low), 2)

    dots = [
        Dot(model, s, place(s.value), place(s.low), place(s.high), place(value))
        for model, s, value in rows
    ]
    count = round((high - low) / step)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    ticks = [(round(100 * i / count, 2), f"{low + i * step:.{digits}f}") for i in range(count + 1)]
    return Chart(column, report.main_metric, dots, ticks)


def published_value(report: Report, key: Key) -> float | None:
    """The first published value of the main metric that this cell is comparable with."""
    metric = report.metric_name(key, report.main_metric)
    for row in report.cell_verdicts(key):
        if row["metric"] == metric and row["verdict"] != "not comparable":
            return float(row["published"])
    return None


def axis(low: float, high: float) -> tuple[float, float, float]:
    """Round ends and a round step (1, 2 or 5 times a power of ten) with about four intervals."""
    span = max(high - low, 1e-3)
    power = 10 ** math.floor(math.log10(span / 4))
    step = next(power * f for f in (1, 2, 5, 10) if power * f >= span / 4)
    start, end = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return start, end if end > start else start + step, step
