"""One run file under each tool's rules, against what the tools themselves computed."""

import json
from dataclasses import replace

import protocol_example as example
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import score_oracle
from embedrepro.errors import UserError
from embedrepro.evaluation import metrics, protocols, scoring
from embedrepro.search import runs

ASKED = ["nDCG@10", "RR@10", "R@1000", "AP@10", "R_cap@10", "P@10"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "made-up.trec"
    path.write_text(example.run_text())
    return path


@pytest.fixture(scope="module")
def scored(run):
    hits = runs.iter_listed(run)
    asked = [metrics.parse(name) for name in ASKED]
    names = list(protocols.PROTOCOLS)
    return protocols.score(hits, example.QRELS, asked, names, "made-up", True, 2)


@pytest.mark.parametrize("name", example.TOOLS)
def test_protocol_equals_its_tool(scored, name):
    found = scoring.summarise(scored[name], protocols.named(name))
    assert {metric: found[metric]["value"] for metric in example.TOOLS[name]} == example.TOOLS[name]


def test_the_four_protocols_give_four_numbers():
    recall = {
        next(v for k, v in tool.items() if k.startswith("R(") or k == "R@1000")
        for tool in example.TOOLS.values()
    }
    assert len(recall) == 4


def test_default_protocol_is_trec_eval_c_on_the_run_without_self_matches(scored):
    import pytrec_eval

    run = {q: {d: s for d, s in example.ranking(q)[:1001] if d != q} for q in example.QUERIES}
    theirs = pytrec_eval.RelevanceEvaluator(example.QRELS, {"recall.1000"}, relevance_level=2)
    expected = sum(v["recall_1000"] for v in theirs.evaluate(run).values()) / len(example.QRELS)
    found = scoring.summarise(scored["trec_eval"], protocols.named("trec_eval"))
    assert found["R(rel=2)@1000"]["value"] == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("protocol", "dataset", "entry", "drops"),
    [
        ("trec_eval", "beir/arguana", False, False),
        ("trec_eval", "mine", True, True),
        ("mteb", "beir/arguana", False, True),
        ("mteb", "beir/scifact", True, False),
        ("mteb", "msmarco-passage", False, True),
        ("mteb", "mine", True, True),
        ("pyserini", "msmarco-passage", True, False),
        ("pyserini", "beir/scifact", False, True),
        ("flagembedding", "miracl/zh", True, False),
        ("flagembedding", "beir/scifact", False, True),
        ("beir", "anything", False, True),
    ],
)
def test_who_drops_self_matches_where(protocol, dataset, entry, drops):
    assert protocols.named(protocol).drops(dataset, entry) is drops


def test_threshold_names_the_metric():
    recall, explicit = metrics.parse("R@100"), metrics.parse("R(rel=3)@100")
    pyserini, mteb = protocols.named("pyserini"), protocols.named("mteb")
    assert str(pyserini.measure(recall, 2)) == "R(rel=2)@100"
    assert str(pyserini.measure(explicit, 2)) == "R(rel=3)@100"
    assert str(mteb.measure(explicit, 2)) == "R@100"
    assert str(pyserini.measure(metrics.parse("nDCG@10"), 2)) == "nDCG@10"


def test_unknown_protocol_lists_the_known():
    with pytest.raises(UserError, match="allowed: trec_eval, mteb, pyserini, flagembedding, beir"):
        protocols.named("anserini")


@pytest.mark.parametrize("seed", range(60))
def test_equals_trec_eval_query_by_query(seed, tmp_path, monkeypatch):
    """Every protocol and measure, in every bit; read from a file in small pieces."""
    monkeypatch.setattr(runs, "READ", 100 + seed)
    made, qrels = score_oracle.made(seed)
    path = tmp_path / "run.trec"
    lines = [(q, d, s) for q, hits in made.items() for d, s in hits.items()]
    path.write_text("".join(f"{q} Q0 {d} 0 {s!r} t\n" for q, d, s in lines))
    asked = [metrics.parse(name) for name in [*ASKED, "nDCG", "AP", "RR", "R(rel=2)@3", "RR@2"]]
    names, top_k = list(protocols.PROTOCOLS), [None, 5][seed % 2]
    monkeypatch.setitem(protocols.PROTOCOLS, "mteb", replace(protocols.PROTOCOLS["mteb"], depth=7))
    settings = "made-up", bool(seed % 3), 1 + seed % 2, top_k
    expected = score_oracle.score(made, qrels, asked, names, *settings)
    found = protocols.score(runs.iter_listed(path), qrels, asked, names, *settings)
    for name in names:
        assert found[name].queries == list(qrels)
        assert found[name].answered.tolist() == [query in made for query in qrels]
        for measure, column in zip(found[name].measures, found[name].values.T, strict=True):
            assert column.tolist() == expected[name][measure], (name, measure)


