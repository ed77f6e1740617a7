"""The packed engine against plain transformers, one text at a time."""

import random

import numpy as np
import pytest
import torch
import transformers
from embedrepro.encode import attention as attention_module
from embedrepro.encode import load_engine
from embedrepro.encode.loading import cast
from embedrepro.encode.packed import PackedEngine
from encode_models import DECODERS, ENCODERS, WORDS, attend_each, model_class, tiny

CASES = [(family, False) for family in ENCODERS]
CASES += [(family, False) for family in DECODERS]
CASES += [(family, True) for family in DECODERS if "bidirectional" not in family]
PADDED = ("mpnet", "gemma2", "t5", "mt5", "umt5")


def some_texts(count=23, seed=0):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 50))) for _ in range(count)]


def encode(engine, texts, role="passage", **given):
    found = np.full((len(texts), engine.facts.dimension), np.nan, engine.precision.stored)
    for part in engine.encode(texts, role, **given):
        found[part.rows] = part.vectors
    return found


def reference(folder, texts, pooling, normalise=True):
    """Each text alone, without padding, through the library's own eager attention."""
    config = transformers.AutoConfig.from_pretrained(folder)
    cls = model_class(config)
    model = cls.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    vectors = []
    for text in texts:
        ids = torch.tensor([tokenizer(text, truncation=True, max_length=64)["input_ids"]])
        with torch.inference_mode():
            hidden = model(input_ids=ids).last_hidden_state[0]
        vector = {"cls": hidden[0], "last_token": hidden[-1], "mean": hidden.mean(0)}[pooling]
        vectors.append(vector / vector.norm() if normalise else vector)
    return torch.stack(vectors).numpy()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Staged folders by family and direction, made when first asked for."""
    made = {}

    def get(family, causal=False, **facts):
        key = (family, causal, *sorted(facts.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp(family) / "model"
            made[key] = tiny(folder, family, causal, **facts)
        return made[key]

    return get


@pytest.mark.parametrize(("family", "causal"), CASES)
def test_padded_equals_one_text_at_a_time(folders, family, causal):
    folder = folders(family, causal)
    engine = load_engine(folder, {}, "cpu", tokens_per_batch=256)
    texts = some_texts()
    expected = reference(folder, texts, engine.facts.pooling)
    np.testing.assert_allclose(encode(engine, texts), expected, atol=5e-6)


@pytest.mark.parametrize(("family", "causal"), [case for case in CASES if case[0] not in PADDED])
def test_end_to_end_layout_equals_one_text_at_a_time(folders, monkeypatch, family, causal):
    """Positions, offsets, windows, direction and grouped heads of the CUDA layout, on the CPU."""
    monkeypatch.setattr(PackedEngine, "_can_varlen", lambda self: True)
    monkeypatch.setattr(attention_module, "varlen_attn", attend_each)
    folder = folders(family, causal)
    engine = PackedEngine(load_facts(folder), "cpu", 200)
    texts = some_texts()
    expected = reference(folder, texts, engine.facts.pooling)
    np.testing.assert_allclose(encode(engine, texts), expected, atol=5e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("family", [*ENCODERS, *DECODERS])
def test_weights_turned_to_half_are_those_that_loading_gives(folders, family, dtype):
    folder = folders(family)
    cls = model_class(transformers.AutoConfig.from_pretrained(folder))
    loaded = cls.from_pretrained(folder, dtype=getattr(torch, dtype))
    turned = cls.from_pretrained(folder, dtype=torch.float32)
    if not cast(turned, dtype):
        assert family in ("t5", "mt5", "umt5") or "gemma" in family  # parameters, buffers
        return
    for tensors in ("named_parameters", "named_buffers"):
        wanted, found = (dict(getattr(model, tensors)()) for model in (loaded, turned))
        assert list(found) == list(wanted)
        for name, tensor in found.items():
            assert tensor.dtype == wanted[name].dtype, name
            assert torch.equal(tensor, wanted[name]), name


@pytest.mark.parametrize("family", ["bert", "qwen2", "t5"])
def test_an_engine_turned_gives_the_vectors_of_one_loaded_so(folders, family):
    folder, texts = folders(family), some_texts()
    engine = PackedEngine(load_facts(folder, dtype="float32"), "cpu", 256)
    whole = encode(engine, texts)
    assert engine.turn(load_facts(folder, dtype="bfloat16"), False)
    found = encode(engine, texts)
    fresh = PackedEngine(load_facts(folder, dtype="bfloat16"), "cpu", 256)
    assert found.dtype == np.float16
    assert found.tobytes() == encode(fresh, texts).tobytes() != whole.astype(np.float16).tobytes()
    assert not engine.turn(load_facts(folder, dtype="float32"), False)  # what is rounded is lost


def load_facts(folder, **settings):
    from embedrepro.encode import resolve

    return resolve(folder, settings)
