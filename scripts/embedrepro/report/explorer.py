"""Where two models differ most, query by query, small enough to be carried in the page.

For each dataset the page gets a set of queries that holds, for every pair of models, the `rounds`
queries on which one beats the other by most, and as many the other way. Queries and documents are
stored once, however many pairs show them, and each dataset is compressed by itself, so that the
page opens fast and unpacks what the reader asks for.
"""

import base64
import gzip
import json
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..files import whole
from .collect import Column, Report, read_tsv
from .text import one_line

HITS = 3  # documents shown for each model and query
# (wins and losses of each pair, UTF-8 bytes of each document); the first that fits is taken
PLANS = ((20, 480), (20, 280), (10, 280), (5, 280), (5, 140), (2, 140), (1, 140), (1, 0))
ROUNDS = PLANS[0][0]
BUDGET = 1_500_000  # bytes of the page for all datasets together


class Differences(NamedTuple):
    """What the choice is made from, for one dataset.

    models: positions in the report; queries: ids; values: float64 (models, queries) of the main
    metric; hits: for each model, query id → ids of its first documents.
    """

    models: list[int]
    queries: list[str]
    values: np.ndarray
    hits: list[dict[str, list[str]]]


class Texts(NamedTuple):
    """Texts of queries and documents by id, and query id → document id → relevance."""

    queries: dict[str, str]
    documents: dict[str, str]
    grades: dict[str, dict[str, int]]


def explore(report: Report) -> list[str | None]:
    """For each column its data as base64 of gzip of JSON, or None with fewer than two models."""
    budget = BUDGET // max(1, len(report.columns))
    return [explore_column(report, column, budget) for column in report.columns]


def explore_column(report: Report, column: Column, budget: int) -> str | None:
    found = read_differences(report, column)
    if len(found.models) < 2 or column.slug not in report.texts:
        return None
    orders = largest_differences(found.values)
    texts = read_texts(report, found, chosen(orders, ROUNDS), column)
    holm = adjusted_p(report, column, found.models)
    for rounds, excerpt in PLANS:
        entry = packed(found, texts, chosen(orders, rounds), excerpt)
        data = compress(entry | {"rounds": rounds, "holm": holm})
        if len(data) <= budget:
            break
    return data


