"""Reranking against CrossEncoder's and FlagReranker's own scores, with tiny models made here."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from embedrepro.errors import UserError
from embedrepro.search.rerank import read_spec, shard_bounds
from embedrepro.search.runs import read_run, write_run
from helpers import prepared_dataset

WORDS = ["cats", "dogs", "purr", "bark", "sleep", "run", "eat", "fish", "birds", "fly", "home"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A random BERT of two layers with one output and a word-piece vocabulary."""
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder = tmp_path_factory.mktemp("reranker") / "tiny"
    folder.mkdir()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(special + WORDS) + "\n")
    BertTokenizerFast(str(vocabulary)).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(special) + len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=1,
        initializer_range=0.5,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> tuple[Path, dict, dict]:
    """A prepared dataset of 70 queries and 40 passages, and a run of 6 documents a query."""
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(1)

    def sentence(least: int, most: int) -> str:
        return " ".join(random.choice(WORDS, random.integers(least, most)))

    queries = {f"q{i}": sentence(2, 5) for i in range(70)}
    passages = {f"d{i}": (WORDS[i % 9] if i % 3 else "", sentence(5, 30)) for i in range(40)}
    prepared_dataset(folder, passages, queries)
    scores = np.arange(6, 0, -1, dtype=np.float32)
    found = {query: list(random.choice(list(passages), 6, replace=False)) for query in queries}
    write_run(folder / "run.trec", ((q, docs, scores) for q, docs in found.items()), "first")
    texts = {i: f"{title} {text}".strip() for i, (title, text) in passages.items()}
    pairs = {q: [(d, (queries[q], texts[d])) for d in docs] for q, docs in found.items()}
    return folder, found, pairs


def call(monkeypatch, name: str, *words) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    importlib.import_module(name).main()


def rerank(monkeypatch, tmp_path, data, model, spec: dict, shards: int) -> dict:
    folder = data[0]
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    parts = [tmp_path / f"{i}-of-{shards}.parquet" for i in range(shards)]
    for i, part in enumerate(parts):
        words = ["--run", folder / "run.trec", "--dataset", folder / "made", "--split", "test"]
        words += ["--staged", model, "--spec", tmp_path / "spec.json", "--shard", i]
        words += ["--shards", shards, "--output", part, "--device", "cpu"]
        call(monkeypatch, "rerank_shard", *words)
    words = ["--scores", *parts[::-1], "--tag", "tiny", "--output", tmp_path / "run.trec"]
    call(monkeypatch, "merge_reranked", *words)
    return read_run(tmp_path / "run.trec")


def assert_scores(run: dict, pairs: dict, depth: int, score) -> None:
    asked = [(query, doc, pair) for query in pairs for doc, pair in pairs[query][:depth]]
    theirs = np.asarray(score([pair for _, _, pair in asked]), np.float32)
    assert len(set(theirs.tolist())) > 100  # the model tells pairs apart
    assert sum(map(len, run.values())) == len(asked)
    for (query, doc, _), value in zip(asked, theirs, strict=True):
        assert run[query][doc] == pytest.approx(value, abs=1e-4)  # other padding
    for query, ranking in run.items():
        order = sorted(ranking, key=lambda doc: (ranking[doc], doc.encode()), reverse=True)
        assert list(ranking) == order, query


def test_scores_are_those_of_cross_encoder_for_any_number_of_shards(
    monkeypatch, tmp_path, data, model
):
    from sentence_transformers import CrossEncoder

    spec = {"depth": 4, "batch_size": 8, "max_length": 32}
    run = rerank(monkeypatch, tmp_path, data, model, spec, 1)
    peer = CrossEncoder(str(model), max_length=32, device="cpu", local_files_only=True)
    assert_scores(run, data[2], 4, lambda p: peer.predict(p, activation_fn=torch.nn.Identity()))
    whole = (tmp_path / "run.trec").read_bytes()
    for shards in (2, 5):
        rerank(monkeypatch, tmp_path, data, model, spec, shards)
        assert (tmp_path / "run.trec").read_bytes() == whole


def test_scores_are_those_of_flag_reranker(monkeypatch, tmp_path, data, model):
    from FlagEmbedding import FlagReranker

    spec = {"engine": "encoder-only-base", "batch_size": 16, "max_length": 32}
    run = rerank(monkeypatch, tmp_path, data, model, spec, 2)
    peer = FlagReranker(str(model), devices=["cpu"], max_length=32)
    assert_scores(run, data[2], 6, peer.compute_score)


def test_a_run_of_other_data_is_refused(monkeypatch, tmp_path, data, model):
    folder = data[0]
    ones = np.ones(1, np.float32)
    for ranking, missing in [(("q1", ["nowhere"], ones), "nowhere"), (("qx", ["d1"], ones), "qx")]:
        write_run(tmp_path / "other.trec", [ranking], "t")
        (tmp_path / "spec.json").write_text("{}")
        words = ["--run", tmp_path / "other.trec", "--dataset", folder / "made"]
        words += ["--split", "test", "--staged", model, "--spec", tmp_path / "spec.json"]
        with pytest.raises(UserError, match=f"names '{missing}'"):
            call(monkeypatch, "rerank_shard", *words, "--output", tmp_path / "scores.parquet")
        assert not (tmp_path / "scores.parquet").exists()


def test_merge_refuses_shards_that_do_not_belong_together(monkeypatch, tmp_path, data, model):
    rerank(monkeypatch, tmp_path, data, model, {"depth": 1}, 2)
    first, second = (tmp_path / f"{i}-of-2.parquet" for i in (0, 1))
    table = pq.read_table(second)
    meta = json.loads(table.schema.metadata[b"embed-repro"]) | {"run": "another"}
    other = tmp_path / "other.parquet"
    pq.write_table(table.replace_schema_metadata({b"embed-repro": json.dumps(meta)}), other)
    pq.write_table(table.replace_schema_metadata(None), tmp_path / "plain.parquet")
    for files, message in [
        ([first], "scores of 32 of 70"),
        ([second], "starts at 32, but query 0"),
        ([first, first, second], "starts at 0, but query 32"),
        ([first, other], "another run, model or settings"),
        ([first, tmp_path / "plain.parquet"], "not an output"),
    ]:
        with pytest.raises(UserError, match=message):
            words = ["--scores", *files, "--tag", "t", "--output", tmp_path / "out.trec"]
            call(monkeypatch, "merge_reranked", *words)
        assert not (tmp_path / "out.trec").exists()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"engines": "x"}, "unknown key 'engines'.*engine"),
        ({"engine": "colbert"}, "may be cross-encoder, encoder-only-base"),
        ({"engine": "encoder-only-base", "dtype": "bfloat16"}, "no bfloat16"),
    ],
)
def test_a_wrong_spec_is_refused(spec, message):
    with pytest.raises(UserError, match=message):
        read_spec(spec)


def test_shards_are_cut_between_chunks():
    for queries, of in [(70, 2), (70, 5), (1, 3), (0, 2), (1000, 7)]:
        bounds = [shard_bounds(queries, i, of) for i in range(of)]
        assert [start for start, _ in bounds] == [0, *(stop for _, stop in bounds[:-1])]
        assert bounds[-1][1] == queries and all(
            start % 32 == 0 or start == queries for start, _ in bounds
        )
    with pytest.raises(UserError, match="use 0 to 1"):
        shard_bounds(10, 2, 2)
