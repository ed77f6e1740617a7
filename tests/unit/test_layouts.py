"""Layouts of model folders: each gives sentence-transformers' vectors, or is refused in words.

The folders hold tiny random weights; the reference is `SentenceTransformer` on the files as they
came. `tests/layouts.py` makes the whole table, of which the slow test here asks for no wrong row.
"""

import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from embedrepro.encode import ENGINES
from embedrepro.errors import UserError
from embedrepro.models import comparison
from embedrepro.models.preflight import preflight
from embedrepro.models.staging import stage
from layout_folders import (
    PROMPTS,
    adapter,
    cased,
    change,
    clip,
    dense,
    in_a_folder,
    layer_norm,
    left,
    masked_lm,
    model2vec,
    own_forward,
    own_module,
    plain,
    renamed_settings,
    router,
    static,
    t5,
    without_padding_token,
    wordpiece,
    written,
)
from layout_list import DECODERS, ENCODERS, routed, saved, words
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize
from sentence_transformers.sentence_transformer.modules import CNN, LSTM, Pooling


def architecture(name: str):
    sizes, mode = ENCODERS.get(name, (None, ""))[0], "mean_tokens"
    if sizes is None:
        sizes, mode = DECODERS[name][0], "lasttoken"
    return lambda folder: written(folder, name, mode, **sizes)


def no_word(folder: Path) -> Path:
    """Of some texts it has no word: their vectors are zeros."""
    return saved(folder, words(folder), Pooling(24, "mean"))


CONFIG = "config_sentence_transformers.json"
BERT = "sentence_bert_config.json"
# name, how the folder is made, the engine, what the user states
RIGHT = [
    ("plain", plain, "packed", {}),
    ("cls", lambda f: plain(f, pooling="cls"), "packed", {}),
    ("prompts", lambda f: change(plain(f), CONFIG, **PROMPTS), "packed", {}),
    ("normalize", lambda f: plain(f, Normalize()), "packed", {}),
    ("dot", lambda f: change(plain(f), CONFIG, similarity_fn_name="dot"), "packed", {}),
    ("truncate_dim", lambda f: change(plain(f), CONFIG, truncate_dim=16), "packed", {}),
    ("Dense", lambda f: plain(f, dense(32, 16)), None, {}),
    ("Dense, LayerNorm", lambda f: plain(f, layer_norm(), dense(32, 48)), None, {}),
    (
        "two Dense, Normalize",
        lambda f: plain(f, dense(32, 48, torch.nn.Identity()), dense(48, 8), Normalize()),
        None,
        {},
    ),
    ("max", lambda f: plain(f, pooling="max"), None, {}),
    ("weightedmean", lambda f: plain(f, pooling="weightedmean"), None, {}),
    ("mean_sqrt_len", lambda f: plain(f, pooling="mean_sqrt_len_tokens"), None, {}),
    ("cls and max", lambda f: plain(f, pooling=("cls", "max")), None, {}),
    (
        "include_prompt: false",
        lambda f: change(plain(f, include=False), CONFIG, **PROMPTS),
        None,
        {},
    ),
    (
        "include_prompt: false, the user's prompt",
        lambda f: plain(f, include=False),
        None,
        {"query_prompt": "find: ", "passage_prompt": "this: "},
    ),
    ("sentence_roberta_config.json", renamed_settings, "packed", {}),
    ("max_seq_length", lambda f: change(plain(f), BERT, max_seq_length=20), "packed", {}),
    (
        "lengths by role",
        lambda f: change(plain(f), BERT, query_length=10, document_length=30),
        "packed",
        {},
    ),
    (
        "tokenizer_args",
        lambda f: change(plain(f), BERT, tokenizer_args={"model_max_length": 20}),
        "packed",
        {},
    ),
    (
        "config_args",
        lambda f: change(plain(f), BERT, config_args={"hidden_act": "relu"}),
        "packed",
        {},
    ),
    (
        "model_args that change nothing",
        lambda f: change(plain(f), BERT, model_args={"attn_implementation": "eager"}),
        "packed",
        {},
    ),
    ("do_lower_case", cased, "packed", {}),
    ("0_Transformer", in_a_folder, "packed", {}),
    ("no padding token", without_padding_token, "packed", {}),
    (
        "bidirectional Qwen3",
        lambda f: plain(f, family="Qwen3", pooling="mean", is_causal=False),
        "packed",
        {},
    ),
    (
        "Gemma 3, bidirectional, beyond its window",
        lambda f: plain(f, family="Gemma3Text", use_bidirectional_attention=True, sliding_window=8),
        "packed",
        {},
    ),
    ("last token of an encoder", lambda f: plain(f, pooling="lasttoken"), "packed", {}),
    ("ModernBERT with its head", masked_lm("ModernBert"), "packed", {}),
    ("DistilBERT with its head", masked_lm("DistilBert"), "packed", {}),
    ("data2vec without a length", lambda f: plain(f, family="Data2VecText"), "packed", {}),
    ("luke without a length", lambda f: plain(f, family="Luke"), "flagembedding", {}),
    ("vocab.txt alone", wordpiece, "packed", {}),
    ("T5 encoder, Dense", t5, "packed", {}),
    ("StaticEmbedding", static, "sentence_transformers", {}),
    (
        "CNN",
        lambda f: plain(f, CNN(32, 16, kernel_sizes=[1, 3])),
        "sentence_transformers",
        {},
    ),
    ("a module of its own", own_module, "sentence_transformers", {}),
    ("Router", router, "sentence_transformers", {}),
    ("model2vec", model2vec, "sentence_transformers", {}),
    ("own code of a native type", own_forward, "flagembedding", {"native": False}),
    ("own code that trust asks for", own_forward, "flagembedding", {}),
    ("cls, padded before", lambda f: left(plain(f, pooling="cls")), "packed", {}),
]
# Of the table as well; kept here because they were wrong, or refused though right.
MENDED = [
    (
        "truncate_dim after Normalize, dot",
        lambda f: change(plain(f, Normalize()), CONFIG, truncate_dim=8, similarity_fn_name="dot"),
        "packed",
        {},
    ),
    *(
        (f"{name} without a length", architecture(name), "flagembedding", {})
        for name in ("xmod", "longformer", "ibert")
    ),
    *(
        (f"{name}, absolute positions", architecture(name), "flagembedding", {})
        for name in ("hunyuan_v1_dense", "xglm")
    ),
    ("Router, two transformers", routed, "sentence_transformers", {}),
    ("words that it doesn't know", no_word, "sentence_transformers", {}),
]
REFUSED = [
    ("adapter beside weights", adapter, r"an adapter \(adapter_config.json, for org/base\) beside"),
    ("adapter only", lambda f: adapter(f, full=False), "an adapter .* and not the model"),
    (
        "unknown key of a pooling",
        lambda f: change(plain(f), "1_Pooling/config.json", pooling_mode_median=True),
        "pooling_mode_median is not known here",
    ),
    (
        "unknown key of the transformer",
        lambda f: change(plain(f), BERT, chunk_size=8),
        "chunk_size is not known here",
    ),
    (
        "unknown model_args",
        lambda f: change(plain(f), BERT, model_args={"rotary_base": 5}),
        "model_args: rotary_base is not understood",
    ),
    (
        "similarity",
        lambda f: change(plain(f), CONFIG, similarity_fn_name="euclidean"),
        "similarity is euclidean",
    ),
    (
        "Dense of an activation from elsewhere",
        lambda f: change(plain(f, dense(32, 8)), "2_Dense/config.json", activation_function="os.x"),
        "activation_function: os.x is not torch.nn's",
    ),
    (
        "Dense of another input",
        lambda f: change(plain(f, dense(32, 8)), "2_Dense/config.json", module_input_name="tokens"),
        "module_input_name: tokens",
    ),
    (
        "sparse",
        lambda f: change(plain(f), CONFIG, model_type="SparseEncoder"),
        "make a sparse model, not a dense one",
    ),
]


