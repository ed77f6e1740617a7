"""Where two models differ most, query by query, small enough to be carried in the page.

For each dataset the page gets a set of queries that holds, for every pair of models, the `rounds`
queries on which one beats the other by most, and as many the other way. Queries and documents are
stored once, however many pairs show them.
"""

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .collect import Column, Report, read_tsv
from .text import one_line

ROUNDS = 20  # at most so many wins and as many losses for each pair
HITS = 3  # documents shown for each model and query
EXCERPTS = (480, 280, 140)  # UTF-8 bytes of a document, the longest that fits is taken
GOOD_ROUNDS = 5  # shorten excerpts rather than show fewer than this
BUDGET = 1_500_000  # bytes of the page for all datasets together


class Differences(NamedTuple):
    """Per-query values of the main metric: `values` float64 [models, queries]; top hits' ids."""

    models: list[int]
    queries: list[str]
    values: np.ndarray
    hits: list[dict[str, list[str]]]


def explore(report: Report) -> list[dict[str, Any] | None]:
    """For each column what the page's explorer needs, or None with fewer than two models."""
    budget = BUDGET // max(1, len(report.columns))
    return [explore_column(report, column, budget) for column in report.columns]


def explore_column(report: Report, column: Column, budget: int) -> dict[str, Any] | None:
    found = read_differences(report, column)
    if len(found.models) < 2 or column.slug not in report.dataset_folders:
        return None
    for excerpt in EXCERPTS:
        chosen, rounds = choose(found, excerpt, budget)
        if rounds >= GOOD_ROUNDS:
            break
    folder = report.dataset_folders[column.slug]
    return packed(found, chosen, rounds, folder, column.split, excerpt)


def read_differences(report: Report, column: Column) -> Differences:
    tables, hits, models = [], [], []
    for index, model in enumerate(report.models):
        key = column.key(model.slug)
        if key in report.per_query and key in report.runs:
            metric = report.metric_name(key, report.main_metric)
            rows = read_tsv(report.per_query[key])
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

    names = ["query", "q0", "document", "rank", "score", "tag"]
    types = {"query": pa.string(), "document": pa.string(), "rank": pa.int32()}
    reader = csv.open_csv(
        run,
        csv.ReadOptions(column_names=names),
        csv.ParseOptions(delimiter=" ", quote_char=False),
        csv.ConvertOptions(
            column_types=types,
            include_columns=list(types),
            null_values=[],
            strings_can_be_null=False,
        ),
    )
    hits: dict[str, list[str]] = {}
    for batch in reader:
        top = batch.filter(pc.less_equal(batch.column("rank"), HITS))
        columns = (top.column(name).to_pylist() for name in ("query", "document"))
        for query, document in zip(*columns, strict=True):
            hits.setdefault(query, []).append(document)
    return hits


def choose(found: Differences, excerpt: int, budget: int) -> tuple[list[int], int]:
    """Columns of `found.values` to carry, and how many whole rounds of wins they hold.

    The first round is taken whatever it weighs.
    """
    chosen: dict[int, None] = {}
    size = 0
    for rounds, picks in enumerate(rounds_of_picks(found.values)):
        fresh = [query for query in dict.fromkeys(picks) if query not in chosen]
        size += sum(weight(found, query, excerpt) for query in fresh)
        if rounds and size > budget:
            return list(chosen), rounds
        chosen.update(dict.fromkeys(fresh))
    return list(chosen), ROUNDS


def rounds_of_picks(values: np.ndarray) -> Iterator[list[int]]:
    """Round r yields, for every ordered pair, the query with the r-th largest difference.

    Among equal differences the queries that all models disagree on most come first, for then many
    pairs share them.
    """
    shared = np.argsort(-values.std(axis=0), kind="stable")
    orders = []
    for a, b in combinations(range(len(values)), 2):
        for difference in (values[a] - values[b], values[b] - values[a]):
            order = shared[np.argsort(-difference[shared], kind="stable")[:ROUNDS]]
            orders.append(order[difference[order] > 0])
    for index in range(ROUNDS):
        yield [int(order[index]) for order in orders if index < len(order)]


def weight(found: Differences, query: int, excerpt: int) -> int:
    """About how many bytes a query takes in the page."""
    name = found.queries[query]
    documents = {document for hits in found.hits for document in hits.get(name, [])}
    return 120 + len(documents) * (excerpt + 16) + 20 * len(found.models)


def packed(
    found: Differences, chosen: list[int], rounds: int, folder: Path, split: str, excerpt: int
) -> dict[str, Any]:
    """The page's form: texts once, models' values in 1/10000, hits as positions (see page.js)."""
    import pyarrow.parquet as pq

    names = [found.queries[query] for query in chosen]
    ids = list(
        dict.fromkeys(d for hits in found.hits for name in names for d in hits.get(name, []))
    )
    place = {document: position for position, document in enumerate(ids)}
    texts = read_texts(folder / "corpus.parquet", set(ids))
    queries = pq.read_table(folder / split / "queries.parquet", columns=["id", "text"])
    asked = dict(zip(queries["id"].to_pylist(), queries["text"].to_pylist(), strict=True))
    better = found.values[:, None, :] > found.values[None, :, :]
    return {
        "rounds": rounds,
        "total": len(found.queries),
        "models": found.models,
        "wins": better.sum(axis=2).tolist(),
        "queries": [[one_line(name), one_line(asked.get(name, ""), 400)] for name in names],
        "documents": [[one_line(d), cut(one_line(texts.get(d, "")), excerpt)] for d in ids],
        "values": np.rint(found.values[:, chosen] * 10_000).astype(int).tolist(),
        "hits": [[[place[d] for d in hits.get(name, [])] for name in names] for hits in found.hits],
        "grades": read_grades(folder / split / "qrels.parquet", names, place),
    }


def cut(text: str, limit: int) -> str:
    """At most `limit` bytes of UTF-8 and an ellipsis."""
    data = text.encode()
    if len(data) <= limit:
        return text
    return data[:limit].decode(errors="ignore").rstrip() + "…"


def read_texts(corpus: Path, ids: set[str]) -> dict[str, str]:
    """Id → title and text of the wanted documents, one row group in memory at a time."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    texts = {}
    wanted = pa.array(sorted(ids), pa.string())
    with pq.ParquetFile(corpus) as file:
        for group in range(file.num_row_groups):
            names = file.read_row_group(group, columns=["id"])["id"]
            mask = pc.is_in(names, value_set=wanted.cast(names.type))
            if not pc.any(mask).as_py():
                continue
            for row in file.read_row_group(group).filter(mask).to_pylist():
                title, text = row["title"] or "", row["text"] or ""
                texts[row["id"]] = f"{title} — {text}" if title and text else title or text
    return texts


def read_grades(qrels: Path, names: list[str], place: dict[str, int]) -> list[dict[int, int]]:
    """For each query the relevance of those shown documents that were judged."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(qrels, columns=["query_id", "doc_id", "relevance"])
    table = table.filter(pc.is_in(table["query_id"], value_set=_strings(names, table)))
    grades: dict[str, dict[int, int]] = {name: {} for name in names}
    for row in table.to_pylist():
        if row["doc_id"] in place:
            grades[row["query_id"]][place[row["doc_id"]]] = row["relevance"]
    return [grades[name] for name in names]


def _strings(names: list[str], table):
    import pyarrow as pa

    return pa.array(names, table["query_id"].type)
