"""Adapters are merged into their base: the vectors of sentence-transformers and peft, unmerged."""

import json

import adapter_folders as make
import format_models as formats
import numpy as np
import pytest
import torch
import transformers
from embedrepro.errors import UserError
from embedrepro.models import comparison, examination
from embedrepro.models.preflight import preflight
from embedrepro.models.staging import stage
from layout_folders import change, in_a_folder, plain, router, tokenizer
from peft import PeftModel
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

TEXTS = ["short", "a text of more than a few words", "w " * 90]


def spec(base=None, kind=None, **facts):
    found = {"id": "me/Tuned-1.5B", "model": "me__Tuned-1_5B", "source": {"path": "/x"}}
    found |= {"trust_remote_code": False, "facts": facts, "registry": {}, "kind": kind}
    if base:
        found["base"] = {"id": "org/Base-7B", "source": {"path": "/b"}, "folder": str(base)}
    return found


def staged(tmp_path, maker, kind=None, more=None, **facts):
    """(adapter's folder, staged folder, stage.json)."""
    folder = maker(tmp_path / "snapshot")
    output = tmp_path / "me__Tuned-1_5B-k"
    record = stage(spec(tmp_path / "base", kind, **facts) | (more or {}), folder, output)
    return folder, output, record


def peft_states(base, folder, cls="AutoModel"):
    """States of peft's own unmerged model, text by text, none padded."""
    model = getattr(transformers, cls).from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, folder).eval()


RIGHT = {
    "BERT": make.of("Bert"),
    "Qwen2, of a language model": make.language("Qwen2"),
    "Mistral, trained as a language model": make.language(
        "Mistral", cls="AutoModelForCausalLM", task_type="CAUSAL_LM"
    ),
    "embeddings": make.language("Qwen2", target_modules=["q_proj", "embed_tokens"]),
    "further modules": make.of("Bert", modules_to_save=["LayerNorm"], bias="lora_only"),
}
QUICK = ("BERT", "embeddings")  # the others are slow, and rows of tests/layouts.py as well


@pytest.mark.parametrize(
    "maker",
    [
        pytest.param(maker, id=name, marks=[pytest.mark.slow] * (name not in QUICK))
        for name, maker in RIGHT.items()
    ],
)
def test_vectors_are_those_of_the_unmerged_adapter(tmp_path, maker):
    folder, output, record = staged(tmp_path, maker)
    assert record["engine"] == "packed" and record["adapter"]["id"] == "org/Base-7B"
    preflight(output, tmp_path / "preflight.json")
    findings = json.loads((tmp_path / "preflight.json").read_text())["findings"]
    assert "an adapter, merged" in findings[-1]["detail"] and findings[-1]["ok"]
    peer = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": "float32"})
    ours = comparison.load_ours(output)
    found, expected = comparison.own(ours, TEXTS, "query"), peer.encode_query(TEXTS, batch_size=1)
    np.testing.assert_allclose(comparison.unit(found), comparison.unit(expected), atol=2e-6)
    for name, module in peer[0].auto_model.named_modules():
        if name.endswith(("query", "q_proj")):  # it does something
            module.enable_adapters(False)
    plain_ones = peer.encode_query(TEXTS, batch_size=1)
    assert abs(comparison.unit(plain_ones) - comparison.unit(expected)).max() > 0.01


def test_dora_is_as_peft_has_it(tmp_path):
    """sentence-transformers itself leaves its magnitudes out."""
    folder, output, record = staged(tmp_path, make.of("Bert", use_dora=True))
    preflight(output, tmp_path / "preflight.json")
    model = peft_states(tmp_path / "base", folder)
    tokens = transformers.AutoTokenizer.from_pretrained(folder)
    ours = comparison.own(comparison.load_ours(output), TEXTS, "passage")
    for text, vector in zip(TEXTS, ours, strict=True):
        given = tokens(text, return_tensors="pt", truncation=True, max_length=130)
        with torch.no_grad():
            mean = model(**given).last_hidden_state[0].mean(0).numpy()
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-6)


