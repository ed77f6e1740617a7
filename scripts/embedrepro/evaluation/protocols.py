"""How each tool turns one run file into numbers, so that like is compared with like.

The run file keeps a hit that carries the query's own id, so that each protocol can treat it by its
rule; one that drops it before the cut needs a run one hit deeper.

Read in: trec_eval's flags in `pyserini/2cr/{msmarco,beir}.py` (Pyserini 0a0be29),
`mteb/_evaluators/retrieval_{evaluator,metrics}.py` (mteb 2.26.24), `beir/retrieval/evaluation.py`
and `custom_metrics.py` (beir 2.2.0), `FlagEmbedding/abc/evaluation/{searcher,utils}.py` (1.4.2).
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any

import numpy as np

from ..errors import UserError, printable
from . import metrics
from .metrics import Measure

DEFAULT = "trec_eval"
BLOCK = 256  # queries scored at once: 256 x 1000 hits are some 50 MB of Python objects


@dataclass(frozen=True)
class Protocol:
    """One tool's rules.

    identical_ids: (pattern of dataset names, drop the hit whose id is the query's?), the first
        that matches counts; None: as the dataset's entry says.
    before_cut: it goes before the ranking is cut to `depth`, so that the next hit moves up.
    threshold: lowest relevant grade of binary measures; None: the dataset's, or a metric's own.
    searched: families averaged over the queries that were searched, not over all judged ones.
    listed: families whose ties keep the run file's order; the rest rank as trec_eval does.
    decimals: means are rounded to so many; None: not at all.
    depth: hits that count, whatever the run holds; None: as many as the search was asked for.
    encoding: what this tool feeds the model unless a row of `published.tsv` says otherwise.
    """

    name: str
    identical_ids: tuple[tuple[str, bool | None], ...]
    before_cut: bool
    threshold: int | None
    searched: frozenset[str]
    listed: frozenset[str]
    decimals: int | None
    encoding: Mapping[str, Any]
    depth: int | None = 1000

    def measure(self, asked: Measure, dataset_threshold: int) -> Measure:
        """What this protocol computes when `asked`: the name states the threshold it uses."""
        if self.threshold is not None:
            return asked.with_rel(self.threshold)
        return asked if asked.rel != 1 else asked.with_rel(dataset_threshold)

    def drops(self, dataset: str, entry: bool) -> bool:
        """Whether hits with the query's id go; `entry` is what the dataset's own entry says."""
        rule = next(drop for name, drop in self.identical_ids if fnmatchcase(dataset, name))
        return entry if rule is None else rule


# Tasks whose class in mteb 2.26.24 sets ignore_identical_ids, and the families it leaves alone.
_MTEB_DROPS = (
    "msmarco-passage",
    *(f"beir/{name}" for name in ("arguana", "fiqa", "fever", "quora")),
    *(f"cmteb/{name}Retrieval" for name in ("T2", "MMarco", "Ecom", "Medical", "Video")),
)
_MTEB_KEEPS = ("beir/*", "cmteb/*", "xquad/*", "miracl/*", "mrtydi/*", "mldr/*", "bright/*")

_ALL = frozenset(metrics.FAMILIES)
_NONE: frozenset[str] = frozenset()
_TOOLS = (
    # Ours: trec_eval -c; the dataset's entry decides on identical ids and the threshold.
    Protocol(
        name=DEFAULT,
        identical_ids=(("*", None),),
        before_cut=True,
        threshold=None,
        searched=_NONE,
        listed=_NONE,
        decimals=None,
        encoding={},
        depth=None,
    ),
    # Drops where the task's class says so, in the evaluator, so after the search's top 1000.
    Protocol(
        name="mteb",
        identical_ids=(
            *((name, True) for name in _MTEB_DROPS),
            *((name, False) for name in _MTEB_KEEPS),
            ("*", None),
        ),
        before_cut=False,
        threshold=1,
        searched=_ALL,
        listed=_NONE,
        decimals=5,
        encoding={},
    ),
    # trec_eval -c, -l 2 on TREC DL; --remove-query, which drops from the hits that were searched
    # (pyserini/search/faiss/__main__.py), on BEIR and BRIGHT, not on MS MARCO.
    Protocol(
        name="pyserini",
        identical_ids=(
            ("beir/*", True),
            ("cqadupstack/*", True),
            ("bright/*", True),
            ("*", False),
        ),
        before_cut=False,
        threshold=None,
        searched=_NONE,
        listed=_NONE,
        decimals=4,
        encoding={},
    ),
    # Its script for BEIR drops identical ids, after the search; the others keep them. MRR and
    # capped recall sort by score alone (stable) and are means over all queries. Its MS MARCO
    # corpus has titles added, and it joins titles and cuts at 512 tokens unless told otherwise.
    Protocol(
        name="flagembedding",
        identical_ids=(("beir/*", True), ("cqadupstack/*", True), ("*", False)),
        before_cut=False,
        threshold=1,
        searched=_ALL - {"RR", "R_cap"},
        listed=frozenset({"RR", "R_cap"}),
        decimals=5,
        encoding={"title": "join", "max_length": {"query": 512, "passage": 512}},
    ),
    # Always drops, while the heap of the top k fills.
    Protocol(
        name="beir",
        identical_ids=(("*", True),),
        before_cut=True,
        threshold=1,
        searched=_ALL - {"RR", "R_cap", "Success"},
        listed=frozenset({"RR", "R_cap", "Success"}),
        decimals=5,
        encoding={},
    ),
)
PROTOCOLS = {protocol.name: protocol for protocol in _TOOLS}


def named(name: str) -> Protocol:
    if name not in PROTOCOLS:
        raise UserError(
            f"unknown protocol {printable(repr(name))}; allowed: {', '.join(PROTOCOLS)}"
        )
    return PROTOCOLS[name]


def ranking(
    query: str, scores: dict[str, float], protocol: Protocol, drop: bool, top_k: int | None = None
) -> dict[str, float]:
    """What the protocol scores of `scores`, which come best first: {document id: score}."""
    own = drop and query in scores
    keep = protocol.depth or top_k
    if own and protocol.before_cut and keep is not None:
        keep += query in islice(scores, keep)
    if own or (keep is not None and len(scores) > keep):
        return {
            doc: score for doc, score in islice(scores.items(), keep) if not own or doc != query
        }
    return scores


def best_first(scores: dict[str, float]) -> dict[str, float]:
    """The same hits by score descending, ties in the order given."""
    values = np.fromiter(scores.values(), np.float64, len(scores))
    if (values[1:] <= values[:-1]).all():
        return scores
    return dict(sorted(scores.items(), key=lambda hit: -hit[1]))


@dataclass(frozen=True)
class Scores:
    """values: float64 (queries, measures); searched, answered: bool (queries); in `queries`' order.

    A query may be searched and find nothing: it isn't in the run, and still counts for every tool.
    """

    queries: list[str]
    measures: list[Measure]
    values: np.ndarray
    searched: np.ndarray
    answered: np.ndarray

    def kept(self, protocol: Protocol) -> list[np.ndarray]:
        """For each measure the values that its mean is over."""
        return [
            self.values[self.searched | self.answered, column]
            if measure.family in protocol.searched
            else self.values[:, column]
            for column, measure in enumerate(self.measures)
        ]


def score(
    run: Iterable[tuple[str, dict[str, float]]],
    qrels: metrics.Qrels,
    asked: Sequence[Measure],
    names: Sequence[str],
    dataset: str = "",
    drop_identical: bool = False,
    threshold: int = 1,
    top_k: int | None = None,
    searched: Collection[str] = (),
) -> dict[str, Scores]:
    """Score a run under each protocol in `names`, in one pass over it.

    `run` yields (query id, {document id: score}), as `runs.iter_listed` does; queries without
    judgements are passed over, as trec_eval does. `drop_identical` and `threshold` are what the
    entry of `dataset` says; `top_k` is the depth of a protocol that names none (None: the run's);
    `searched` are queries that were searched even if the run has no hit for them.
    """
    index = {query: row for row, query in enumerate(qrels)}
    results = {}
    for name in names:
        protocol = named(name)
        measures = list(dict.fromkeys(protocol.measure(m, threshold) for m in asked))
        values = np.zeros((len(qrels), len(measures)))
        known = np.array([query in searched for query in qrels], bool)
        answered = np.zeros(len(qrels), bool)
        results[name] = Scores(list(qrels), measures, values, known, answered)
    judged = ((query, best_first(scores)) for query, scores in run if query in index)
    while block := dict(islice(judged, BLOCK)):
        rows = [index[query] for query in block]
        grades = {query: qrels[query] for query in block}
        for name, result in results.items():
            protocol = PROTOCOLS[name]
            drop = protocol.drops(dataset, drop_identical)
            ranked = {q: ranking(q, hits, protocol, drop, top_k) for q, hits in block.items()}
            result.values[rows] = _score_block(grades, ranked, result.measures, protocol)
            result.answered[rows] = True
    return results


def _score_block(
    qrels: metrics.Qrels, run: metrics.Run, measures: Sequence[Measure], protocol: Protocol
) -> np.ndarray:
    """float64 (queries, measures) of one block of queries."""
    values = np.empty((len(qrels), len(measures)))
    listed = [c for c, measure in enumerate(measures) if measure.family in protocol.listed]
    others = [c for c in range(len(measures)) if c not in listed]
    if others:
        values[:, others] = metrics.per_query(qrels, run, [measures[c] for c in others])
    if listed:  # a score for each rank leaves trec_eval no ties to break
        run = {q: {doc: -rank for rank, doc in enumerate(hits)} for q, hits in run.items()}
        values[:, listed] = metrics.per_query(qrels, run, [measures[c] for c in listed])
    return values
