"""Reranking against CrossEncoder's and FlagReranker's own scores, with tiny models made here."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from embedrepro.errors import UserError
from embedrepro.models.preflight import preflight
from embedrepro.models.staging import stage
from embedrepro.search.rerank import (
    load_reranker,
    merge_reranked,
    read_spec,
    rerank_shard,
    shard_bounds,
)
from embedrepro.search.runs import read_run, write_run

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
    rows = [{"id": i, "title": title, "text": text} for i, (title, text) in passages.items()]
    pq.write_table(pa.Table.from_pylist(rows), folder / "corpus.parquet", row_group_size=16)
    rows = [{"id": i, "text": text} for i, text in queries.items()]
    pq.write_table(pa.Table.from_pylist(rows), folder / "queries.parquet")
    scores = np.arange(6, 0, -1, dtype=np.float32)
    found = {query: list(random.choice(list(passages), 6, replace=False)) for query in queries}
    write_run(folder / "run.trec", ((q, docs, scores) for q, docs in found.items()), "first")
    texts = {i: f"{title} {text}".strip() for i, (title, text) in passages.items()}
    pairs = {q: [(d, (queries[q], texts[d])) for d in docs] for q, docs in found.items()}
    return folder, found, pairs


def spec_of(name: str = "demo/tiny", **facts) -> dict:
    base = {"id": name, "model": "tiny", "source": {"path": "/x"}, "kind": "reranker"}
    return base | {"trust_remote_code": False, "facts": facts, "registry": {}}


@pytest.fixture(scope="module")
def staged(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("staged") / "tiny-k"
    record = stage(spec_of(), model, folder)
    assert (record["scoring"], record["kind"]) == ("cross-encoder", "reranker")
    preflight(folder, folder.parent / "preflight.json")
    return folder


def rerank(tmp_path, data, staged, spec: dict, shards: int) -> dict:
    folder = data[0]
    parts = [tmp_path / f"{i}-of-{shards}.parquet" for i in range(shards)]
    texts = folder / "corpus.parquet", folder / "queries.parquet", "join"
    for i, part in enumerate(parts):
        rerank_shard(folder / "run.trec", *texts, staged, spec, (i, shards), part, "cpu")
    write_run(tmp_path / "run.trec", merge_reranked(parts[::-1]), "tiny")
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


def test_scores_are_those_of_cross_encoder_for_any_number_of_shards(tmp_path, data, model, staged):
    from sentence_transformers import CrossEncoder

    spec = {"depth": 4, "batch_size": 8, "max_length": 32}
    run = rerank(tmp_path, data, staged, spec, 1)
    peer = CrossEncoder(str(model), max_length=32, device="cpu", local_files_only=True)
    assert_scores(run, data[2], 4, lambda p: peer.predict(p, activation_fn=torch.nn.Identity()))
    whole = (tmp_path / "run.trec").read_bytes()
    for shards in (2, 5):
        rerank(tmp_path, data, staged, spec, shards)
        assert (tmp_path / "run.trec").read_bytes() == whole


def test_scores_are_those_of_flag_reranker(tmp_path, data, model, staged):
    from FlagEmbedding import FlagReranker

    spec = {"engine": "encoder-only-base", "batch_size": 16, "max_length": 32}
    run = rerank(tmp_path, data, staged, spec, 2)
    peer = FlagReranker(str(model), devices=["cpu"], max_length=32)
    assert_scores(run, data[2], 6, peer.compute_score)


def test_a_run_of_other_data_is_refused(tmp_path, data, staged):
    texts = data[0] / "corpus.parquet", data[0] / "queries.parquet", "join"
    ones = np.ones(1, np.float32)
    for ranking, missing in [(("q1", ["nowhere"], ones), "nowhere"), (("qx", ["d1"], ones), "qx")]:
        write_run(tmp_path / "other.trec", [ranking], "t")
        output = tmp_path / "scores.parquet"
        with pytest.raises(UserError, match=f"names '{missing}'"):
            rerank_shard(tmp_path / "other.trec", *texts, staged, {}, (0, 1), output, "cpu")
        assert not output.exists()


def test_merge_refuses_shards_that_do_not_belong_together(tmp_path, data, model, staged):
    rerank(tmp_path, data, staged, {"depth": 1}, 2)
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
            write_run(tmp_path / "out.trec", merge_reranked(files), "t")
        assert not (tmp_path / "out.trec").exists()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"engines": "x"}, "unknown key 'engines'.*engine"),
        ({"engine": "colbert"}, "may be auto, cross-encoder, encoder-only-base"),
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


def words(folder: Path, special: list[str]) -> None:
    """A tokenizer of words, lower-cased letters and `special` tokens, without any of its own."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [chr(n) for n in range(33, 127)]
    known = ["<unk>", "<pad>", "yes", "no", "Yes", *WORDS, *letters, "\n"]
    rust = Tokenizer(models.WordLevel({w: i for i, w in enumerate(known)}, unk_token="<unk>"))
    rust.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=rust, unk_token="<unk>", pad_token="<pad>", eos_token=special[-1]
    )
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def language_model(tmp_path_factory) -> Path:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("llm") / "tiny"
    torch.manual_seed(2)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
    config = Qwen3Config(vocab_size=200, pad_token_id=1, max_position_embeddings=512, **sizes)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    words(folder, ["<|im_start|>", "<|im_end|>"])
    return folder