def test_a_half_base_stays_half_where_nothing_changed(tmp_path):
    def halved(folder):
        make.language("Qwen2", target_modules=["q_proj"])(folder)
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        model.to(torch.bfloat16).save_pretrained(tmp_path / "base", max_shard_size="40KB")
        (tmp_path / "base" / "model.safetensors").unlink()
        return folder

    folder, output, record = staged(tmp_path, halved)
    assert record["fast_dtype"] == "bfloat16"
    tensors = load_file(output / "model.safetensors")
    wide = {name for name, tensor in tensors.items() if tensor.dtype == torch.float32}
    assert wide and all("q_proj.weight" in name for name in wide)
    assert {t.dtype for t in tensors.values()} == {torch.float32, torch.bfloat16}
    merged = peft_states(tmp_path / "base", folder).merge_and_unload().state_dict()
    for name, tensor in tensors.items():
        assert torch.equal(tensor.float(), merged[name.removeprefix("model.")].float())
    preflight(output, tmp_path / "preflight.json")


def test_of_a_large_one_the_first_layers_are_compared(tmp_path, monkeypatch):
    for module in (comparison, examination):
        monkeypatch.setattr(module, "FULL_BYTES", 1000)
    maker = make.adapted(lambda f: plain(f, num_hidden_layers=4), target_modules=["query"])
    _, output, _ = staged(tmp_path, maker)
    preflight(output, tmp_path / "preflight.json")
    findings = json.loads((tmp_path / "preflight.json").read_text())["findings"]
    assert "the first 2 of 4 layers" in findings[0]["detail"] and findings[-1]["ok"]
    assert findings[-1]["check"] == "sentence-transformers"


def test_a_base_with_code_where_transformers_has_the_class_keeps_its_warning(tmp_path):
    """Custom code may ignore is_causal: a whole model is refused for that, an adapter as well."""

    def coded(folder):
        make.language("Qwen2")(folder)
        custom = {"auto_map": {"AutoModel": "m.M"}, "is_causal": False}
        change(folder.with_name("base"), "config.json", **custom)
        return folder

    with pytest.raises(UserError, match="is_causal: false, but custom code came with it"):
        staged(tmp_path / "a", coded)
    _, output, record = staged(tmp_path / "b", coded, attention="causal")
    assert record["native"] and "auto_map" not in json.loads((output / "config.json").read_text())
    preflight(output, tmp_path / "preflight.json")


def test_in_a_folder_of_its_own(tmp_path):
    """Where sentence-transformers itself finds no base: peft's own tensors."""
    maker = make.adapted(in_a_folder, "0_Transformer", target_modules=["query"], use_rslora=True)
    folder, output, _ = staged(tmp_path, maker)
    preflight(output, tmp_path / "preflight.json")
    unmerged = peft_states(tmp_path / "base", folder / "0_Transformer")
    merged = unmerged.merge_and_unload().state_dict()
    tensors = load_file(output / "model.safetensors")
    assert all(torch.equal(tensor, merged[name]) for name, tensor in tensors.items())


def test_what_an_adapter_lacks_is_its_bases(tmp_path):
    def based(folder):
        base = plain(folder.with_name("base"), pooling="cls")
        return make.trained(folder, base, target_modules=["query"])

    _, output, record = staged(tmp_path, based)
    assert record["pooling"] == "cls" and (output / "tokenizer.json").is_file()
    preflight(output, tmp_path / "preflight.json")
    assert sorted(p.name for p in output.parent.iterdir() if p.name[0] == ".") == []


def test_a_bare_one_needs_its_facts_stated(tmp_path):
    with pytest.raises(UserError, match="nothing says what its pooling is"):
        staged(tmp_path / "a", make.bare())
    facts = {"pooling": "cls", "normalize": True, "query_prompt": "q: ", "passage_prompt": ""}
    _, output, _ = staged(tmp_path / "b", make.bare(), **facts)
    preflight(output, tmp_path / "preflight.json")
    said = json.loads((tmp_path / "preflight.json").read_text())["findings"][-1]["detail"]
    assert "an adapter, merged" in said


