"""Retrieval measures: named as ir-measures names them, computed as trec_eval computes them.

The sums are trec_eval's in the same order (m_ndcg.c, m_ndcg_cut.c, m_map.c, m_map_cut.c,
m_recip_rank.c, m_P.c, m_recall.c, m_success.c of trec_eval 9.0), so values are equal in every bit.
It ranks by score, then by document id, both descending, whatever order a run lists.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import UserError, printable
from ..search.runs import in_parallel, listings_of
from .judgements import Judgements, dcg
from .ranks import Relevant, Rule, blocks

Run = Mapping[str, dict[str, float]]
Qrels = Mapping[str, dict[str, int]]

# family -> whether it has a form without a cut-off
FAMILIES = {
    "nDCG": True,
    "RR": True,
    "R": False,
    "P": False,
    "AP": True,
    "Success": False,
    "R_cap": False,
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
    if not match or forms is None or not (forms or cutoff) or (rel and family == "nDCG"):
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
    if depth or not FAMILIES[name]:
        cutoff = cutoff or (depth[1].lstrip("0") if depth else "") or "10"
    return f", nearest {name}@{cutoff}" if cutoff else f", nearest {name}"


def per_query(qrels: Qrels, run: Run, measures: Sequence[Measure]) -> np.ndarray:
    """Every measure of every judged query.

    Returns float64 (len(qrels), len(measures)), rows in the order of `qrels`. A judged query that
    the run doesn't answer, or that has no relevant document, scores 0.
    """
    judged = Judgements.of_dicts(qrels)
    hits = ((q, list(scores), np.array([*scores.values()], float)) for q, scores in run.items())
    rule = Rule(drop=False, before_cut=False, depth=None, listed=False)
    found = Relevant.joined(b.relevant(rule) for b in blocks(listings_of(hits), judged))
    return values(found, judged, measures)


def values(found: Relevant, judged: Judgements, measures: Sequence[Measure]) -> np.ndarray:
    """`per_query` of a ranking that holds these relevant documents: float64 (queries, measures)."""
    table = np.empty((len(judged), len(measures)))
    for column, measure in enumerate(measures):
        if measure.binary:
            relevant = found.grade >= measure.rel
            table[:, column] = binary(measure, found.query[relevant], found.rank[relevant], judged)
        else:
            table[:, column] = gain(measure, found.query, found.rank, found.grade, judged)
    return table


def gain(
    measure: Measure, query: np.ndarray, rank: np.ndarray, grade: np.ndarray, judged: Judgements
) -> np.ndarray:
    """nDCG (queries): the gain of a grade is the grade. One entry for each relevant hit, sorted."""
    near = rank <= (measure.cutoff or np.inf)
    found = dcg(query[near], rank[near], grade[near], len(judged))
    return share(found, judged.ideal(measure.cutoff))


def binary(measure: Measure, query: np.ndarray, rank: np.ndarray, judged: Judgements) -> np.ndarray:
    """A binary measure (queries); one entry for each relevant hit, sorted by query and rank."""
    k, queries = measure.cutoff or 0, len(judged)  # 0: the family looks at the whole run
    if measure.family in ("RR", "AP"):
        starts = np.searchsorted(query, np.arange(queries))
        number = np.arange(len(query)) - starts[query] + 1  # of relevant hits so far
    near = rank <= (k or np.inf)
    if measure.family == "RR":
        near &= number == 1
        return np.bincount(query[near], 1 / rank[near], minlength=queries)
    relevant = judged.relevant(measure.rel)
    if measure.family == "AP":
        sums = np.bincount(query[near], number[near] / rank[near], minlength=queries)
        return share(sums, relevant)
    count = np.bincount(query[near], minlength=queries)
    if measure.family == "Success":
        return (count > 0).astype(np.float64)
    if measure.family == "P":
        return count / k
    possible = relevant if measure.family == "R" else np.minimum(relevant, k)
    return share(count, possible)  # R_cap is BEIR's


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """`part` / `whole`, 0 where `whole` is 0."""
    found = np.zeros(len(part))
    np.divide(part, whole, out=found, where=whole > 0)
    return found


def bootstrap(
    values: np.ndarray, resamples: int = RESAMPLES, seed: int = SEED, level: float = 0.95
) -> np.ndarray:
    """Percentile bootstrap interval of each column's mean over queries (Efron, 1979).

    `values` is float64 (queries, measures); returns (2, measures): lower and upper end. The same
    resampled queries serve every column. Memory stays near 100 MB for any number of queries.
    """
    return bootstraps([values], resamples, seed, level)[0]


def bootstraps(
    tables: Sequence[np.ndarray], resamples: int = RESAMPLES, seed: int = SEED, level: float = 0.95
) -> list[np.ndarray]:
    """`bootstrap` of tables with the same number of queries, drawn once for all of them."""
    queries = len(tables[0])
    if queries == 0:
        return [np.zeros((2, table.shape[1])) for table in tables]
    different = {table.tobytes(): table for table in tables}  # protocols often agree

    def means(drawn: np.ndarray) -> list[np.ndarray]:
        counts = _counts(drawn)
        return [counts @ table / queries for table in different.values()]

    parts = zip(*in_parallel(means, _draws(queries, resamples, seed)), strict=True)
    tail = 50 * (1 - level)
    ends = [np.percentile(np.concatenate(part), [tail, 100 - tail], axis=0) for part in parts]
    of = dict(zip(different, ends, strict=True))
    return [of[table.tobytes()] for table in tables]


def _draws(queries: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Resamples some at a time: int32 (rows, queries)."""
    rng = np.random.default_rng(seed)
    block = max(1, 2_000_000 // queries)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        yield rng.integers(0, queries, size=(rows, queries), dtype=np.int32)


def _counts(drawn: np.ndarray) -> np.ndarray:
    """How often each resample has each query: float64, shape of `drawn`."""
    counts = np.empty(drawn.shape)
    for row, of_row in zip(counts, drawn, strict=True):
        row[:] = np.bincount(of_row, minlength=drawn.shape[1])
    return counts
