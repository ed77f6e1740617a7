"""How each tool turns one run file into numbers, so that like is compared with like.

The run file keeps every hit, a hit that carries the query's own id included. Sources, with the
lines they were read in: trec_eval flags of `pyserini/2cr/{msmarco,beir}.py` (Pyserini 0a0be29),
`mteb/_evaluators/retrieval_{evaluator,metrics}.py` (mteb 2.26.24), `beir/retrieval/evaluation.py`
and `custom_metrics.py` (beir 2.2.0), `FlagEmbedding/abc/evaluation/{searcher,utils}.py` (1.4.2).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from . import metrics
from .errors import UserError, printable
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
    answered: families averaged over the queries that the run answers, not over all judged ones.
    listed: families whose ties keep the run file's order; the rest rank as trec_eval does.
    decimals: means are rounded to so many; None: not at all.
    encoding: what this tool feeds the model unless a row of `published.tsv` says otherwise.
    """

    name: str
    identical_ids: tuple[tuple[str, bool | None], ...]
    before_cut: bool
    threshold: int | None
    answered: frozenset[str]
    listed: frozenset[str]
    decimals: int | None
    encoding: Mapping[str, Any]
    depth: int = 1000

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
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        # Ours: trec_eval -c; the dataset's entry decides on identical ids and the threshold.
        Protocol(DEFAULT, (("*", None),), True, None, frozenset(), frozenset(), None, {}),
        # Drops where the task's class says so, in the evaluator, so after the search's top 1000.
        Protocol(
            "mteb",
            (
                *((name, True) for name in _MTEB_DROPS),
                *((name, False) for name in _MTEB_KEEPS),
                ("*", None),
            ),
            False,
            1,
            _ALL,
            frozenset(),
            5,
            {},
        ),
        # trec_eval -c, -l 2 on TREC DL; --remove-query on BEIR and BRIGHT, not on MS MARCO.
        Protocol(
            "pyserini",
            (("beir/*", True), ("cqadupstack/*", True), ("bright/*", True), ("*", False)),
            False,
            None,
            frozenset(),
            frozenset(),
            4,
            {},
        ),
        # Its script for BEIR drops identical ids, after the search; the others keep them. MRR and
        # capped recall sort by score alone (stable) and are means over all queries. Its MS MARCO
        # corpus has titles added, and it joins titles and cuts at 512 tokens unless told otherwise.
        Protocol(
            "flagembedding",
            (("beir/*", True), ("cqadupstack/*", True), ("*", False)),
            False,
            1,
            _ALL - {"RR", "R_cap"},
            frozenset({"RR", "R_cap"}),
            5,
            {"title": "join", "max_length": {"query": 512, "passage": 512}},
        ),
        # Always drops, while the heap of the top k fills.
        Protocol(
            "beir",
            (("*", True),),
            True,
            1,
            _ALL - {"RR", "R_cap", "Success"},
            frozenset({"RR", "R_cap", "Success"}),
            5,
            {},
        ),
    )
}


def named(name: str) -> Protocol:
    if name not in PROTOCOLS:
        raise UserError(
            f"unknown protocol {printable(repr(name))}; allowed: {', '.join(PROTOCOLS)}"
        )
    return PROTOCOLS[name]


@dataclass(frozen=True)
class Hits:
    """One query's hits in the order the run lists them: `docs` (n) ids, `scores` float64 (n)."""

    query: str
    docs: list[str]
    scores: np.ndarray


def read_run(path: Path | str) -> Iterator[Hits]:
    """Stream a six-column TREC run, one query at a time; a broken line is named by number."""
    query, docs, scores, done = None, [], [], set()
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            fields = line.split()
            try:
                qid, _, doc, _, score, _ = fields
                value = float(score)
            except ValueError:
                raise UserError(
                    f"{path}:{number}: not `qid Q0 docid rank score tag`: {printable(line, 60)}"
                ) from None
            if qid != query:
                if query is not None:
                    yield _hits(path, query, docs, scores)
                    done.add(query)
                if qid in done:
                    raise UserError(f"{path}:{number}: query {qid} comes a second time; sort by it")
                query, docs, scores = qid, [], []
            docs.append(doc)
            scores.append(value)
    if query is not None:
        yield _hits(path, query, docs, scores)


