"""From run files and judgements to the scores that tables, verdicts and tests read."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..files import read_json, sealed, whole, write_record
from ..search.runs import read_ids, read_listings
from . import metrics, protocols
from .judgements import Judgements


@dataclass(frozen=True)
class Row:
    """One run to score.

    run: TREC run. qrels, queries: qrels.parquet and queries.parquet of the split. about: what the
    scores are of: model_id, model, revision, dataset, split. facts: what a published number must
    share to be comparable. metrics: names, see `metrics.parse`. ignore_identical_ids,
    relevance_threshold: as the dataset's entry says. top_k: the run's depth as asked for (None: as
    it is). score_error: how much rounding may have moved each score (None: unknown), exact_error:
    those of a refined run's first `exact_depth`. documents: of the corpus, if known. output:
    scores, JSON. per_query: table of the default protocol, TSV.
    """

    run: Path
    qrels: Path
    queries: Path
    about: Mapping[str, str | None]
    metrics: Sequence[str]
    output: Path
    per_query: Path
    facts: Mapping[str, Any] = field(default_factory=dict)
    default_protocol: str = protocols.DEFAULT
    protocols: Sequence[str] = ()
    ignore_identical_ids: bool = False
    relevance_threshold: int = 1
    top_k: int | None = None
    score_error: float | None = None
    exact_depth: int = 0
    exact_error: float = 0.0
    documents: int | None = None


def score_rows(rows: Iterable[Row]) -> None:
    """Write each row's `output` and `per_query`; what is there is checked instead.

    Scores JSON: what `about` holds, and facts; queries (judged), answered, relevance_threshold,
    ignore_identical_ids, score_error, exact_depth, exact_error, default_protocol and protocols:
    {protocol: {metric: {value, ci_low, ci_high, rounding_low, rounding_high}}}, the last two null
    where the error is unknown.
    """
    for row in rows:
        if Path(row.output).exists() and Path(row.per_query).exists():
            read_json(row.output)
            whole(row.per_query)
        else:
            score_row(row)


def score_row(row: Row) -> None:
    judged = Judgements.read(row.qrels)
    names = tuple(dict.fromkeys([row.default_protocol, *row.protocols]))
    settings = protocols.Settings(
        asked=tuple(metrics.parse(name) for name in row.metrics),
        protocols=names,
        dataset=row.about["dataset"] or "",
        drop_identical=row.ignore_identical_ids,
        threshold=row.relevance_threshold,
        top_k=row.top_k,
        score_error=row.score_error,
        exact_depth=row.exact_depth,
        exact_error=row.exact_error,
        documents=row.documents,
    )
    searched = read_ids(row.queries)
    scores = protocols.score_listings(read_listings(row.run), judged, settings, searched)
    default = scores[row.default_protocol]
    with sealed(row.per_query) as temporary:
        temporary.write_text(_per_query_table(default), encoding="utf-8")
    result = dict(row.about) | {
        "facts": dict(row.facts),
        "queries": len(judged),
        "answered": int(default.answered.sum()),
        "relevance_threshold": row.relevance_threshold,
        "ignore_identical_ids": row.ignore_identical_ids,
        "score_error": row.score_error,
        "exact_depth": row.exact_depth,
        "exact_error": row.exact_error,
        "default_protocol": row.default_protocol,
        "protocols": summaries(scores),
    }
    write_record(row.output, result)


def _per_query_table(scores: protocols.Scores) -> str:
    lines = ["query_id\tmetric\tvalue"]
    for query, row in zip(scores.queries, scores.values.tolist(), strict=True):
        lines += [f"{query}\t{m}\t{v!r}" for m, v in zip(scores.measures, row, strict=True)]
    return "\n".join(lines) + "\n"


def summarise(scores: protocols.Scores, protocol: protocols.Protocol) -> dict[str, dict[str, Any]]:
    """`summaries` of one protocol."""
    return summaries({protocol.name: scores})[protocol.name]


def summaries(scores: Mapping[str, protocols.Scores]) -> dict[str, dict[str, dict[str, Any]]]:
    """{protocol: {metric: {value, ci_low, ci_high, rounding_low, rounding_high}}}.

    Means are rounded as the protocol's tool rounds them, the ends of intervals are not.
    """
    tables: dict[int, list[tuple[str, list[int], np.ndarray]]] = {}  # by number of queries
    for name, found in scores.items():
        columns = found.kept(protocols.named(name))
        for size in {len(column) for column in columns}:
            same = [c for c, column in enumerate(columns) if len(column) == size]
            table = np.stack([columns[c] for c in same], axis=1)
            tables.setdefault(size, []).append((name, same, table))
    intervals = {name: np.empty((2, len(found.measures))) for name, found in scores.items()}
    for of_size in tables.values():
        ends = metrics.bootstraps([table for _, _, table in of_size])
        for (name, same, _), end in zip(of_size, ends, strict=True):
            intervals[name][:, same] = end
    return {name: _summary(name, found, intervals[name]) for name, found in scores.items()}


def _summary(name: str, scores: protocols.Scores, interval: np.ndarray) -> dict[str, Any]:
    protocol = protocols.named(name)
    means = _means(scores.kept(protocol))
    if protocol.decimals is not None:
        means = [round(mean, protocol.decimals) for mean in means]
    low, high = (_means(scores.kept(protocol, end)) for end in (scores.low, scores.high))
    ends = [_known(min, low, means), _known(max, high, means)]
    keys = ("value", "ci_low", "ci_high", "rounding_low", "rounding_high")
    lines = zip(means, *interval.tolist(), *ends, strict=True)
    return {
        str(measure): dict(zip(keys, line, strict=True))
        for measure, line in zip(scores.measures, lines, strict=True)
    }


def _known(
    further: Callable[[float, float], float], ends: list[float], means: list[float]
) -> list[float | None]:
    """Ends of intervals that the rounded mean doesn't leave; None: unknown."""
    pairs = zip(ends, means, strict=True)
    return [None if np.isnan(end) else further(end, mean) for end, mean in pairs]


def _means(columns: Sequence[np.ndarray]) -> list[float]:
    return [float(column.sum() / len(column)) if len(column) else 0.0 for column in columns]