def test_a_pickled_adapter_needs_consent(tmp_path):
    def pickled(folder):
        make.of("Bert")(folder)
        path = folder / "adapter_model.safetensors"
        torch.save(load_file(path), folder / "adapter_model.bin")
        path.unlink()
        return folder

    with pytest.raises(UserError, match="are a pickle.*allow_pickle: true"):
        staged(tmp_path / "a", pickled)
    _, output, _ = staged(tmp_path / "b", pickled, more={"allow_pickle": True})
    preflight(output, tmp_path / "preflight.json")


def test_a_comparison_that_fails_names_both(tmp_path):
    """A staged folder whose weights are not the merged ones is found out."""
    _, output, _ = staged(tmp_path, make.of("Bert"))
    path = output / "model.safetensors"
    tensors = load_file(path)
    tensors["encoder.layer.0.attention.self.query.weight"] *= 1.5
    path.unlink()
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(UserError, match="sentence-transformers.*apart.*an adapter, merged"):
        preflight(output, tmp_path / "preflight.json")


# Refusals


def settings(maker=None, **values):
    def made(folder):
        (maker or make.of("Bert"))(folder)
        return change(folder, "adapter_config.json", **values)

    return made


def more_tokens(folder):
    make.of("Bert")(folder)
    tokenizer(folder, added=[f"<new{n}>" for n in range(80)])
    return folder


def own_embeddings(folder):
    make.language("Qwen2", target_modules=["q_proj", "embed_tokens"])(folder)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.embed_tokens.base_layer.weight"] += 1
    save_file(tensors, path)
    return folder


def without(name):
    def made(folder):
        make.of("Bert")(folder)
        (folder / name).unlink()
        return folder

    return made


def base_with(**values):
    def made(folder):
        make.of("Bert")(folder)
        change(folder.with_name("base"), "config.json", **values)
        return folder

    return made


def base_is_adapter(folder):
    make.of("Bert")(folder)
    change(folder.with_name("base"), "adapter_config.json", peft_type="LORA")
    return folder


def in_a_route(folder):
    router(folder)
    place = next(p for p in folder.iterdir() if p.name.startswith("document_0"))
    change(folder, f"{place.name}/adapter_config.json", peft_type="LORA")
    return folder


def two(folder):
    make.adapted(in_a_folder, "0_Transformer", target_modules=["query"])(folder)
    return change(folder, "adapter_config.json", peft_type="LORA")


def cut_file(folder):
    make.of("Bert")(folder)
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    return folder


def half_tensors(folder):
    make.of("Bert")(folder)
    path = folder / "adapter_model.safetensors"
    tensors = {n: t for n, t in load_file(path).items() if "layer.1" not in n}
    save_file(tensors, path)
    return folder


