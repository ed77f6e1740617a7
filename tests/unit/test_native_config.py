"""Configs of code that transformers took in since: read in its words, or refused by name.

The vectors are held against the architectures written anew in plain torch, from their papers.
"""

import json
import math

import numpy as np
import pytest
import torch
from embedrepro.encode import load_engine
from embedrepro.errors import UserError
from embedrepro.models.staging import stage
from layout_folders import tokenizer
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch.nn.functional import gelu, layer_norm, normalize, silu

WIDTH, HEADS, LAYERS, VOCABULARY, INNER = 32, 4, 2, 320, 256
TEXTS = ["one", "another, longer text", "北京大学 and the rest of it", "a word and more " * 20]
GTE = {
    **{"model_type": "new", "hidden_size": WIDTH, "num_attention_heads": HEADS},
    **{"num_hidden_layers": LAYERS, "intermediate_size": INNER, "vocab_size": VOCABULARY},
    **{"hidden_act": "gelu", "type_vocab_size": 1, "max_position_embeddings": 2048},
    **{"layer_norm_type": "layer_norm", "position_embedding_type": "rope", "pack_qkv": True},
    **{"logn_attention_scale": False, "layer_norm_eps": 1e-12, "pad_token_id": 1},
    **{"unpad_inputs": True, "use_memory_efficient_attention": True},
    **{"rope_theta": 20000, "rope_scaling": {"type": "ntk", "factor": 8.0}},
    "auto_map": {"AutoModel": "some/where--modeling.NewModel"},
}
NOMIC = {
    **{"model_type": "nomic_bert", "n_embd": WIDTH, "n_head": HEADS, "n_layer": LAYERS},
    **{"n_inner": 200, "n_positions": 2048, "vocab_size": 300, "pad_vocab_size_multiple": 64},
    **{"activation_function": "swiglu", "layer_norm_epsilon": 1e-3, "pad_token_id": 1},
    **{"rotary_emb_fraction": 1.0, "rotary_emb_base": 50, "rotary_emb_interleaved": False},
    **{"qkv_proj_bias": False, "mlp_fc1_bias": False, "mlp_fc2_bias": False, "causal": False},
    **{"prenorm": False, "rotary_scaling_factor": None, "type_vocab_size": 2},
    "auto_map": {"AutoModel": "some/where--modeling_hf_nomic_bert.NomicBertModel"},
}
# Each layout's names: embeddings, their norm, a layer's projections and norms.
NAMES = {
    "new": ("new.embeddings.{}", "new.embeddings.LayerNorm", "new.encoder.layer.{}."),
    "nomic_bert": ("embeddings.{}", "emb_ln", "encoder.layers.{}."),
}
PARTS = {
    "new": ("attention.qkv_proj", "attention.o_proj", "attn_ln", "mlp.down_proj", "mlp_ln"),
    "nomic_bert": ("attn.Wqkv", "attn.out_proj", "norm1", "mlp.fc2", "norm2"),
}
UP = {"new": ["mlp.up_gate_proj"], "nomic_bert": ["mlp.fc11", "mlp.fc12"]}


def weights(kind, types):
    generator = torch.Generator().manual_seed(4)

    def some(*shape):
        return torch.randn(shape, generator=generator) * 0.3

    embeddings, norm, layer = NAMES[kind]
    found = {embeddings.format("word_embeddings.weight"): some(VOCABULARY, WIDTH)}
    found[embeddings.format("token_type_embeddings.weight")] = some(types, WIDTH)
    qkv, out, first, down, second = PARTS[kind]
    norms = [norm]
    for i in range(LAYERS):
        at = layer.format(i)
        found |= {
            f"{at}{qkv}.weight": some(3 * WIDTH, WIDTH),
            f"{at}{out}.weight": some(WIDTH, WIDTH),
        }
        found[f"{at}{down}.weight"] = some(WIDTH, INNER)
        for name in UP[kind]:
            found[f"{at}{name}.weight"] = some(2 * INNER // len(UP[kind]), WIDTH)
        if kind == "new":
            found |= {f"{at}{qkv}.bias": some(3 * WIDTH), f"{at}{out}.bias": some(WIDTH)}
            found[f"{at}{down}.bias"] = some(WIDTH)
        norms += [f"{at}{first}", f"{at}{second}"]
    for name in norms:
        found |= {f"{name}.weight": 1 + some(WIDTH), f"{name}.bias": some(WIDTH)}
    return found


def truth(kind, found, ids, frequencies, eps, act):
    """Last states (tokens, width) of one text."""
    embeddings, norm, layer = NAMES[kind]
    qkv, out, first, down, second = PARTS[kind]

    def linear(x, name):
        y = x @ found[f"{name}.weight"].T
        return y + found[f"{name}.bias"] if f"{name}.bias" in found else y

    def normed(x, name):
        return layer_norm(x, (WIDTH,), found[f"{name}.weight"], found[f"{name}.bias"], eps)

    x = found[embeddings.format("word_embeddings.weight")][ids]
    x = normed(x + found[embeddings.format("token_type_embeddings.weight")][0], norm)
    angles = torch.outer(torch.arange(len(ids)).float(), frequencies)
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]

    def turned(y):
        half = y.shape[-1] // 2
        product = torch.complex(y[..., :half], y[..., half:]) * turn
        return torch.cat([product.real, product.imag], -1)

    for i in range(LAYERS):
        at = layer.format(i)
        q, k, v = linear(x, at + qkv).view(len(ids), 3, HEADS, -1).unbind(1)
        scores = torch.einsum("qhd,khd->hqk", turned(q), turned(k)) / math.sqrt(q.shape[-1])
        mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).reshape(len(ids), WIDTH)
        x = normed(x + linear(mixed, at + out), at + first)
        up, gate = torch.cat([linear(x, at + name) for name in UP[kind]], -1).chunk(2, -1)
        x = normed(x + linear(up * act(gate), at + down), at + second)
    return x


