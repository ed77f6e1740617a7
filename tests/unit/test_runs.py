"""TREC runs: what is written is read back, in trec_eval's order; what is malformed is named."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytrec_eval
from embedrepro.errors import UserError
from embedrepro.search.runs import iter_run, ranked, read_ids, read_run, trec_order, write_run
from hypothesis import given, settings
from hypothesis import strategies as st

singles = st.floats(width=32, allow_nan=False, allow_infinity=False)
names = st.text(st.characters(codec="utf-8", exclude_categories=("Z", "C")), min_size=1).filter(
    lambda text: text.split() == [text]
)


@settings(deadline=None)
@given(st.dictionaries(names, st.dictionaries(names, singles, min_size=1), max_size=4))
def test_a_run_is_read_as_it_was_written(tmp_path_factory, run):
    path = tmp_path_factory.mktemp("run") / "run.trec"
    write_run(path, (ranked(query, scores) for query, scores in run.items()), "tag")
    assert read_run(path) == run
    assert [query for query, _, _ in iter_run(path)] == list(run)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([-1.5, -0.0, 0.0, 1e-45, 2.5]))))
def test_order_is_query_then_score_then_id_in_bytes(pairs):
    query = np.array([q for q, _ in pairs], dtype=np.int32)
    score = np.array([s for _, s in pairs], dtype=np.float32)
    letters = ["a", "Z", "é", "ﬀ", "𝄞", "10", "9"]  # code points, not UTF-16 units, decide
    docs = [letters[i % 7] + str(i // 7) for i in range(len(pairs))]
    ids = pa.array(docs, pa.large_string())
    order = trec_order(query, score, np.arange(len(pairs)), ids.take)
    by_id = sorted(range(len(pairs)), key=lambda i: docs[i].encode(), reverse=True)
    assert order.tolist() == sorted(by_id, key=lambda i: (query[i], -score[i]))


def test_order_is_that_of_trec_eval():
    scores = {"a": 1.0, "b": 1.0, "B": 1.0, "é": 1.0, "c": 1.00000001, "d": 2.0}
    query, docs, _ = ranked("q", scores)
    for rank, doc in enumerate(docs, 1):
        judged = pytrec_eval.RelevanceEvaluator({query: {doc: 1}}, {"recip_rank"})
        assert judged.evaluate({query: scores})[query]["recip_rank"] == pytest.approx(1 / rank)


def test_another_tools_run_is_put_into_order(tmp_path):
    path = tmp_path / "run.trec"
    path.write_text("q1 Q0 a 0 1 x\nq1\tQ0\tb\t0\t2.5\tx\nq1 Q0 c 0 1 x\n")
    assert list(read_run(path)["q1"].items()) == [("b", 2.5), ("c", 1.0), ("a", 1.0)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"q2 Q0 d 1 0.5", "not a line"),
        (b"q2 Q0 d one 0.5 t", "not a line"),
        (b"q2 Q0 d 1 nan t", "not a line"),
        (b"q2 Q0 d 1 high t", "not a line"),
        (b"", "not a line"),
        (b"q2 Q0 \xff 1 0.5 t", "not a line"),
        (b"q1 Q0 d 1 0.5 t", "document d comes a second time"),
        (b"q2 Q0 d 1 0.5 t\nq1 Q0 e 1 0.5 t", "query q1 comes a second time"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, message):
    path = tmp_path / "run.trec"
    path.write_bytes(b"q1 Q0 d 1 0.5 t\n" + line + b"\n")
    where = 3 if line.count(b"\n") else 2
    with pytest.raises(UserError, match=rf"run\.trec:{where}: .*{message}"):
        read_run(path)


@pytest.mark.parametrize("bad", ["a b", "", "tab\there"])
def test_what_a_run_cannot_carry_is_refused(tmp_path, bad):
    good = ("q", ["d"], np.ones(1, np.float32))
    for ranking, tag in [
        ((bad, *good[1:]), "t"),
        ((good[0], [bad], good[2]), "t"),
        (good, bad),
    ]:
        with pytest.raises(UserError, match="white space"):
            write_run(tmp_path / "run.trec", [ranking], tag)
    assert list(tmp_path.iterdir()) == []


def test_ids_of_a_range_of_rows(tmp_path):
    docs = [f"d{i}" for i in range(100)]
    pq.write_table(pa.table({"id": docs, "text": docs}), tmp_path / "c", row_group_size=7)
    for start, stop in [(0, 100), (3, 5), (6, 22), (99, 100), (50, 50)]:
        assert read_ids(tmp_path / "c", start, stop).to_pylist() == docs[start:stop]
    assert read_ids(tmp_path / "c").to_pylist() == docs
