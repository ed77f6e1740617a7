"""Which differences between models are more than luck: paired tests over the same queries.

Two-sided Fisher randomisation test on the mean difference (Smucker, Allan and Carterette, CIKM
2007), Holm's correction (1979) over all pairs of one dataset and metric, and a compact letter
display (Piepho, 2004): models that share a letter do not differ significantly.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..files import whole

ALPHA = 0.05
EXACT_UP_TO = 16  # non-zero differences: 65,536 sign patterns are enumerated, not sampled
SAMPLES = 20_000
SEED = 20_240_501
EXTREMES = 5  # queries named at either end of a pair's differences


def randomisation_test(
    differences: np.ndarray, samples: int = SAMPLES, seed: int = SEED
) -> np.ndarray:
    """Two-sided p-value of each column of `differences`, float64 (queries, pairs) -> (pairs).

    Under the null hypothesis the sign of every query's difference is a coin toss. A column with at
    most `EXACT_UP_TO` non-zero differences is tested exactly; the others with the same `samples`
    random sign patterns, p = (1 + as extreme) / (1 + samples) (Phipson and Smyth, 2010).
    """
    differences = np.asarray(differences, dtype=np.float64)
    counts = np.count_nonzero(differences, axis=0)
    p = np.ones(differences.shape[1])
    for column in np.flatnonzero((counts > 0) & (counts <= EXACT_UP_TO)):
        p[column] = _exact(differences[:, column])
    sampled = np.flatnonzero(counts > EXACT_UP_TO)
    if len(sampled):
        p[sampled] = _sampled(differences[:, sampled], samples, seed)
    return p


def _exact(differences: np.ndarray) -> float:
    sums = np.zeros(1)
    for value in differences[differences != 0]:
        sums = np.concatenate([sums + value, sums - value])
    return float(np.mean(np.abs(sums) >= _bar(differences)))


def _sampled(differences: np.ndarray, samples: int, seed: int) -> np.ndarray:
    queries, pairs = differences.shape
    rng = np.random.default_rng(seed)
    bars = np.array([_bar(column) for column in differences.T])
    extreme = np.zeros(pairs)
    block = max(1, 4_000_000 // queries)
    for start in range(0, samples, block):
        rows = min(block, samples - start)
        heads = rng.integers(0, 2, size=(rows, queries), dtype=np.int8)
        signs = heads.astype(np.float64) * 2 - 1
        extreme += (np.abs(signs @ differences) >= bars).sum(axis=0)
    return (1 + extreme) / (1 + samples)


def _bar(differences: np.ndarray) -> float:
    """The observed |sum|, less what rounding may take from an equal one."""
    return abs(differences.sum()) - 1e-12 * np.abs(differences).sum()


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's adjusted p-values (step-down Bonferroni), in the order given."""
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


def letters(models: Sequence[str], different: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Compact letter display: two models share a letter unless they are in `different`.

    `models` come best first, so that "a" is the best group. Insert and absorb (Piepho, 2004).
    """
    groups = [frozenset(models)] if models else []
    for one, other in different:
        split = []
        for group in groups:
            split += [group - {one}, group - {other}] if {one, other} <= group else [group]
        split = list(dict.fromkeys(split))
        groups = [group for group in split if not any(group < larger for larger in split)]
    place = {model: rank for rank, model in enumerate(models)}
    groups.sort(key=lambda group: sorted(place[model] for model in group))
    return {m: "".join(_letter(i) for i, group in enumerate(groups) if m in group) for m in models}


def _letter(index: int) -> str:
    """a … z, then a1 … z1, a2 …"""
    turn, place = divmod(index, 26)
    return chr(ord("a") + place) + (str(turn) if turn else "")


def read_per_query(path: Path | str) -> dict[str, dict[str, float]]:
    """{metric: {query id: value}} of a table that `scoring.score_run` wrote."""
    table: dict[str, dict[str, float]] = {}
    with open(whole(path), encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        if reader.fieldnames != ["query_id", "metric", "value"]:
            raise UserError(f"{path}: wants the columns query_id metric value, tab-separated")
        for row in reader:
            table.setdefault(row["metric"], {})[row["query_id"]] = float(row["value"])
    return table


def compare_rows(rows: Iterable[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Every comparison of rows with `dataset`, `split`, `model` and `per_query`, a table's path.

    One entry for each dataset, split and metric with two models or more: see `compare`.
    """
    places: dict[tuple[str, str], dict[str, Path]] = {}
    for row in rows:
        place = places.setdefault((row["dataset"], row["split"]), {})
        place[row["model"]] = Path(row["per_query"])
    results = []
    for (dataset, split), tables in places.items():
        if len(tables) < 2:
            continue
        values = {model: read_per_query(path) for model, path in tables.items()}
        for metric in next(iter(values.values())):
            scores = {model: table[metric] for model, table in values.items() if metric in table}
            if len(scores) > 1:
                where = {"dataset": dataset, "split": split, "metric": metric}
                results.append(where | compare(scores, f"{dataset}/{split}"))
    return results


def compare(scores: Mapping[str, Mapping[str, float]], where: str) -> dict[str, Any]:
    """Compare every pair of models on one metric.

    `scores` is {model: {query id: value}}, the same queries for each, else `UserError`. Returns
    test, alpha, queries, models (best mean first), means, letters, and pairs: a (the better), b,
    delta (mean of a - b), p, p_holm, significant, wins, losses, ties (queries), largest_wins and
    largest_losses ([query id, difference]).
    """
    queries = list(next(iter(scores.values())))
    for model, values in scores.items():
        if values.keys() != set(queries):
            raise UserError(
                f"{where}: {model} was scored on other queries than {next(iter(scores))}"
            )
    columns = {model: np.array([scores[model][q] for q in queries]) for model in scores}
    models = sorted(scores, key=lambda model: (-columns[model].mean(), model))
    pairs = list(combinations(models, 2))
    differences = np.stack([columns[a] - columns[b] for a, b in pairs], axis=1)
    p = randomisation_test(differences)
    adjusted = holm(p)
    different = [pair for pair, value in zip(pairs, adjusted, strict=True) if value < ALPHA]
    return {
        "test": "two-sided paired randomisation test, Holm-corrected over all pairs",
        "alpha": ALPHA,
        "queries": len(queries),
        "models": models,
        "means": {model: float(columns[model].mean()) for model in models},
        "letters": letters(models, different),
        "pairs": [
            {"a": a, "b": b, "p": float(p[i]), "p_holm": float(adjusted[i])}
            | {"significant": bool(adjusted[i] < ALPHA)}
            | topic_differences(queries, differences[:, i])
            for i, (a, b) in enumerate(pairs)
        ],
    }


def topic_differences(queries: Sequence[str], differences: np.ndarray) -> dict[str, Any]:
    """Mean difference, queries won, lost and tied, and the queries that differ most."""
    order = np.argsort(-differences, kind="stable")
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    best, worst = order[: min(EXTREMES, wins)], order[::-1][: min(EXTREMES, losses)]
    return {
        "delta": float(differences.mean()),
        "wins": wins,
        "losses": losses,
        "ties": len(queries) - wins - losses,
        "largest_wins": [[queries[i], float(differences[i])] for i in best],
        "largest_losses": [[queries[i], float(differences[i])] for i in worst],
    }
