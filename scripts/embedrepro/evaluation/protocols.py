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
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import UserError, printable
from ..search.runs import Listing, listings_of
from . import metrics
from .judgements import Judgements
from .metrics import Measure
from .ranks import Block, Relevant, Rule, blocks
from .rounding import Interval

DEFAULT = "trec_eval"


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

    def rules(self, drop: bool, top_k: int | None) -> tuple[Rule, Rule]:
        """Which hits count: for the families whose ties trec_eval orders, and for `listed`."""
        depth = self.depth or top_k
        trec, listed = (Rule(drop, self.before_cut, depth, listed) for listed in (False, True))
        return trec, listed


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


@dataclass(frozen=True)
class Scores:
    """values: float64 (queries, measures); searched, answered: bool (queries); in `queries`' order.

    A query may be searched and find nothing: it isn't in the run, and still counts for every tool.
    low, high: what the values could be if each score moved by the error that was given; NaN where
    none was.
    """

    queries: list[str]
    measures: list[Measure]
    values: np.ndarray
    searched: np.ndarray
    answered: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def kept(self, protocol: Protocol, values: np.ndarray | None = None) -> list[np.ndarray]:
        """For each measure the values that its mean is over."""
        values = self.values if values is None else values
        return [
            values[self.searched | self.answered, column]
            if measure.family in protocol.searched
            else values[:, column]
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
    """`score_listings` of (query id, {document id: score}), as `runs.iter_listed` yields them."""
    hits = ((q, list(scores), np.array([*scores.values()], float)) for q, scores in run)
    settings = Settings(tuple(asked), tuple(names), dataset, drop_identical, threshold, top_k)
    known = pa.array(searched, pa.large_string())
    return score_listings(listings_of(hits), Judgements.of_dicts(qrels), settings, known)


@dataclass(frozen=True)
class Settings:
    """What is computed from a run.

    asked, protocols: measures, and names of protocols. drop_identical, threshold: what the entry of
    `dataset` says. top_k: the depth of a protocol that names none (None: the run's). score_error:
    how much rounding may have moved each score (None: unknown); in a refined run those of the first
    `exact_depth` hits, and of all that may belong there, moved by `exact_error` at most. documents:
    of the corpus (None: unknown, more than a query finds).
    """

    asked: tuple[Measure, ...]
    protocols: tuple[str, ...]
    dataset: str = ""
    drop_identical: bool = False
    threshold: int = 1
    top_k: int | None = None
    score_error: float | None = None
    exact_depth: int = 0
    exact_error: float = 0.0
    documents: int | None = None

    def error_of(self, measure: Measure, drop: bool) -> float | None:
        """How much rounding may have moved the scores that `measure` reads."""
        reads = np.inf if measure.cutoff is None else measure.cutoff + drop
        return self.exact_error if reads <= self.exact_depth else self.score_error


def score_listings(
    run: Iterable[Listing], judged: Judgements, settings: Settings, searched: pa.Array
) -> dict[str, Scores]:
    """Score a run under each protocol, in one pass over it.

    Queries without judgements are passed over, as trec_eval does; `searched` are queries that were
    searched even if the run has no hit for them.
    """
    tables = [_Table(named(name), judged, settings) for name in settings.protocols]
    answered = np.zeros(len(judged), bool)
    for block in blocks(run, judged):
        answered[block.rows[block.rows >= 0]] = True
        for table in tables:
            table.add(block)
    known = np.isin(judged.queries.to_pylist(), searched.to_pylist())
    queries = judged.queries.to_pylist()
    return {table.protocol.name: table.scores(queries, known, answered) for table in tables}


class _Table:
    """What one protocol computes, while blocks of the run pass by."""

    def __init__(self, protocol: Protocol, judged: Judgements, settings: Settings):
        asked = (protocol.measure(m, settings.threshold) for m in settings.asked)
        self.protocol, self.judged = protocol, judged
        self.measures = list(dict.fromkeys(asked))
        drop = protocol.drops(settings.dataset, settings.drop_identical)
        self.parts = []
        for rule in protocol.rules(drop, settings.top_k):
            columns = [
                column
                for column, measure in enumerate(self.measures)
                if (measure.family in protocol.listed) == rule.listed
            ]
            if columns:
                self.parts.append((rule, columns, list[Relevant]()))
        self.intervals: list[tuple[list[int], Interval]] = []
        errors = [settings.error_of(measure, drop) for measure in self.measures]
        for error in set(errors):
            if error is None:
                continue
            columns = [column for column, known in enumerate(errors) if known == error]
            measures = [self.measures[c] for c in columns]
            interval = Interval(measures, rule, judged, error, settings.documents)
            self.intervals.append((columns, interval))

    def add(self, block: Block) -> None:
        for rule, _, found in self.parts:
            found.append(block.relevant(rule))
        for _, interval in self.intervals:
            interval.add(block)

    def scores(self, queries: list[str], searched: np.ndarray, answered: np.ndarray) -> Scores:
        values = np.zeros((len(queries), len(self.measures)))
        for _, columns, found in self.parts:
            measures = [self.measures[column] for column in columns]
            values[:, columns] = metrics.values(Relevant.joined(found), self.judged, measures)
        low, high = (np.full(values.shape, np.nan) for _ in "lh")
        for columns, interval in self.intervals:
            low[:, columns], high[:, columns] = interval.ends(values[:, columns])
        return Scores(queries, self.measures, values, searched, answered, low, high)
