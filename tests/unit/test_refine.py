"""Refinement: the first ranks equal those of float32, whatever the fast precision did."""

from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embedrepro.search import refine
from embedrepro.search.exact import ArrayScorer, search_array
from embedrepro.search.job import Row, search_rows
from embedrepro.search.refine import sampled_error
from embedrepro.search.scores import TensorScorer
from embedrepro.vectors.dense import save_array

DEPTHS = (10, 100)
QUARTER = 0.25  # of the corpus


class Arrays:
    """`Fast` in memory, with what float32 would have given."""

    def __init__(self, queries, exact, fast):
        self.queries, self.exact, self.fast = queries, exact, fast
        self.encoded = []
        self.ids = pa.array([f"d{i}" for i in np.random.default_rng(0).permutation(len(exact))])

    def __len__(self):
        return len(self.fast)

    @cached_property
    def scorer(self):
        return ArrayScorer(self.queries)

    def search(self, which, k):
        ((_, rows, scores),) = search_array(
            self.queries[which], self.fast, k, self.ids.take, group=len(which)
        )
        return rows, scores

    def vectors(self, rows):
        assert (np.diff(rows) > 0).all()
        return self.fast[rows]

    def encode(self, rows):
        self.encoded.append(rows)
        return self.exact[rows]

    def truth(self, k):
        ((_, rows, scores),) = search_array(
            self.queries, self.exact, k, self.ids.take, group=len(self.queries)
        )
        return rows, scores


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def made(seed, n=3000, clusters=None, noise=5e-4, queries=20, dim=32):
    random = np.random.default_rng(seed)
    exact = random.standard_normal((n, dim))
    if clusters:
        exact = random.standard_normal((clusters, dim))[random.integers(0, clusters, n)]
        exact += random.standard_normal((n, dim)) * 0.02
    exact = unit(exact)
    asked = unit(exact[random.integers(0, n, queries)] + random.standard_normal((queries, dim)) / 9)
    fast = (exact + random.standard_normal((n, dim)) * noise).astype(np.float16)
    return Arrays(asked * np.float32(1.7), exact, fast)


@pytest.mark.parametrize("clusters", [None, 40])
@pytest.mark.parametrize("noise", [0, 5e-4, 1e-2])
@pytest.mark.parametrize("seed", range(3))
def test_the_first_ranks_are_those_of_float32(seed, noise, clusters):
    corpus = made(seed, clusters=clusters, noise=noise)
    error = sampled_error(corpus, corpus.encode)
    found = refine.refine(corpus, corpus.encode, corpus.ids.take, 120, error, DEPTHS, QUARTER)
    rows, scores = corpus.truth(120)
    k = found.exact_depth
    assert k in DEPTHS and found.rows.shape == (20, 120)
    assert (found.rows[:, :k] == rows[:, :k]).all()
    assert found.scores[:, :k].tobytes() == scores[:, :k].tobytes()
    assert (np.diff(found.scores, axis=1) <= 0).all()
    assert np.abs(found.scores[:, k:] - scores[:, k:]).max(initial=0) <= found.score_error
    assert found.largest_error <= found.error
    again = np.concatenate(corpus.encoded[1:])
    assert found.share == len(np.unique(again)) / len(corpus)
    assert k == 10 or found.share <= QUARTER


def test_deeper_ranks_cost_a_quarter_at_most():
    corpus = made(5, noise=3e-2)
    error = sampled_error(corpus, corpus.encode)
    found = refine.refine(corpus, corpus.encode, corpus.ids.take, 120, error, DEPTHS, QUARTER)
    assert found.exact_depth == 10
    rows, _ = corpus.truth(10)
    assert (found.rows[:, :10] == rows).all()
    everything = refine.refine(corpus, corpus.encode, corpus.ids.take, 120, error, DEPTHS, 1.0)
    assert everything.exact_depth == 100