def spec(**facts: object) -> dict:
    base = {"id": "demo/Tiny-0.1B", "model": "demo__Tiny-0_1B", "source": {"path": "/x"}}
    return base | {"trust_remote_code": True, "facts": facts, "registry": {}}


def texts(record: dict) -> list[str]:
    return [*comparison.sample(record), "ALL CAPITALS and then not"]


CASES = [pytest.param(*row[1:], id=row[0]) for row in RIGHT]
CASES += [pytest.param(*row[1:], id=row[0], marks=pytest.mark.slow) for row in MENDED]


@pytest.mark.parametrize(("make", "engine", "facts"), CASES)
def test_right(tmp_path, make, engine, facts):
    snapshot = make(tmp_path / "snapshot")
    staged = tmp_path / "demo__Tiny-0_1B-k"
    record = stage(spec(**facts), snapshot, staged)
    if engine:
        assert record["engine"] == engine
    if record["engine"] not in ENGINES:
        pytest.skip(f"no engine {record['engine']} yet")
    preflight(staged, tmp_path / "preflight.json")
    peer = SentenceTransformer(str(snapshot), device="cpu", trust_remote_code=True)
    ours = comparison.load_ours(staged)
    for role in ("query", "passage"):
        with suppress(AttributeError, TypeError):  # some run over their positions
            peer.max_seq_length = min(peer.max_seq_length, record["max_length"][role])
        encode = peer.encode_query if role == "query" else peer.encode_document
        settings = {"prompt": record[f"{role}_prompt"]} if facts else {}
        settings |= {"normalize_embeddings": record["normalize"], "batch_size": 1}
        expected = encode(texts(record), **settings)  # padded, some would be others
        found = comparison.own(ours, texts(record), role)
        assert found.shape == expected.shape
        np.testing.assert_allclose(comparison.unit(found), comparison.unit(expected), atol=2e-6)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * abs(expected).max())


LATER = [
    ("CLIP without what reads images", clip, "can't run it .*module CLIPModel.*image processor"),
    ("LSTM", lambda f: plain(f, LSTM(32, 8)), "can't run it .*module LSTM.*sentence_lengths"),
]


@pytest.mark.parametrize(
    ("make", "says"), [row[1:] for row in LATER], ids=[row[0] for row in LATER]
)
def test_refused_by_preflight(tmp_path, make, says):
    stage(spec(), make(tmp_path / "snapshot"), tmp_path / "staged")
    with pytest.raises(UserError, match=says):
        preflight(tmp_path / "staged", tmp_path / "preflight.json")
    assert not (tmp_path / "preflight.json").exists()


@pytest.mark.parametrize(
    ("make", "says"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_refused(tmp_path, make, says):
    snapshot = make(tmp_path / "snapshot")
    with pytest.raises(UserError, match=says):
        stage(spec(), snapshot, tmp_path / "staged")
    assert not (tmp_path / "staged").exists()


@pytest.mark.slow
def test_no_row_of_the_table_is_wrong():
    """All layouts of `tests/layouts.py`: some minutes."""
    script = Path(__file__).parents[1] / "layouts.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (last,) = re.findall(r"^(\d+) layouts: right (\d+), wrong 0, crash 0", done.stdout, re.M)
    assert int(last[0]) >= 400 and int(last[1]) >= 330