def compress(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def read_differences(report: Report, column: Column) -> Differences:
    tables, hits, models = [], [], []
    for index, model in enumerate(report.models):
        key = column.key(model.slug)
        if key in report.per_query and key in report.runs:
            metric = report.metric_name(key, report.main_metric)
            rows = read_tsv(whole(report.per_query[key]).read_text(encoding="utf-8"))
            values = {r["query_id"]: float(r["value"]) for r in rows if r["metric"] == metric}
            models.append(index)
            tables.append(values)
            hits.append(top_hits(report.runs[key]))
    queries = list(dict.fromkeys(query for values in tables for query in values))
    # A query that a model has no value for was not answered: it scores 0, as in the mean.
    matrix = [[values.get(query, 0.0) for query in queries] for values in tables]
    return Differences(models, queries, np.array(matrix), hits)


def top_hits(run: Path) -> dict[str, list[str]]:
    """Query id → ids of its first `HITS` documents, from a TREC run, in bounded memory."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import csv

    types = {"query": pa.string(), "document": pa.string(), "rank": pa.int32()}
    reader = csv.open_csv(
        run,
        csv.ReadOptions(column_names=["query", "q0", "document", "rank", "score", "tag"]),
        csv.ParseOptions(delimiter=" ", quote_char=False),
        csv.ConvertOptions(column_types=types, include_columns=list(types)),
    )
    hits: dict[str, list[str]] = {}
    for batch in reader:
        top = batch.filter(pc.less_equal(batch.column("rank"), HITS))
        columns = (top.column(name).to_pylist() for name in ("query", "document"))
        for query, document in zip(*columns, strict=True):
            hits.setdefault(query, []).append(document)
    return hits


def largest_differences(values: np.ndarray) -> list[np.ndarray]:
    """For each ordered pair of models the `ROUNDS` queries that the first wins by most.

    Among equal differences the queries that all models disagree on most come first, for then many
    pairs share them.
    """
    shared = np.argsort(-values.std(axis=0), kind="stable")
    orders = []
    for a, b in combinations(range(len(values)), 2):
        for difference in (values[a] - values[b], values[b] - values[a]):
            order = shared[np.argsort(-difference[shared], kind="stable")[:ROUNDS]]
            orders.append(order[difference[order] > 0])
    return orders


def chosen(orders: list[np.ndarray], rounds: int) -> list[int]:
    """The queries that stand among the first `rounds` of any pair."""
    return sorted({int(query) for order in orders for query in order[:rounds]})


def packed(found: Differences, texts: Texts, chosen: list[int], excerpt: int) -> dict[str, Any]:
    """The page's form: texts once, values in 1/10000, hits as positions (read by page.js)."""
    names = [found.queries[query] for query in chosen]
    ids = list(
        dict.fromkeys(d for name in names for hits in found.hits for d in hits.get(name, []))
    )
    place = {document: position for position, document in enumerate(ids)}
    better = found.values[:, None, :] > found.values[None, :, :]
    return {
        "total": len(found.queries),
        "models": found.models,
        "wins": better.sum(axis=2).tolist(),
        "queries": [[one_line(name), one_line(texts.queries.get(name, ""), 400)] for name in names],
        "documents": [
            [one_line(d), cut(one_line(texts.documents.get(d, "")), excerpt)] for d in ids
        ],
        "values": np.rint(found.values[:, chosen] * 10_000).astype(int).tolist(),
        "hits": [[[place[d] for d in hits.get(name, [])] for name in names] for hits in found.hits],
        "grades": [
            {place[d]: grade for d, grade in texts.grades.get(name, {}).items() if d in place}
            for name in names
        ],
    }


def cut(text: str, limit: int) -> str:
    """At most `limit` bytes of UTF-8 and an ellipsis."""
    data = text.encode()
    if len(data) <= limit:
        return text
    return data[:limit].decode(errors="ignore").rstrip() + "…"


def adjusted_p(report: Report, column: Column, models: list[int]) -> list[list[float | None]]:
    """Holm-adjusted p-value of each pair of models on the main metric; None: not tested."""
    names = [report.models[index].slug for index in models]
    entry = report.comparison(column.key(names[0]), report.main_metric) or {"pairs": []}
    found = {frozenset((pair["a"], pair["b"])): pair["p_holm"] for pair in entry["pairs"]}
    return [[rounded(found.get(frozenset((one, other)))) for other in names] for one in names]


def rounded(p: float | None) -> float | None:
    return None if p is None else float(f"{p:.3g}")


def read_texts(report: Report, found: Differences, chosen: list[int], column: Column) -> Texts:
    """Texts and judgements that the chosen queries need."""
    import pyarrow.parquet as pq

    names = [found.queries[query] for query in chosen]
    ids = {document for name in names for hits in found.hits for document in hits.get(name, [])}
    split = report.spec["splits"][column.slug][column.split]
    queries = pq.ParquetFile(whole(split["queries"])).read(["id", "text"])
    return Texts(
        queries=dict(zip(queries["id"].to_pylist(), queries["text"].to_pylist(), strict=True)),
        documents=read_documents(report.texts[column.slug], ids),
        grades=read_grades(Path(split["qrels"]), names),
    )


def read_documents(corpus: Path, ids: set[str]) -> dict[str, str]:
    """Id → title and text of the wanted documents, one row group in memory at a time."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    texts = {}
    wanted = pa.array(sorted(ids), pa.string())
    with pq.ParquetFile(whole(corpus)) as file:
        for group in range(file.num_row_groups):
            names = file.read_row_group(group, columns=["id"])["id"]
            mask = pc.is_in(names, value_set=wanted.cast(names.type))
            if not pc.any(mask).as_py():
                continue
            rows = file.read_row_group(group, columns=["id", "title", "text"]).filter(mask)
            for row in rows.to_pylist():
                texts[row["id"]] = " — ".join(filter(None, (row["title"], row["text"])))
    return texts


def read_grades(qrels: Path, names: list[str]) -> dict[str, dict[str, int]]:
    """Query id → document id → relevance, of the named queries."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.ParquetFile(whole(qrels)).read(["query_id", "doc_id", "relevance"])
    wanted = pa.array(names, table["query_id"].type)
    grades: dict[str, dict[str, int]] = {}
    for row in table.filter(pc.is_in(table["query_id"], value_set=wanted)).to_pylist():
        grades.setdefault(row["query_id"], {})[row["doc_id"]] = row["relevance"]
    return grades
