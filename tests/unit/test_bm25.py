"""BM25 against the published run of MTEB's baseline and against bm25s itself."""

import json
from pathlib import Path

import bm25s
import numpy as np
import pyarrow.parquet as pq
import pytest
import pytrec_eval
import Stemmer
from embedrepro.errors import UserError
from embedrepro.search.bm25 import DEFAULTS, Tokenizer, search_bm25
from embedrepro.search.runs import read_run, write_run
from helpers import XQUAD, prepared, prepared_dataset

PASSAGES = {
    "d1": ("Cats", "cats purr when they are happy"),
    "d2": ("", "Dogs bark; happy dogs wag their tails"),
    "d3": ("", "猫在高兴的时候会打呼噜"),
    "d4": ("", "狗高兴时摇尾巴"),
    "d5": ("", "cats purr when they are happy"),
    "d6": ("", "cats purr when they are happy"),
}
QUERIES = {"q1": "happy cats", "q2": "高兴的猫", "q3": "zzz", "q4": "the", "q5": "猫"}


def run_bm25(folder: Path, dataset: Path, spec: dict, k: int) -> dict:
    texts = dataset / "corpus.parquet", dataset / "test" / "queries.parquet", "join"
    write_run(folder / "run.trec", search_bm25(*texts, spec, k), "bm25")
    return read_run(folder / "run.trec")


def test_published_row_of_mteb(tmp_path):
    """mteb__baseline-bm25s, XQuADRetrieval en: nDCG@10 0.96494, MAP@10 0.95577, R@100 0.99747.

    Recall is one question in 1,185 lower here: MTEB fills its list with passages that share no
    word with the question (score 0), among which a relevant one happened to be.
    """
    if not XQUAD.is_dir():
        pytest.skip(f"{XQUAD} is not there")
    prepared({"beir": str(XQUAD)}, tmp_path / "xquad")
    run = run_bm25(tmp_path, tmp_path / "xquad", {}, 1000)
    qrels: dict[str, dict[str, int]] = {}
    for row in pq.read_table(tmp_path / "xquad" / "test" / "qrels.parquet").to_pylist():
        qrels.setdefault(row["query_id"], {})[row["doc_id"]] = row["relevance"]
    measures = {"ndcg_cut.10", "map_cut.10", "recall.100"}
    scored = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run).values()
    mean = {m: round(sum(s[m] for s in scored) / len(qrels), 5) for m in next(iter(scored))}
    assert mean == {"ndcg_cut_10": 0.96494, "map_cut_10": 0.95577, "recall_100": 0.99662}


def test_scores_are_those_of_bm25s_and_ties_go_by_id(tmp_path):
    run = run_bm25(
        tmp_path,
        prepared_dataset(tmp_path, PASSAGES, QUERIES),
        {"tokenizer": "words"},
        10,
    )
    texts = [f"{title} {text}".strip() for title, text in PASSAGES.values()]
    stem = Stemmer.Stemmer("english")
    index = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
    index.index(bm25s.tokenize(texts, stopwords="en", stemmer=stem), show_progress=False)
    tokens = bm25s.tokenize("happy cats", stopwords="en", stemmer=stem, return_ids=False)
    scores = dict(zip(PASSAGES, index.get_scores(tokens[0]).tolist(), strict=True))
    assert run["q1"] == {doc: score for doc, score in scores.items() if score > 0}
    assert list(run["q1"]) == ["d1", "d6", "d5", "d2"]
    assert list(run) == ["q1"]  # Chinese is one long word here; the rest has no known word


def test_text_without_spaces_is_found_by_pairs(tmp_path):
    dataset = prepared_dataset(tmp_path, PASSAGES, QUERIES)
    run = run_bm25(tmp_path, dataset, {}, 10)
    assert list(run["q2"]) == ["d3", "d4"] and list(run["q1"]) == ["d1", "d6", "d5", "d2"]
    run = run_bm25(tmp_path, dataset, {"tokenizer": "characters"}, 10)
    assert list(run["q5"]) == ["d3"]


def test_tokens():
    pairs = Tokenizer(DEFAULTS)
    assert pairs(["Running in 北京大学, a 猫 ภาษา"]) == [
        ["run", "北京", "京大", "大学", "猫", "ภา", "าษ", "ษา"]
    ]
    plain = {"stopwords": None, "stemmer": None}
    characters = Tokenizer(DEFAULTS | plain | {"tokenizer": "characters"})
    assert characters(["ＡB 猫\n狗"]) == [["a", "b", "猫", "狗"]]


def test_english_is_tokenised_as_bm25s_does():
    if not XQUAD.is_dir():
        pytest.skip(f"{XQUAD} is not there")
    lines = (XQUAD / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    texts = [text for text in texts if text.isascii()]
    stem = Stemmer.Stemmer("english")
    theirs = bm25s.tokenize(texts, stopwords="en", stemmer=stem, return_ids=False)
    assert len(texts) > 100 and Tokenizer(DEFAULTS)(texts) == theirs


def test_ties_at_the_cut(tmp_path):
    passages = {f"d{i}": ("", "same words") for i in np.random.default_rng(0).permutation(50)}
    dataset = prepared_dataset(tmp_path, passages | {"d1": ("", "same words")}, {"q": "words"})
    run = run_bm25(tmp_path, dataset, {}, 5)
    assert list(run["q"]) == ["d9", "d8", "d7", "d6", "d5"]


def test_the_query_s_own_document_does_not_count_among_the_best(tmp_path):
    passages = {f"d{i}": ("", "same words") for i in range(9)}
    dataset = prepared_dataset(tmp_path, passages, {"q": "words", "d8": "words", "d1": "words"})
    run = run_bm25(tmp_path, dataset, {}, 2)
    assert [list(run[query]) for query in ("q", "d8")] == [["d8", "d7"], ["d8", "d7", "d6"]]
    assert list(run["d1"]) == ["d8", "d7"]  # its own is not among them


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"k": 1}, "unknown key 'k'.*k1"),
        ({"k1": "high"}, "give a number"),
        ({"method": "tfidf"}, "may be robertson, lucene"),
        ({"stemmer": "klingon"}, "stemmer is 'klingon'"),
    ],
)
def test_a_wrong_spec_is_refused(tmp_path, spec, message):
    with pytest.raises(UserError, match=message):
        list(
            search_bm25(tmp_path / "corpus.parquet", tmp_path / "queries.parquet", "join", spec, 5)
        )