PAIRS = [("do cats purr", "cats purr and sleep " * n) for n in (1, 3, 9, 40)]
PAIRS += [("birds fly", "dogs bark " * n + "home") for n in (1, 2, 30)]


def test_qwen3_s_question_as_its_card_asks_it(tmp_path, language_model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    record = stage(spec_of("Qwen/Qwen3-Reranker-0.6B"), language_model, tmp_path / "st")
    assert record["scoring"] == "qwen3-reranker"
    preflight(tmp_path / "st", tmp_path / "p.json")
    settings = read_spec({"max_length": 200, "batch_size": 3})
    found = load_reranker(tmp_path / "st", settings, "cpu")(PAIRS)
    tokenizer = AutoTokenizer.from_pretrained(language_model, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(language_model).eval()
    template = record["template"]
    before, after = (
        tokenizer.encode(template[part], add_special_tokens=False) for part in ("prefix", "suffix")
    )
    room = 200 - len(before) - len(after)
    for (query, passage), score in zip(PAIRS, found, strict=True):
        text = template["body"].format(task=template["task"], query=query, passage=passage)
        ids = tokenizer(text, truncation=True, max_length=room, add_special_tokens=False)
        row = torch.tensor([before + ids["input_ids"] + after])
        with torch.no_grad():
            logits = model(row).logits[0, -1]
        yes, no = (logits[tokenizer.convert_tokens_to_ids(word)] for word in ("yes", "no"))
        assert score == pytest.approx(float(yes - no), abs=1e-5)
    other = load_reranker(tmp_path / "st", settings | {"instruction": "cats only"}, "cpu")(PAIRS)
    assert other != found


def test_a_language_model_by_flagembedding_s_recipe(tmp_path, language_model):
    from FlagEmbedding import FlagLLMReranker

    name = "BAAI/bge-reranker-v2-gemma"
    assert stage(spec_of(name), language_model, tmp_path / "st")["scoring"] == "decoder-only-base"
    preflight(tmp_path / "st", tmp_path / "p.json")
    settings = read_spec({"max_length": 100, "batch_size": 4})
    found = load_reranker(tmp_path / "st", settings, "cpu")(PAIRS)
    peer = FlagLLMReranker(str(language_model), devices=["cpu"], max_length=100, batch_size=4)
    np.testing.assert_allclose(found, peer.compute_score(PAIRS), atol=1e-5)
    with pytest.raises(UserError, match="how it is asked to rerank; set rerank: {engine"):
        stage(spec_of("my/ranker"), language_model, tmp_path / "no")
    stated = stage(spec_of("my/ranker", recipe="qwen3-reranker"), language_model, tmp_path / "my")
    assert stated["template"]["yes"] == "yes"


def test_layers_of_minicpm_score_as_transformers_own_llama_does(tmp_path):
    from rerankers_made import folded, minicpm

    snapshot = minicpm(tmp_path / "snapshot")
    stage(spec_of("BAAI/bge-reranker-v2-minicpm-layerwise"), snapshot, tmp_path / "st")
    preflight(tmp_path / "st", tmp_path / "p.json")
    for layers in ({}, {"cutoff_layers": [3]}):
        settings = read_spec({"max_length": 120, "batch_size": 4, "options": layers})
        found = load_reranker(tmp_path / "st", settings, "cpu")(PAIRS)
        np.testing.assert_allclose(found, folded(snapshot, PAIRS, settings), atol=1e-5)


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ({"instruction": "Find cats"}, "instruction: is of qwen3-reranker"),
        ({"prompt": "Same?"}, "prompt: is of the decoder-only recipes"),
        ({"options": {"cutoff_layers": [3]}}, "options: is of FlagEmbedding's recipes"),
    ],
)
def test_what_would_change_nothing_is_refused(staged, key, says):
    with pytest.raises(UserError, match=says):
        load_reranker(staged, read_spec(key), "cpu")


def test_heads_are_looked_at(tmp_path, model):
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    sizes = json.loads((model / "config.json").read_text())
    for cls, labels, says in (
        (BertModel, 1, "holds no classification head"),
        (BertForSequenceClassification, 2, "has 2 labels"),
    ):
        folder = tmp_path / str(labels)
        cls(BertConfig(**sizes | {"num_labels": labels})).save_pretrained(folder)
        for path in model.glob("*token*"):
            (folder / path.name).write_bytes(path.read_bytes())
        with pytest.raises(UserError, match=says):
            stage(spec_of(), folder, tmp_path / "st")


def test_code_from_another_repository_is_refused(tmp_path, model):
    folder = tmp_path / "own"
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "own"}
    config["auto_map"] = {"AutoModelForSequenceClassification": "other/repo--modeling.Ranker"}
    (folder / "config.json").write_text(json.dumps(config))
    hub = {"hub": "demo/tiny", "revision": "0" * 40}
    with pytest.raises(UserError, match="set trust_remote_code: true"):
        stage(spec_of() | {"source": hub}, folder, tmp_path / "st")
    trusted = spec_of() | {"source": hub, "trust_remote_code": True}
    with pytest.raises(UserError, match=r"another repository \(other/repo\), which nothing pins"):
        stage(trusted, folder, tmp_path / "st")
    with pytest.raises(UserError, match="code_revision: .*or put that file beside config.json"):
        stage(trusted | {"source": {"path": "/x"}}, folder, tmp_path / "st")