def test_pieces_of_the_file_do_not_change_scores(run, scored, monkeypatch):
    monkeypatch.setattr(runs, "READ", 5000)
    asked = [metrics.parse(name) for name in ASKED]
    again = protocols.score(
        runs.iter_listed(run), example.QRELS, asked, ["beir"], "made-up", True, 2
    )
    assert (again["beir"].values == scored["beir"].values).all()
    assert (again["beir"].answered == scored["beir"].answered).all()


def test_a_query_that_found_nothing_counts_one_that_was_not_searched_does_not():
    qrels = {"found": {"x": 1}, "nothing": {"x": 1}, "not searched": {"x": 1}}
    asked, run = [metrics.parse("R@10")], [("found", {"x": 1.0})]
    names = ["mteb", "trec_eval"]
    scores = protocols.score(run, qrels, asked, names, searched={"found", "nothing"})
    means = {n: scoring.summarise(scores[n], protocols.named(n))["R@10"]["value"] for n in names}
    assert means == {"mteb": 0.5, "trec_eval": 1 / 3}


def test_depth_is_the_tools_or_what_was_asked():
    qrels = {"q": {"1200": 1, "q": 1}}
    hits = {str(i): 3000.0 - i for i in range(1500)} | {"q": 1.0}
    asked, names = [metrics.parse("R@2000")], ["trec_eval", "mteb"]

    def recall(**settings):
        scores = protocols.score([("q", hits)], qrels, asked, names, **settings)
        return [scores[name].values[0, 0] for name in names]

    assert recall() == [1.0, 0.0]
    assert recall(top_k=1500) == [0.5, 0.0]
    assert recall(top_k=100) == [0.0, 0.0]
    first = {"q": 9e9} | {str(i): 3000.0 - i for i in range(1500)}  # the own document goes first
    dropped = protocols.score(
        [("q", first)], qrels, asked, ["trec_eval"], drop_identical=True, top_k=1201
    )
    assert dropped["trec_eval"].values[0, 0] == 0.5


def test_score_rows(run, tmp_path):
    """The files, the default protocol's per-query table, a query unanswered; made only once."""
    rows = [(q, d, g) for q, grades in example.QRELS.items() for d, g in grades.items()]
    columns = {"query_id": 0, "doc_id": 1, "relevance": 2}
    table = pa.table({name: [row[i] for row in rows] for name, i in columns.items()})
    parquet.write_table(table, tmp_path / "qrels.parquet")
    queries = pa.table({"id": example.QUERIES, "text": example.QUERIES})
    parquet.write_table(queries, tmp_path / "queries.parquet")
    about = {"model_id": "a/b.c", "model": "a__b_c", "revision": None, "dataset": "made-up"}
    row = scoring.Row(
        run=run,
        qrels=tmp_path / "qrels.parquet",
        queries=tmp_path / "queries.parquet",
        about=about | {"split": "test"},
        metrics=ASKED,
        protocols=list(example.TOOLS),
        ignore_identical_ids=True,
        relevance_threshold=2,
        facts={"title": "join"},
        output=tmp_path / "out" / "scores.json",
        per_query=tmp_path / "out" / "pq.tsv",
        score_error=0.1,
    )
    scoring.score_rows([row])

    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert (scores["queries"], scores["answered"]) == (5, 4)
    assert scores["model_id"] == "a/b.c" and scores["facts"] == {"title": "join"}
    assert list(scores["protocols"]) == sorted(protocols.PROTOCOLS)
    for name, values in example.TOOLS.items():
        for metric, value in values.items():
            entry = scores["protocols"][name][metric]
            assert entry["value"] == value
            assert entry["ci_low"] <= value <= entry["ci_high"]
            assert entry["rounding_low"] <= value <= entry["rounding_high"]
    lines = (tmp_path / "out" / "pq.tsv").read_text().splitlines()
    assert lines[0] == "query_id\tmetric\tvalue"
    assert len(lines) == 1 + 5 * len(ASKED)
    assert "gamma\tnDCG@10\t0.0" in lines
    mean = scores["protocols"]["trec_eval"]["nDCG@10"]["value"]
    ndcg = [float(line.split("\t")[2]) for line in lines if "\tnDCG@10\t" in line]
    assert sum(ndcg) / 5 == pytest.approx(mean, abs=1e-12)

    made = (tmp_path / "out" / "scores.json").stat().st_mtime_ns
    scoring.score_rows([row])
    assert (tmp_path / "out" / "scores.json").stat().st_mtime_ns == made