def test_a_margin_that_was_too_small_grows():
    """Document 0 is best in float32 and the fast pass puts it at rank 6, the sample sees nothing.

    It is found since a document of the first margin moved by more than that.
    """
    random = np.random.default_rng(7)
    exact = unit(random.standard_normal((500, 16)))
    query = unit(exact[:1] + 0.0)
    spread = unit(random.standard_normal((1, 16)))
    away = spread - (spread @ query.T) * query
    scores = np.r_[0.9, 0.899 - np.arange(499) * 1e-3]
    exact = (scores[:, None] * query + away * 0.1).astype(np.float32)
    fast = exact.copy()
    fast[0] -= query[0] * np.float32(0.0065)  # falls below six others
    fast[1] -= query[0] * np.float32(0.0004)  # just more than is assumed
    fast[2] += query[0] * np.float32(0.0030)
    corpus = Arrays(query, exact, fast)
    found = refine.refine(corpus, corpus.encode, corpus.ids.take, 40, 1e-4, (1,), QUARTER)
    assert found.rounds > 1 and found.error > 0.0065
    assert found.rows[0, 0] == 0
    assert found.scores[0, 0] == corpus.truth(1)[1][0, 0]


def test_candidates_beyond_the_lists_are_searched_for():
    """More near-ties than the run is deep."""
    corpus = made(9, n=2000, clusters=3, noise=2e-3)
    error = sampled_error(corpus, corpus.encode)
    found = refine.refine(corpus, corpus.encode, corpus.ids.take, 12, error, (10,), QUARTER)
    rows, scores = corpus.truth(10)
    assert found.rows.shape == (20, 12)
    assert (found.rows[:, :10] == rows).all() and (found.scores[:, :10] == scores).all()


def test_a_small_corpus_and_zero_queries():
    corpus = made(11, n=7)
    corpus.queries[3] = 0
    found = refine.refine(
        corpus, corpus.encode, corpus.ids.take, 100, 1e-3, (10, 100, 1000), QUARTER
    )
    rows, scores = corpus.truth(100)
    assert found.exact_depth == 7 and found.share == 1
    assert (found.rows == rows).all() and (found.scores == scores).all()


def test_a_device_scores_as_numpy_does():
    corpus = made(15)
    corpus.queries[3] = 0
    query, row = np.divmod(np.arange(20 * 3000), 3000)
    arrays, tensors = ArrayScorer(corpus.queries), TensorScorer(corpus.queries, "cpu")
    expected = arrays.pairs(corpus.exact, query, row) + np.float32(0)
    assert tensors.pairs(corpus.exact, query, row).tobytes() == expected.tobytes()
    largest = arrays.largest_product(corpus.exact)
    assert tensors.largest_product(corpus.exact) == pytest.approx(largest, rel=1e-6)
    assert largest == pytest.approx(np.abs(expected).max() / 1.7, rel=1e-6)  # of norm 1
    assert arrays.largest_product(corpus.exact[:0]) == tensors.largest_product(corpus.exact[:0])


@pytest.mark.parametrize("spare", [False, True])
def test_a_row_is_refined_to_the_same_run_for_any_number_of_pieces(tmp_path, spare):
    corpus = made(13, n=900, noise=1e-3)
    docs = corpus.ids.to_pylist()
    names = [docs[int(row)] if spare else f"q{i}" for i, row in enumerate(corpus.truth(1)[0][:, 0])]
    names = [f"{name}" if names.index(name) == i else f"q{i}" for i, name in enumerate(names)]
    pq.write_table(pa.table({"id": docs}), tmp_path / "corpus.parquet")
    pq.write_table(pa.table({"id": names}), tmp_path / "queries.parquet")
    save_array(tmp_path / "q.npy", corpus.queries)
    save_array(tmp_path / "exact.npy", corpus.exact)
    ids = tmp_path / "corpus.parquet", tmp_path / "queries.parquet"
    runs = []
    for pieces in (1, 4):
        paths = [tmp_path / f"{pieces}-{i}.npy" for i in range(pieces)]
        for i, path in enumerate(paths):
            start, stop = len(corpus) * i // pieces, len(corpus) * (i + 1) // pieces
            save_array(path, corpus.fast[start:stop], rows=[start, stop])
        row = Row(tmp_path / "q.npy", paths, *ids, 50, "m", tmp_path / f"{pieces}.trec", spare)
        found = refine.refine_row(row, corpus.encode, (10,), QUARTER)
        assert found.exact_depth == 10 + spare
        runs.append((tmp_path / f"{pieces}.trec").read_text())
    assert runs[0] == runs[1]
    row = Row(
        tmp_path / "q.npy", [tmp_path / "exact.npy"], *ids, 10, "m", tmp_path / "f.trec", spare
    )
    search_rows([row])
    expected = (tmp_path / "f.trec").read_text().splitlines()
    assert set(expected) <= set(runs[0].splitlines())