def folder_of(folder, config, kind):
    folder.mkdir()
    tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(config))
    found = weights(kind, config["type_vocab_size"])
    save_file(found, folder / "model.safetensors", {"format": "pt"})
    return found


def staged(tmp_path, config, kind, **more):
    found = folder_of(tmp_path / "snap", config, kind)
    facts = {"pooling": "mean", "normalize": True, "query_prompt": "", "passage_prompt": ""}
    spec = {"id": "me/Old-1.0", "model": "m", "source": {"path": str(tmp_path)}} | more
    spec["facts"] = facts | more.get("facts", {})
    record = stage(spec, tmp_path / "snap", tmp_path / "staged")
    return record, found


def plain(theta):
    return theta ** (-torch.arange(0, WIDTH // HEADS, 2).float() / (WIDTH // HEADS))


def ntk(theta, factor):
    """'NTK-RoPE fixed': the base and each frequency of it are scaled."""
    return plain(theta * factor) / factor ** (2 / (WIDTH // HEADS))


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("kind", "config", "frequencies", "eps", "act"),
    [
        ("new", GTE, ntk(20000, 8), 1e-12, gelu),
        slow("new", GTE | {"model_type": "gte", "rope_scaling": None}, plain(20000), 1e-12, gelu),
        slow("new", {k: v for k, v in GTE.items() if "rope_" not in k}, plain(10000), 1e-12, gelu),
        ("nomic_bert", NOMIC, plain(50), 1e-3, silu),
        ("nomic_bert", NOMIC | {"activation_function": "geglu"}, plain(50), 1e-3, gelu),
    ],
    ids=["gte, ntk", "gte", "gte by its code's defaults", "nomic", "nomic, geglu"],
)
def test_old_names_give_the_vectors_of_the_old_code(tmp_path, kind, config, frequencies, eps, act):
    record, found = staged(tmp_path, config, kind)
    assert (record["engine"], record["native"], record["code"]) == ("packed", True, {})
    engine = load_engine(tmp_path / "staged", {"dtype": "float32"}, "cpu")
    vectors = np.zeros((len(TEXTS), WIDTH), np.float32)
    for part in engine.encode(TEXTS, "passage"):
        vectors[part.rows] = part.vectors
    rust = Tokenizer.from_file(str(tmp_path / "snap" / "tokenizer.json"))
    for text, vector in zip(TEXTS, vectors, strict=True):
        states = truth(kind, found, torch.tensor(rust.encode(text).ids), frequencies, eps, act)
        expected = normalize(states.mean(0), dim=0).numpy()
        assert np.abs(vector - expected).max() <= 1e-5, text[:30]


@pytest.mark.parametrize(
    ("kind", "given", "says"),
    [
        ("nomic_bert", {"num_experts": 8}, "num_experts: 8"),
        ("nomic_bert", {"rotary_scaling_factor": 2}, "rotary_scaling_factor: 2"),
        ("nomic_bert", {"rotary_emb_fraction": 0.5}, "rotary_emb_fraction: 0.5"),
        ("nomic_bert", {"rotary_emb_interleaved": True}, "rotary_emb_interleaved: True"),
        ("nomic_bert", {"causal": True}, "causal: True"),
        ("nomic_bert", {"prenorm": True}, "prenorm: True"),
        ("nomic_bert", {"qkv_proj_bias": True}, "qkv_proj_bias: True"),
        ("nomic_bert", {"activation_function": "gelu"}, "activation_function: gelu"),
        ("new", {"logn_attention_scale": True}, "logn_attention_scale: True"),
        ("new", {"layer_norm_type": "rms_norm"}, "layer_norm_type: rms_norm"),
        ("new", {"rope_scaling": {"type": "ntk", "factor": 2, "mixed_b": 0.6}}, "rope_scaling: "),
    ],
)
def test_what_the_native_class_has_not_is_refused_by_name(tmp_path, kind, given, says):
    config = (NOMIC if kind == "nomic_bert" else GTE) | given
    with pytest.raises(UserError) as error:
        staged(tmp_path, config, kind, facts={"native": True})
    said = str(error.value)
    assert said.startswith(f"me/Old-1.0: config.json says {says}")
    assert said.endswith("set native: false to run its own code") and "\n" not in said
    assert not (tmp_path / "staged").exists()


def test_without_consent_to_its_own_code_it_is_asked_for(tmp_path):
    with pytest.raises(UserError, match="set trust_remote_code: true"):
        staged(tmp_path, NOMIC | {"num_experts": 8}, "nomic_bert")
