"""Steps after the transformer, families and lengths: every engine against sentence-transformers."""

import json
import shutil

import numpy as np
import pytest
import torch
from embedrepro.encode import attention as attention_module
from embedrepro.encode import load_engine
from embedrepro.encode.packed import PackedEngine
from embedrepro.errors import UserError
from encode_models import attend_each, stage, tiny
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from test_encode_general import KINDS, LIMIT, encode, peer, pooled, randomise, texts

PROMPT = "w3 w4 w5 "
STEPS = {
    "max": "bert",
    "mean_sqrt_len": "bert",
    "weightedmean without prompt": "bert",
    "mean without prompt": "bert",
    "several, dense, layer norm": "bert",
    "t5": "t5",
    "cls, max without prompt": "bert",
    "two dense": "bert",
}


def cls_max(tmp_path):
    return pooled(tmp_path, "cls", "max", "lasttoken", "weightedmean", prompt=False)


def two_dense(tmp_path):
    first = Dense(64, 96, activation_function=torch.nn.GELU())
    second = Dense(96, 96, bias=False, activation_function=torch.nn.Identity(), use_residual=True)
    return randomise([*pooled(tmp_path, "cls"), first, Normalize(), second])


def rows_of(folder):
    """The steps as staging describes them."""
    rows = []
    for row in json.loads((folder / "modules.json").read_text())[1:]:
        path = folder / row["path"] / "config.json"
        config = json.loads(path.read_text()) if path.is_file() else {}
        if isinstance(config.get("pooling_mode"), str):
            config["pooling_mode"] = [config["pooling_mode"]]
        rows.append({"type": row["type"].rpartition(".")[2], "path": row["path"]} | config)
    return rows


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def get(kind):
        if kind not in made:
            scratch = tmp_path_factory.mktemp("made")
            build = KINDS | {"cls, max without prompt": cls_max, "two dense": two_dense}
            model = SentenceTransformer(modules=build[kind](scratch), device="cpu")
            folder = scratch / "model"
            model.save(str(folder), create_model_card=False)
            rows = rows_of(folder)
            facts = {"architecture": STEPS[kind], "pooling": "modules", "modules": rows}
            facts |= {"include_prompt": rows[0].get("include_prompt", True)}
            facts |= {"normalize": rows[-1]["type"] == "Normalize", "query_prompt": PROMPT}
            made[kind] = stage(folder, full_dimension=model.get_embedding_dimension(), **facts)
        return made[kind]

    return get


@pytest.mark.parametrize("layout", ["padded", "varlen"])
@pytest.mark.parametrize("kind", STEPS)
def test_steps_equal_sentence_transformers(folders, monkeypatch, kind, layout):
    if layout == "varlen":
        if kind == "t5":
            pytest.skip("always padded")
        monkeypatch.setattr(PackedEngine, "_can_varlen", lambda self: True)
        monkeypatch.setattr(attention_module, "varlen_attn", attend_each)
    folder = folders(kind)
    engine = load_engine(folder, {}, "cpu", 300)
    assert engine.name == "packed"
    expected = peer(folder).encode_query(texts(), prompt=PROMPT, show_progress_bar=False)
    found, _ = encode(engine, texts(), "query")
    assert np.abs(found - expected).max() <= 1e-5 * max(1, np.abs(expected).max())


def test_cut_comes_after_the_steps(folders):
    folder = folders("several, dense, layer norm")
    whole, _ = encode(load_engine(folder, {}, "cpu"), texts(), "query")
    parts = list(load_engine(folder, {}, "cpu").encode(texts(), "query", dimensions=16))
    cut = np.concatenate([part.vectors for part in parts])
    cut = cut[np.argsort(np.concatenate([part.rows for part in parts]))]
    expected = whole[:, :16] / np.linalg.norm(whole[:, :16], axis=1)[:, None]
    np.testing.assert_allclose(cut, expected, atol=1e-6)


@pytest.mark.parametrize("engine", ["packed", "varlen", "flagembedding", "sentence_transformers"])
def test_gemma3_by_its_own_flag(tmp_path, monkeypatch, engine):
    """Staging says is_causal: false as well; the windows are still Gemma's own, on long texts."""
    plain = tiny(tmp_path / "plain", "gemma3_text bidirectional")
    model = SentenceTransformer(
        modules=[Transformer(str(plain), max_seq_length=LIMIT), Pooling(64), Normalize()],
        device="cpu",
    )
    expected = model.encode(texts(), show_progress_bar=False)
    model.save(str(tmp_path / "staged"), create_model_card=False)
    config = json.loads((tmp_path / "staged" / "config.json").read_text())
    (tmp_path / "staged" / "config.json").write_text(json.dumps(config | {"is_causal": False}))
    if engine == "varlen":
        engine = "packed"
        monkeypatch.setattr(PackedEngine, "_can_varlen", lambda self: True)
        monkeypatch.setattr(attention_module, "varlen_attn", attend_each)
    folder = stage(tmp_path / "staged", architecture="gemma3_text", engine=engine)
    found, _ = encode(load_engine(folder, {}, "cpu", 400), texts(), "passage")
    assert np.abs(found - expected).max() <= 1e-5


@pytest.mark.parametrize("family", ["roberta", "data2vec-text", "xlm-roberta-xl"])
@pytest.mark.parametrize("engine", ["packed", "flagembedding", "sentence_transformers"])
def test_lengths_beyond_the_table_of_positions_are_refused(tmp_path, family, engine):
    if engine != "packed" and family != "roberta":
        pytest.skip("the same check")
    folder = tiny(tmp_path / "model", family, max_length={"query": 64, "passage": 126})
    st = SentenceTransformer(modules=[Transformer(str(folder)), Pooling(64)], device="cpu")
    st.save(str(tmp_path / "st"), create_model_card=False)
    facts = {"architecture": family, "engine": engine, "max_length": {"query": 9, "passage": 126}}
    folder = stage(tmp_path / "st", **facts)
    found, _ = encode(load_engine(folder, {}, "cpu"), ["w1 " * 300, "w2"], "passage")
    assert np.isfinite(found).all()
    with pytest.raises(UserError, match="its table of positions holds 126; set max_length: 126"):
        load_engine(folder, {"max_length": {"query": 127}}, "cpu")


def test_rotary_positions_that_follow_the_batch_are_refused(tmp_path):
    folder = shutil.copytree(tiny(tmp_path / "m", "llama"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    config["max_position_embeddings"] = 32
    (folder / "config.json").write_text(json.dumps(config))
    load_engine(folder, {"max_length": 32}, "cpu")
    with pytest.raises(UserError, match="set max_length: 32 or less"):
        load_engine(folder, {}, "cpu")
