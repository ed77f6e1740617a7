"""Retrieval measures: named as ir-measures names them, computed by trec_eval (pytrec_eval).

A run is `{query id: {document id: score}}`, judgements are `{query id: {document id: grade}}`.
trec_eval ranks by score, then by document id, both descending, whatever order a run lists.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import UserError, printable

Run = Mapping[str, dict[str, float]]
Qrels = Mapping[str, dict[str, int]]

# family -> (trec_eval's name without a cut-off, with one); None: the family has no such form
FAMILIES: dict[str, tuple[str | None, str | None]] = {
    "nDCG": ("ndcg", "ndcg_cut"),
    "RR": ("recip_rank", "recip_rank"),
    "R": (None, "recall"),
    "P": (None, "P"),
    "AP": ("map", "map_cut"),
    "Success": (None, "success"),
    "R_cap": (None, "P"),
}
ALLOWED = "nDCG, nDCG@k, RR, RR@k, AP, AP@k, R@k, P@k, Success@k, R_cap@k, binary ones with (rel=n)"
RESAMPLES = 10_000
SEED = 20_240_501  # any fixed number: the same run gives the same interval


@dataclass(frozen=True)
class Measure:
    """One measure: its family, how deep it looks (None: the whole run) and, for binary families,
    the lowest grade that counts as relevant. `str()` prints ir-measures' name of it."""

    family: str
    cutoff: int | None = None
    rel: int = 1

    @property
    def binary(self) -> bool:
        return self.family != "nDCG"

    def with_rel(self, rel: int) -> "Measure":
        """The same measure under another binary threshold; nDCG uses all grades and stays."""
        return replace(self, rel=rel) if self.binary else self

    def __str__(self) -> str:
        rel = "" if self.rel == 1 else f"(rel={self.rel})"
        return f"{self.family}{rel}" + ("" if self.cutoff is None else f"@{self.cutoff}")


def parse(name: str) -> Measure:
    """The measure that `name` means; `UserError` names the nearest and the allowed forms."""
    match = re.fullmatch(r"([A-Za-z_]+)(?:\(rel=([1-9]\d*)\))?(?:@([1-9]\d*))?", name)
    family, rel, cutoff = match.groups() if match else (name, None, None)
    forms = FAMILIES.get(family)
    if (
        not match
        or forms is None
        or forms[cutoff is not None] is None
        or (rel and family == "nDCG")
    ):
        raise UserError(
            f"unknown metric {printable(repr(name))}{_nearest(family, cutoff)}; allowed: {ALLOWED}"
        )
    return Measure(family, int(cutoff) if cutoff else None, int(rel or 1))


ALIASES = {  # as trec_eval, BEIR and others call them
    **{"mrr": "RR", "recip_rank": "RR", "reciprocal_rank": "RR", "map": "AP", "map_cut": "AP"},
    **{"ndcg_cut": "nDCG", "recall": "R", "precision": "P", "hit": "Success", "hits": "Success"},
    **{"hit_rate": "Success", "accuracy": "Success", "recall_cap": "R_cap"},
}


DEPTH = re.compile(r"[@_. -]?(?:at|cut)?[@_. -]?(\d+)$")  # at the end of such a name


def _nearest(family: str, cutoff: str | None) -> str:
    folded = {name.lower(): name for name in FAMILIES} | ALIASES
    stem, depth = DEPTH.sub("", family.lower()), DEPTH.search(family.lower())
    close = [stem] if stem in folded else difflib.get_close_matches(stem, folded, 1, 0.5)
    if not close:
        return ""
    name = folded[close[0]]
    if depth or FAMILIES[name][0] is None:
        cutoff = cutoff or (depth[1].lstrip("0") if depth else "") or "10"
    return f", nearest {name}@{cutoff}" if cutoff else f", nearest {name}"


def per_query(qrels: Qrels, run: Run, measures: Sequence[Measure]) -> np.ndarray:
    """Every measure of every judged query.

    Returns float64 (len(qrels), len(measures)), rows in the order of `qrels`. A judged query that
    the run doesn't answer, or that has no relevant document, scores 0.
    """
    values = np.zeros((len(qrels), len(measures)))
    answered = [(row, query) for row, query in enumerate(qrels) if query in run]
    for rel in sorted({measure.rel for measure in measures}):
        columns = [(c, m) for c, m in enumerate(measures) if m.rel == rel]
        scores = _trec_eval(qrels, run, [measure for _, measure in columns], rel)
        for row, query in answered:
            for column, measure in columns:
                values[row, column] = _value(measure, scores[query])
    return values


def _trec_eval(qrels: Qrels, run: Run, measures: Iterable[Measure], rel: int) -> dict:
    import pytrec_eval

    wanted = {"num_rel"}
    for measure in measures:
        plain, cut = FAMILIES[measure.family]
        deep = measure.cutoff is not None and cut != "recip_rank"
        wanted.add(f"{cut}.{measure.cutoff}" if deep else plain or "recip_rank")
    # A grade below 0 counts as 0 in every measure here, but trec_eval's ndcg reads past its table
    # of gains, and may never return, when a query has no other grade.
    judged = {q: {d: max(g, 0) for d, g in qrels[q].items()} for q in qrels if q in run}
    ranked = {query: run[query] for query in judged}
    return pytrec_eval.RelevanceEvaluator(judged, wanted, relevance_level=rel).evaluate(ranked)


def _value(measure: Measure, scores: Mapping[str, float]) -> float:
    plain, cut = FAMILIES[measure.family]
    k = measure.cutoff
    if measure.family == "RR":
        found = scores["recip_rank"]
        return found if found and (k is None or round(1 / found) <= k) else 0.0
    if measure.family == "R_cap":  # BEIR's: |relevant in the top k| / min(k, |relevant|)
        possible = min(k, scores["num_rel"])
        return round(scores[f"P_{k}"] * k) / possible if possible else 0.0
    return scores[plain if k is None else f"{cut}_{k}"]


def bootstrap(
    values: np.ndarray, resamples: int = RESAMPLES, seed: int = SEED, level: float = 0.95
) -> np.ndarray:
    """Percentile bootstrap interval of each column's mean over queries (Efron, 1979).

    `values` is float64 (queries, measures); returns (2, measures): lower and upper end. The same
    resampled queries serve every column. Memory stays near 40 MB for any number of queries.
    """
    queries, width = values.shape
    if queries == 0:
        return np.zeros((2, width))
    rng = np.random.default_rng(seed)
    means = np.empty((resamples, width))
    block = max(1, 2_000_000 // queries)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = rng.integers(0, queries, size=(rows, queries), dtype=np.int32)
        drawn += np.arange(rows, dtype=np.int32)[:, None] * queries
        counts = np.bincount(drawn.ravel(), minlength=rows * queries).reshape(rows, queries)
        means[start : start + rows] = counts @ values / queries
    tail = 50 * (1 - level)
    return np.percentile(means, [tail, 100 - tail], axis=0)
