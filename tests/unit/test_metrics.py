"""Measures against trec_eval itself, ir-measures' names and hand-computed values."""

import random

import ir_measures
import numpy as np
import pytest
import pytrec_eval
from embedrepro.errors import UserError
from embedrepro.evaluation import metrics
from embedrepro.evaluation.metrics import Measure, parse
from hypothesis import given
from hypothesis import strategies as st

NAMES = ["nDCG", "nDCG@1", "nDCG@10", "RR", "RR@3", "RR@10", "AP", "AP@10", "AP(rel=2)"]
NAMES += ["R@5", "R@100", "R(rel=2)@1000", "P@5", "P(rel=2)@10", "Success@3", "RR(rel=2)@10"]


def made(seed: int) -> tuple[dict, dict]:
    """One random graded query and run, with ties, unjudged, unranked and negative grades."""
    rng = random.Random(seed)
    docs = [f"{rng.choice('aébZ9')}{i}" for i in range(rng.randint(1, 40))]
    grades = {d: rng.choice([-1, 0, 0, 1, 2, 3]) for d in docs if rng.random() < 0.7}
    if max(grades.values(), default=-1) < 0:  # trec_eval itself hangs on such a query
        grades[docs[0]] = 1
    scores = {d: rng.randint(-3, 8) / 4 for d in docs if rng.random() < 0.8} or {docs[0]: 1.0}
    return grades, scores


def trec_eval(name: str, grades: dict, scores: dict) -> float:
    """The measure by trec_eval's own switches: -l for the threshold, -M for RR's cut-off."""
    measure = parse(name)
    cut, run = measure.cutoff, scores
    trec = {"nDCG": "ndcg", "AP": "map", "R": "recall", "Success": "success"}
    asked = trec.get(measure.family, measure.family)
    if measure.family == "RR":
        ranked = sorted(scores.items(), key=lambda hit: (hit[1], hit[0]), reverse=True)
        run, asked, cut = dict(ranked[:cut]), "recip_rank", None
    if cut:
        asked += f"_cut.{cut}" if asked in ("ndcg", "map") else f".{cut}"
    judge = pytrec_eval.RelevanceEvaluator({"q": grades}, {asked}, relevance_level=measure.rel)
    return judge.evaluate({"q": run})["q"][asked.replace(".", "_")]


@pytest.mark.parametrize("name", NAMES)
def test_equals_trec_eval_on_1000_random_graded_runs(name):
    runs = [made(seed) for seed in range(1000)]
    qrels = {str(i): grades for i, (grades, _) in enumerate(runs)}
    run = {str(i): scores for i, (_, scores) in enumerate(runs)}
    ours = metrics.per_query(qrels, run, [parse(name)])[:, 0]
    theirs = [trec_eval(name, grades, scores) for grades, scores in runs]
    assert ours.tolist() == theirs
    assert len(set(theirs)) > 1


@pytest.mark.parametrize("cutoff", [1, 5, 10])
def test_capped_recall_equals_its_definition_on_1000_random_runs(cutoff):
    for seed in range(1000):
        grades, scores = made(seed)
        ranked = sorted(scores, key=lambda d: (scores[d], d), reverse=True)[:cutoff]
        relevant = {d for d, grade in grades.items() if grade > 0}
        possible = min(cutoff, len(relevant))
        expected = len(relevant & set(ranked)) / possible if possible else 0.0
        found = metrics.per_query({"q": grades}, {"q": scores}, [parse(f"R_cap@{cutoff}")])
        assert found[0, 0] == expected


@pytest.mark.parametrize("name", NAMES)
def test_names_and_means_are_those_of_ir_measures(name):
    theirs = ir_measures.parse_measure(name)
    assert str(parse(name)) == str(theirs) == name
    if name.startswith("RR") and "@" in name:
        return  # ir-measures leaves RR@k to another tool, with another order of ties
    runs = [made(seed) for seed in range(20)]
    qrels = {str(i): grades for i, (grades, _) in enumerate(runs)}
    run = {str(i): scores for i, (_, scores) in enumerate(runs[:15])}  # five unanswered
    ours = metrics.per_query(qrels, run, [parse(name)]).mean()
    assert ours == pytest.approx(ir_measures.calc_aggregate([theirs], qrels, run)[theirs])


def test_a_query_with_negative_grades_alone_scores_zero():
    qrels = {"q": {"x": -1, "y": -2}}
    asked = [parse(name) for name in ("nDCG", "nDCG@10", "AP", "RR@10", "R@5")]
    assert not metrics.per_query(qrels, {"q": {"x": 1.0, "y": 0.5}}, asked).any()


def test_unanswered_and_hopeless_queries_score_zero():
    qrels = {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 0}}
    values = metrics.per_query(qrels, {"a": {"x": 1.0}, "c": {"x": 1.0}}, [parse("RR@10")])
    assert values.tolist() == [[1.0], [0.0], [0.0]]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ndcg@10", "nearest nDCG@10"),
        ("ndcg_at_20", "nearest nDCG@20"),
        ("ndcg_cut_10", "nearest nDCG@10"),
        ("ndcg_cut.5", "nearest nDCG@5"),
        ("ndcg", "nearest nDCG;"),
        ("recip_rank", "nearest RR;"),
        ("mrr_at_10", "nearest RR@10"),
        ("recall_at_100", "nearest R@100"),
        ("recall_1000", "nearest R@1000"),
        ("map", "nearest AP;"),
        ("map_cut_100", "nearest AP@100"),
        ("MAP@10", "nearest AP@10"),
        ("P_10", "nearest P@10"),
        ("P10", "nearest P@10"),
        ("hit_rate@5", "nearest Success@5"),
        ("r_cap_100", "nearest R_cap@100"),
        ("recall", "nearest R@10"),
        ("MRR@10", "nearest RR@10"),
        ("Recall@100", "nearest R@100"),
        ("nDCG@0", "nearest nDCG@10"),
        ("R", "nearest R@10"),
        ("nDCG(rel=2)@10", "nearest nDCG@10"),
        ("R(rel=0)@5", "allowed: nDCG"),
        ("RR@10 ", "allowed: nDCG"),
        ("𝕏\n", "allowed: nDCG"),
    ],
)
def test_unknown_metrics_name_the_nearest(name, words):
    with pytest.raises(UserError) as error:
        parse(name)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@given(st.sampled_from(sorted(metrics.FAMILIES)), st.integers(1, 10_000), st.integers(1, 9))
def test_names_round_trip(family, cutoff, rel):
    measure = Measure(family, cutoff, 1 if family == "nDCG" else rel)
    assert parse(str(measure)) == measure


def test_bootstrap_equals_a_plain_one_and_is_seeded():
    values = np.random.default_rng(0).random((300, 2))
    low, high = metrics.bootstrap(values)
    again = metrics.bootstrap(values)
    assert (again == [low, high]).all()
    rng = np.random.default_rng(1)
    means = np.array([values[rng.integers(0, 300, 300)].mean(axis=0) for _ in range(10_000)])
    assert np.allclose([low, high], np.percentile(means, [2.5, 97.5], axis=0), atol=2e-3)


def test_bootstrap_of_a_constant_and_of_nothing():
    assert metrics.bootstrap(np.full((7, 1), 0.5)).tolist() == [[0.5], [0.5]]
    assert metrics.bootstrap(np.zeros((0, 2))).tolist() == [[0, 0], [0, 0]]
