"""Fusion against what ranx 0.3.21 gives for the same runs (its values, computed once)."""

import pytest
from embedrepro.errors import UserError
from embedrepro.search.fusion import fuse
from embedrepro.search.runs import ranked, read_run, write_run

FIRST = {"q1": {"d1": 3.0, "d2": 2.0, "d3": 1.0}, "q2": {"d1": 1.0, "d4": 0.5}}
SECOND = {"q1": {"d2": 9.0, "d4": 7.0}, "q2": {"d4": 2.0, "d9": 1.0}, "q3": {"d5": 4.0}}
RANX = [
    (
        {"method": "rrf"},
        {
            "q1": {
                "d2": 0.03252247488101534,
                "d1": 0.01639344262295082,
                "d4": 0.016129032258064516,
                "d3": 0.015873015873015872,
            },
            "q2": {
                "d4": 0.03252247488101534,
                "d1": 0.01639344262295082,
                "d9": 0.016129032258064516,
            },
        },
    ),
    (
        {"method": "sum"},
        {
            "q1": {"d2": 1.5, "d1": 1.0, "d4": 0.0, "d3": 0.0},
            "q2": {"d4": 1.0, "d1": 1.0, "d9": 0.0},
        },
    ),
    (
        {"method": "sum", "normalize": "none"},
        {
            "q1": {"d2": 11.0, "d4": 7.0, "d1": 3.0, "d3": 1.0},
            "q2": {"d4": 2.5, "d9": 1.0, "d1": 1.0},
        },
    ),
    (
        {"method": "sum", "weights": [0.3, 0.7]},
        {
            "q1": {"d2": 0.85, "d1": 0.3, "d4": 0.0, "d3": 0.0},
            "q2": {"d4": 0.7, "d1": 0.3, "d9": 0.0},
        },
    ),
]


@pytest.fixture
def runs(tmp_path):
    paths = []
    for name, run in [("a", FIRST), ("b", SECOND)]:
        paths.append(tmp_path / f"{name}.trec")
        write_run(paths[-1], (ranked(*item) for item in run.items()), name)
    return paths


def fused_run(tmp_path, runs, spec, k):
    write_run(tmp_path / "run.trec", fuse([str(run) for run in runs], spec, k), "both")
    return read_run(tmp_path / "run.trec")


@pytest.mark.parametrize(("spec", "expected"), RANX)
def test_values_are_those_of_ranx(tmp_path, runs, spec, expected):
    fused = fused_run(tmp_path, runs, spec, 10)
    assert list(fused) == ["q1", "q2", "q3"]
    for query, scores in expected.items():
        assert list(fused[query]) == list(scores)
        assert fused[query] == pytest.approx(scores, rel=1e-6)


def test_cut_and_constant_scores(tmp_path, runs):
    fused = fused_run(tmp_path, runs, {"method": "rrf", "k": 1}, 1)
    assert fused == {
        "q1": {"d2": pytest.approx(1 / 3 + 1 / 2)},
        "q2": {"d4": pytest.approx(1 / 3 + 1 / 2)},
        "q3": {"d5": 0.5},
    }
    assert fused_run(tmp_path, runs, {"method": "sum"}, 9)["q3"] == {"d5": 0.0}


def test_the_query_s_own_document_does_not_count_among_the_best(tmp_path):
    write_run(tmp_path / "a.trec", [ranked("d1", {"d1": 3.0, "d2": 2.0, "d3": 1.0})], "a")
    fused = fused_run(tmp_path, [tmp_path / "a.trec"], {}, 1)
    assert list(fused["d1"]) == ["d1", "d2"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"methods": "rrf"}, "unknown key 'methods'.*method"),
        ({"method": "borda"}, "may be rrf, sum"),
        ({"weights": [1.0]}, "1 weights for 2 runs"),
    ],
)
def test_a_wrong_spec_is_refused(runs, spec, message):
    with pytest.raises(UserError, match=message):
        list(fuse(runs, spec, 5))
