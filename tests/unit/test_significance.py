"""Tests between models against scipy, enumeration and hand-computed cases."""

from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
from embedrepro.errors import UserError
from embedrepro.evaluation import significance
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats


def scipy_p(differences: np.ndarray, resamples=np.inf) -> float:
    return stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        n_resamples=resamples,
        rng=np.random.default_rng(5),
    ).pvalue


@pytest.mark.parametrize("seed", range(5))
def test_exact_for_few_queries_as_scipy_enumerates(seed):
    differences = np.random.default_rng(seed).normal(0.3, 1, 10)
    found = significance.randomisation_test(differences[:, None])[0]
    assert found == pytest.approx(scipy_p(differences), abs=1e-12)


def test_exact_by_hand():
    # +1 +1 +1: |sum| >= 3 in two of eight sign patterns; zeros can't change that
    columns = np.array([[1.0, 1], [1, 1], [1, -1], [0, 0]])
    assert significance.randomisation_test(columns).tolist() == [2 / 8, 1.0]


def test_rounding_does_not_hide_equal_sums():
    differences = np.array([0.1, 0.2, 0.3, -0.6, 0.7])
    signs = np.array(list(product([1, -1], repeat=5)))
    sums = np.abs((signs * np.array([1, 2, 3, -6, 7])).sum(axis=1))
    assert significance.randomisation_test(differences[:, None])[0] == np.mean(sums >= 7)


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_sampled_agrees_with_scipy(shift):
    differences = np.random.default_rng(3).normal(shift, 1, 200)
    found = significance.randomisation_test(differences[:, None])[0]
    assert found == pytest.approx(scipy_p(differences, 10_000), abs=0.02)
    assert found == significance.randomisation_test(differences[:, None])[0]  # seeded


def test_equal_models_and_a_certain_difference():
    columns = np.stack([np.zeros(100), np.ones(100)], axis=1)
    p = significance.randomisation_test(columns)
    assert p.tolist() == [1.0, 1 / (1 + significance.SAMPLES)]


def test_holm_by_hand():
    # sorted .01 .02 .03 .04 times 4 3 2 1 = .04 .06 .06 .04, made monotone
    assert significance.holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert significance.holm([0.5, 0.9]).tolist() == [1.0, 1.0]
    assert significance.holm([0.005, 0.2, 0.02]) == pytest.approx([0.015, 0.2, 0.04])
    assert significance.holm([]).tolist() == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_monotone_and_never_below_p(p):
    adjusted = significance.holm(p)
    assert (adjusted >= p).all() and (adjusted <= 1).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()


def test_letters_by_hand():
    assert significance.letters("ABC", []) == {"A": "a", "B": "a", "C": "a"}
    everything = list(combinations("ABC", 2))
    assert significance.letters("ABC", everything) == {"A": "a", "B": "b", "C": "c"}
    # A and C differ, B differs from neither
    assert significance.letters("ABC", [("A", "C")]) == {"A": "a", "B": "ab", "C": "b"}
    assert significance.letters([], []) == {}


@given(st.integers(1, 7), st.data())
def test_models_share_a_letter_unless_different(count, data):
    models = [f"m{i}" for i in range(count)]
    pairs = list(combinations(models, 2))
    different = data.draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    letters = significance.letters(models, different)
    for one, other in pairs:
        assert bool(set(letters[one]) & set(letters[other])) == ((one, other) not in different)
    assert "a" in letters[models[0]]


def write(folder: Path, model: str, values: dict, metric: str = "nDCG@10") -> Path:
    path = folder / "made__up" / "test" / f"{model}.per_query.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{query}\t{metric}\t{value!r}\n" for query, value in values.items()]
    path.write_text("query_id\tmetric\tvalue\n" + "".join(lines))
    return path


def compare(*paths: Path) -> list:
    """Rows as the report's spec has them."""
    rows = [
        {"dataset": p.parts[-3], "split": p.parts[-2], "model": p.name.split(".")[0]} for p in paths
    ]
    return significance.compare_rows(
        row | {"per_query": str(path)} for row, path in zip(rows, paths, strict=True)
    )


def test_rows_are_compared_by_hand(tmp_path):
    queries = [f"q{i}" for i in range(8)]
    good = write(tmp_path, "good", {q: 0.75 for q in queries})
    bad = write(tmp_path, "bad_1_5B", {q: 0.25 for q in reversed(queries)})
    same = write(tmp_path, "same", {q: 0.75 for q in queries[:7]} | {"q7": 0.5})
    (entry,) = compare(good, bad, same)
    assert (entry["dataset"], entry["split"], entry["metric"]) == ("made__up", "test", "nDCG@10")
    assert entry["models"] == ["good", "same", "bad_1_5B"]
    assert entry["letters"] == {"good": "a", "same": "a", "bad_1_5B": "b"}
    first, second, third = entry["pairs"]
    assert (first["a"], first["b"], first["p"]) == ("good", "same", 1.0)
    assert first["largest_wins"] == [["q7", 0.25]] and first["largest_losses"] == []
    assert (first["wins"], first["losses"], first["ties"]) == (1, 0, 7)
    assert (second["b"], second["delta"], second["p"]) == ("bad_1_5B", 0.5, 2 / 256)
    assert third["p_holm"] == pytest.approx(3 / 128)  # 2/256 twice: 3 x 1/128, then carried over
    assert [pair["significant"] for pair in entry["pairs"]] == [False, True, True]


def test_one_model_gives_no_comparison(tmp_path):
    assert compare(write(tmp_path, "alone", {"q": 1.0})) == []
    assert compare() == []


def test_other_queries_are_refused():
    scores = {"one": {"a": 1.0, "b": 0.0}, "two": {"a": 1.0}}
    with pytest.raises(UserError, match="made/up: two was scored on other queries than one"):
        significance.compare(scores, "made/up")