REFUSED = {
    "prompt tuning": (make.prompts, "its adapter is PROMPT_TUNING, which is not merged here"),
    "unknown method": (settings(peft_type="NEW"), "its adapter is NEW, which is not merged"),
    "activated LoRA": (settings(alora_invocation_tokens=[5]), "has alora_invocation_tokens: .5."),
    "a newer key": (settings(use_magic=True), "has use_magic: True, which is not followed here"),
    "layers repeated": (settings(layer_replication=[[0, 2]]), "has layer_replication"),
    "changes the base": (settings(init_lora_weights="pissa"), "pissa, which changes the base"),
    "no weights": (without("adapter_model.safetensors"), "none of adapter_model.safetensors"),
    "cut": (cut_file, "not a whole safetensors file"),
    "another rank": (settings(r=3), r"lora_A.weight is \(4, 32\), not \(3, 32\)"),
    "other layers": (settings(layers_to_transform=[0]), "layer.1.* is left over"),
    "tensors missing": (half_tensors, "doesn't belong to its base: .*layer.1.* is missing"),
    "a head": (make.reranker("Bert"), "doesn't belong to its base"),
    "another architecture": (
        settings(target_modules=["q_proj"]),
        "doesn't belong to its base: .*q_proj",
    ),
    "resized": (
        make.enlarged,
        r"vocabulary was enlarged \(embed_tokens.weight has 310, .* for 300\)",
    ),
    "more tokens": (more_tokens, "vocabulary was enlarged .its tokenizer has 340 tokens"),
    "own embeddings": (own_embeddings, "carries weights of its own for embed_tokens.weight"),
    "quantized base": (base_with(quantization_config={"a": 1}), "base org/Base-7B holds quantized"),
    "base with code": (base_with(model_type="own"), "its base runs code of its own"),
    "base is one": (base_is_adapter, "its base holds an adapter itself"),
    "in a Router": (in_a_route, "holds an adapter in document_0.*, not of its one transformer"),
    "several": (two, r"several adapters \(0_Transformer, .\)"),
    "other config": (
        lambda f: change(make.of("Bert")(f), "config.json", hidden_size=99),
        "config.json beside its adapter says hidden_size: 99, its base 32",
    ),
    "bidirectional": (
        lambda f: change(make.language()(f), "config.json", is_causal=False),
        "config.json beside its adapter says is_causal: False, its base None",
    ),
    "code": (
        lambda f: change(make.of("Bert")(f), "config.json", auto_map={"AutoModel": "m.M"}),
        "config.json beside its adapter names code of its own",
    ),
}


@pytest.mark.parametrize(("maker", "says"), REFUSED.values(), ids=REFUSED)
def test_refused_in_one_line(tmp_path, maker, says):
    with pytest.raises(UserError, match=says) as error:
        staged(tmp_path, maker)
    assert str(error.value).startswith("me/Tuned-1.5B: ") or "not a whole" in says
    assert "\n" not in str(error.value)
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith((".", "me__"))]


def test_a_head_that_neither_has_is_missed(tmp_path):
    def headless(folder):
        make.adapted(formats.splade, cls="AutoModelForMaskedLM", target_modules=["query"])(folder)
        formats.bert(folder.with_name("base"))
        return folder

    with pytest.raises(UserError, match="tensors are missing or left over: cls.predictions"):
        staged(tmp_path, headless, kind="sparse")


def test_without_a_base_the_line_says_what_to_set(tmp_path):
    folder, base = make.of("Bert")(tmp_path / "s"), tmp_path / "base"
    with pytest.raises(UserError, match="base: {hub: its id, revision: its full commit hash} or"):
        stage(spec(), folder, tmp_path / "out")
    named = {"base_model_name_or_path": "org/Base-7B", "revision": "a" * 40}
    change(folder, "adapter_config.json", **named)
    with pytest.raises(UserError) as error:
        stage(spec(), folder, tmp_path / "out")
    assert f"base: {{hub: org/Base-7B, revision: {'a' * 40}}} or base: {{path: " in str(error.value)
    with pytest.raises(UserError, match="base: is of an adapter.*leave it out"):
        stage(spec(base), plain(tmp_path / "plain"), tmp_path / "out")


def test_full_weights_beside_it_count_for_nothing_once_its_base_is_said(tmp_path):
    """As transformers loads it from the hub: the base that is named, and the adapter on it."""

    def both(folder):
        make.of("Bert")(folder)
        model = transformers.AutoModel.from_pretrained(tmp_path / "base")
        torch.nn.init.zeros_(model.embeddings.word_embeddings.weight)
        model.save_pretrained(folder)
        return folder

    with pytest.raises(UserError, match="beside full weights, and nothing says whether they hold"):
        stage(spec(), both(tmp_path / "s"), tmp_path / "out")
    _, output, _ = staged(tmp_path, both)
    merged = peft_states(tmp_path / "base", tmp_path / "snapshot").merge_and_unload().state_dict()
    for name, tensor in load_file(output / "model.safetensors").items():
        assert torch.equal(tensor, merged[name])