def _hits(path: Path | str, query: str, docs: list[str], scores: list[float]) -> Hits:
    if len(set(docs)) != len(docs):
        raise UserError(f"{path}: query {query} lists a document twice; a run holds each once")
    values = np.array(scores)
    if not np.isfinite(values).all():
        raise UserError(f"{path}: query {query} has a score that is no finite number")
    return Hits(query, docs, values)


def rank(hits: Hits, protocol: Protocol, drop: bool) -> tuple[list[str], list[float]]:
    """The documents and scores that the protocol scores, best first, ties as the run lists them."""
    order = sorted(range(len(hits.docs)), key=lambda i: -hits.scores[i])
    if drop and protocol.before_cut:
        order = [i for i in order if hits.docs[i] != hits.query]
    order = order[: protocol.depth]
    if drop:
        order = [i for i in order if hits.docs[i] != hits.query]
    return [hits.docs[i] for i in order], [float(hits.scores[i]) for i in order]


@dataclass(frozen=True)
class Scores:
    """values: float64 (queries, measures); answered: bool (queries); both in `queries`' order."""

    queries: list[str]
    measures: list[Measure]
    values: np.ndarray
    answered: np.ndarray

    def kept(self, protocol: Protocol) -> list[np.ndarray]:
        """For each measure the values that its mean is over."""
        return [
            self.values[self.answered, column]
            if measure.family in protocol.answered
            else self.values[:, column]
            for column, measure in enumerate(self.measures)
        ]


def score(
    run: Iterator[Hits],
    qrels: metrics.Qrels,
    asked: Sequence[Measure],
    names: Sequence[str],
    dataset: str = "",
    drop_identical: bool = False,
    threshold: int = 1,
) -> dict[str, Scores]:
    """Score a run under each protocol in `names`, in one pass over it.

    `drop_identical` and `threshold` are what the entry of `dataset` says. Queries without
    judgements are passed over, as trec_eval does.
    """
    index = {query: row for row, query in enumerate(qrels)}
    results = {}
    for name in names:
        protocol = named(name)
        measures = list(dict.fromkeys(protocol.measure(m, threshold) for m in asked))
        values = np.zeros((len(qrels), len(measures)))
        results[name] = Scores(list(qrels), measures, values, np.zeros(len(qrels), bool))
    for block in _blocks(hits for hits in run if hits.query in index):
        judged = {hits.query: qrels[hits.query] for hits in block}
        rows = [index[query] for query in judged]
        for name, result in results.items():
            protocol = PROTOCOLS[name]
            drop = protocol.drops(dataset, drop_identical)
            ranked = {hits.query: rank(hits, protocol, drop) for hits in block}
            result.values[rows] = _score_block(judged, ranked, result.measures, protocol)
            result.answered[rows] = True
    return results


def _blocks(run: Iterator[Hits]) -> Iterator[list[Hits]]:
    block = []
    for hits in run:
        block.append(hits)
        if len(block) == BLOCK:
            yield block
            block = []
    if block:
        yield block


def _score_block(
    qrels: metrics.Qrels,
    ranked: Mapping[str, tuple[list[str], list[float]]],
    measures: Sequence[Measure],
    protocol: Protocol,
) -> np.ndarray:
    """float64 (queries, measures) of one block of queries."""
    values = np.empty((len(qrels), len(measures)))
    listed = np.array([measure.family in protocol.listed for measure in measures], bool)
    for as_listed in set(listed.tolist()):
        columns = np.flatnonzero(listed == as_listed)
        run = {
            query: dict(zip(docs, range(len(docs), 0, -1) if as_listed else scores, strict=True))
            for query, (docs, scores) in ranked.items()
        }
        if as_listed:  # a score per rank: no ties are left for trec_eval to break
            run = {query: {d: float(s) for d, s in hits.items()} for query, hits in run.items()}
        values[:, columns] = metrics.per_query(qrels, run, [measures[c] for c in columns])
    return values
