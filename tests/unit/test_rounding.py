"""Rounding intervals: whatever the errors of the scores, no measure leaves its interval."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from embedrepro.evaluation import metrics, protocols
from embedrepro.evaluation.judgements import Judgements
from embedrepro.search.runs import listings_of, ranked

ASKED = ["nDCG@5", "nDCG", "RR", "RR@3", "R@5", "R(rel=2)@12", "P@5", "AP", "AP@10", "Success@1"]
ASKED = [metrics.parse(name) for name in [*ASKED, "R_cap@5"]]
DOCS = [f"d{i}" for i in range(40)]
NAMES = pa.array([], pa.large_string())


def run_of(scores: dict[str, np.ndarray], depth: int):
    """The best `depth` of all documents of each query."""
    for query, values in scores.items():
        name, docs, best = ranked(query, dict(zip(DOCS, values.tolist(), strict=True)))
        yield name, docs[:depth], best[:depth]


def made(seed: int):
    """Scores of all documents in steps of 1/64, exact in float32, and graded judgements."""
    random = np.random.default_rng(seed)
    queries = ["d3", "d7", "q", "r"]
    scores = {q: random.integers(0, 200, len(DOCS)) / 64 for q in queries}
    qrels = {}
    for query in [*queries, "unanswered"]:
        judged = random.choice(DOCS, random.integers(1, 9), replace=False).tolist()
        qrels[query] = {doc: int(random.choice([0, 1, 1, 2, 5])) for doc in judged}
    return random, scores, qrels


def scored(scores, qrels, depth, settings):
    judged = Judgements.of_dicts(qrels)
    run = listings_of(run_of(scores, depth))
    return protocols.score_listings(run, judged, settings, NAMES)


@pytest.mark.parametrize("seed", range(40))
def test_no_perturbation_leaves_the_interval(seed, monkeypatch):
    for name in ("mteb", "beir"):  # one drops after the cut, one before
        shallow = replace(protocols.PROTOCOLS[name], depth=12)
        monkeypatch.setitem(protocols.PROTOCOLS, name, shallow)
    random, scores, qrels = made(seed)
    steps = int(random.integers(1, 12))
    depth = int(random.choice([8, 12, 20, 40]))
    settings = protocols.Settings(
        tuple(ASKED),
        tuple(protocols.PROTOCOLS),
        "mine",
        True,
        score_error=steps / 128,
        documents=len(DOCS),
    )
    interval = scored(scores, qrels, depth, settings)
    plain = replace(settings, score_error=None)
    for attempt in range(30):
        moved = {}
        for query, values in scores.items():
            error = random.integers(-steps, steps + 1, len(DOCS))
            if attempt % 3:  # the worst that can happen
                error = steps * np.sign(error + 0.5)
            if attempt % 3 == 2:
                good = np.array([qrels[query].get(doc, 0) > 0 for doc in DOCS])
                error = np.where(good, steps, -steps) * (1 if attempt % 2 else -1)
            moved[query] = values + error / 128
        for name, found in scored(moved, qrels, depth, plain).items():
            ends = interval[name]
            assert (ends.low <= found.values + 1e-12).all(), name
            assert (found.values <= ends.high + 1e-12).all(), name


def test_no_error_leaves_no_room():
    _, scores, qrels = made(3)
    scores = {q: values + np.arange(40) / 2**12 for q, values in scores.items()}  # no ties
    settings = protocols.Settings(
        tuple(ASKED), ("trec_eval", "beir"), score_error=1e-9, documents=len(DOCS)
    )
    for found in scored(scores, qrels, 40, settings).values():
        assert np.allclose(found.low, found.values) and np.allclose(found.high, found.values)


def test_a_swap_of_neighbours_is_inside_and_a_deeper_run_is_tight():
    """Two at the top may be swapped; a relevant document outside the run can't reach rank 10."""
    hits = [("q", [f"d{i}" for i in range(30)], 2 - np.arange(30, dtype=np.float32) / 8)]
    hits[0][2][1] = 2 - 2**-10
    judged = Judgements.of_dicts({"q": {"d1": 1, "elsewhere": 1}})
    asked = tuple(metrics.parse(name) for name in ("RR@10", "R@10", "R@30"))
    settings = protocols.Settings(asked, ("trec_eval",), score_error=2**-10)
    found = protocols.score_listings(listings_of(hits), judged, settings, NAMES)["trec_eval"]
    assert found.values.tolist() == [[0.5, 0.5, 0.5]]
    assert found.low.tolist() == [[0.5, 0.5, 0.5]]
    assert found.high.tolist() == [[1.0, 0.5, 1.0]]


def test_a_refined_run_has_the_error_of_float32_where_it_is_exact():
    hits = [("q", [f"d{i}" for i in range(20)], 2 - np.arange(20, dtype=np.float32) / 1024)]
    judged = Judgements.of_dicts({"q": {"d1": 1, "d15": 1}})
    asked = tuple(metrics.parse(name) for name in ("RR@10", "R@15"))
    settings = protocols.Settings(
        asked, ("trec_eval", "beir"), score_error=1 / 256, exact_depth=10, exact_error=1e-6
    )
    for name, reads in (("trec_eval", 10), ("beir", 11)):
        found = protocols.score_listings(listings_of(hits), judged, settings, NAMES)[name]
        assert (found.low[0, 0], found.high[0, 0]) == ((0.5, 0.5) if reads == 10 else (1 / 10, 1))
        assert (found.low[0, 1], found.high[0, 1]) == (0.5, 1.0)
