"""Facts: every source in its order, each decision recorded, nothing guessed."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import yaml
from embedrepro.errors import UserError
from embedrepro.models.architectures import flagembedding_mapping, native_attention, native_class
from embedrepro.models.facts import resolve as resolve_all
from embedrepro.models.facts_table import TABLE
from safetensors.numpy import save_file

REPOSITORY = Path(__file__).parents[2]
REGISTRY = REPOSITORY / "rules" / "registry" / "models.yaml"
SHARED = REPOSITORY.parent / "shared" / "data" / "models.yaml"
BERT = {"model_type": "bert", "hidden_size": 8, "max_position_embeddings": 512}
QWEN = {"model_type": "qwen2", "hidden_size": 8, "max_position_embeddings": 4096}
MODULES = ("Transformer", "1_Pooling", "2_Normalize")


@pytest.fixture
def model(tmp_path):
    """Write a snapshot: JSON files by name; `modules` makes sentence-transformers files."""

    def write(config=BERT, modules=(), **files):
        named = {"config.json": config} | {name.replace("__", "/"): v for name, v in files.items()}
        if modules:
            kinds = [name.rpartition("_")[2] for name in modules]
            named["modules.json"] = [
                {
                    "path": "" if kind == "Transformer" else path,
                    "type": f"sentence_transformers.models.{kind}",
                }
                for kind, path in zip(kinds, modules, strict=True)
            ]
        for name, value in named.items():
            path = tmp_path / (name if name.endswith(".json") else f"{name}.json")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(value), encoding="utf-8")
        return tmp_path

    return write


def spec(name="org/model", facts=None, registry=None):
    return {"id": name, "model": "x", "facts": facts or {}, "registry": registry or {}}


def resolve(spec, snapshot):
    found = resolve_all(spec, snapshot)
    return found.facts, found.decisions


CLOSED = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}]
GIVEN = {"pooling": "mean", "normalize": True, "query_prompt": "", "passage_prompt": ""}


def source_of(decisions, fact):
    return next(row["source"] for row in decisions if row["fact"] == fact)


def test_every_fact_is_resolved_and_recorded(model):
    facts, decisions = resolve(spec(facts=GIVEN), model())
    assert set(facts) == {*TABLE, "fast_dtype"} - {"kind"}  # which staging is told
    assert {row["fact"] for row in decisions} == set(facts)
    assert all(row["source"] and row["reason"] for row in decisions)
    assert facts["attention"] == "bidirectional" and facts["end_token"] is None


def test_sources_are_asked_in_order(model):
    snapshot = model(modules=MODULES, **{"1_Pooling__config": {"pooling_mode_cls_token": True}})
    registry = {"pooling": "mean"}
    user = {"pooling": "last_token", "end_token": "[SEP]"}
    name = "BAAI/bge-small-en-v1.5"
    for given, known, pooling, source in (
        (user, registry, "last_token", "config"),
        ({}, registry, "mean", "registry"),
        ({}, {}, "cls", "sentence-transformers"),
    ):
        facts, decisions = resolve(spec(name, given, known), snapshot)
        assert (facts["pooling"], source_of(decisions, "pooling")) == (pooling, source)
    (snapshot / "modules.json").unlink()
    facts, decisions = resolve(spec("x/multilingual-e5-base"), snapshot)
    assert (facts["pooling"], source_of(decisions, "pooling")) == ("mean", "FlagEmbedding")
    with pytest.raises(UserError, match="set pooling: under the model"):
        resolve(spec("x/unheard-of"), snapshot)


def test_flagembedding_is_asked_under_the_original_name(model):
    name = "Alibaba-NLP/gte-Qwen2-1.5B-instruct"
    user = {"attention": "causal", "end_token": "</s>"}
    facts, _ = resolve(spec(name, user), model(QWEN))
    assert facts["query_prompt"] == "Instruct: {task}\nQuery: "
    assert facts["pooling"] == "last_token" and facts["padding_side"] == "left"
    with pytest.raises(UserError, match="set pooling"):
        resolve(spec("Alibaba-NLP__gte-Qwen2-1_5B-instruct", user), model(QWEN))


def test_mapping_read_from_source_equals_the_imported_one():
    from FlagEmbedding.inference import embedder
    from FlagEmbedding.inference.embedder.model_mapping import AUTO_EMBEDDER_MAPPING

    parsed = flagembedding_mapping()
    assert set(parsed) == set(AUTO_EMBEDDER_MAPPING)
    for name, row in AUTO_EMBEDDER_MAPPING.items():
        assert getattr(embedder, parsed[name]["class"]) is row.model_class
        assert parsed[name]["pooling"] == row.pooling_method.value
        assert parsed[name]["format"] == row.query_instruction_format


def test_architectures_read_from_source_equal_the_imported_ones():
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    for kind in ("bert", "qwen2", "xlm-roberta", "gemma3_text", "nomic_bert", "mpnet"):
        assert kind in CONFIG_MAPPING_NAMES
        assert native_class(kind) == MODEL_MAPPING_NAMES[kind]
    assert native_class("new") is None and native_class("") is None
    assert native_attention("qwen3") == "causal"
    assert native_attention("xlm-roberta") == "bidirectional"


@pytest.mark.parametrize("flag", ["pooling_mode_mean_tokens", "mean"])
def test_pooling_in_both_forms(model, flag):
    config = {"pooling_mode": flag} if flag == "mean" else {flag: True}
    facts, _ = resolve(spec(), model(modules=MODULES, **{"1_Pooling__config": config}))
    assert facts["pooling"] == "mean"


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_weightedmean_tokens": True}, "weightedmean"),
        ({"pooling_mode": ["cls", "max"]}, "modules"),
    ],
)
def test_other_poolings(model, config, pooling):
    snapshot = model(modules=MODULES, **{"1_Pooling__config": config})
    found = resolve_all(spec(), snapshot)
    assert found.facts["pooling"] == pooling and found.layout.beyond
    assert resolve(spec(facts={"pooling": "mean"}), snapshot)[0]["pooling"] == "mean"


def test_a_dense_module_is_a_step(model):
    dense = {"in_features": 8, "out_features": 4, "bias": False}
    files = {"1_Pooling__config": {}, "2_Dense__config": dense}
    found = resolve_all(spec(facts=GIVEN), model(modules=(*MODULES[:2], "2_Dense"), **files))
    assert found.layout.dimension == 4 and "module Dense" in found.layout.beyond
    assert found.layout.modules[1] == {"type": "Dense", "path": "2_Dense", **dense}


@pytest.mark.parametrize(
    ("modules", "similarity", "expected"),
    [(MODULES, None, True), (MODULES[:2], None, True), (MODULES[:2], "dot", False)],
)
def test_normalize_follows_the_similarity(model, modules, similarity, expected):
    files = {
        "1_Pooling__config": {"pooling_mode": "cls"},
        "config_sentence_transformers": {"similarity_fn_name": similarity},
    }
    facts, _ = resolve(spec(), model(modules=modules, **files))
    assert facts["normalize"] is expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ("", "")),
        ({"prompts": {"query": "q: ", "passage": "p: "}}, ("q: ", "p: ")),
        ({"prompts": {"query": "q: ", "document": "d: ", "passage": "p"}}, ("q: ", "d: ")),
        ({"prompts": {"s": "all: "}, "default_prompt_name": "s"}, ("all: ", "all: ")),
        ({"prompts": {"query": "q: "}}, ("q: ", "")),
        ({"prompts": {"query": None, "document": None}}, ("", "")),
        ({"prompts": {"web_search": "w: "}}, (None, None)),  # which one is not said
    ],
)
def test_prompts_as_sentence_transformers_chooses_them(model, settings, expected):
    files = {"1_Pooling__config": {}, "config_sentence_transformers": settings}
    facts, _ = resolve(spec(), model(modules=MODULES, **files))
    assert (facts["query_prompt"], facts["passage_prompt"]) == expected


def test_prompts_nobody_states_stay_unknown(model):
    given = {"pooling": "mean", "normalize": True}
    facts, decisions = resolve(spec(facts=given), model())
    assert facts["query_prompt"] is None and source_of(decisions, "query_prompt") == "nobody"


def test_encoding_asks_for_a_prompt_nobody_states(model):
    from embedrepro import encode
    from embedrepro.models.staging import stage

    words = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    snapshot = model(tokenizer={"model": words, "added_tokens": []})
    save_file({"t": np.zeros(1, np.float32)}, snapshot / "model.safetensors")
    given = spec(facts={"pooling": "mean", "normalize": True}) | {"source": {"path": "x"}}
    stage(given, snapshot, snapshot / "staged")
    with pytest.raises(UserError, match="set query_prompt:"):
        encode.resolve(snapshot / "staged", {}).prompt("query", None)
    assert encode.resolve(snapshot / "staged", {"query_prompt": ""}).prompt("query", None) == ""


def test_prompt_left_out_of_the_mean(model):
    files = {
        "1_Pooling__config": {"include_prompt": False},
        "config_sentence_transformers": {"prompts": {"query": "q: "}},
    }
    facts, decisions = resolve(spec(), model(modules=MODULES, **files))
    assert facts["include_prompt"] is False and facts["query_prompt"] == "q: "
    facts, decisions = resolve(
        spec(facts={"include_prompt": True}), model(modules=MODULES, **files)
    )
    assert facts["include_prompt"] and source_of(decisions, "include_prompt") == "config"


@pytest.mark.parametrize(
    ("config", "tokenizer", "length", "registry", "expected"),
    [
        (BERT, {}, 256, {}, 256),
        (BERT, {}, 1000, {}, 512),
        (BERT, {"model_max_length": 128}, None, {}, 128),
        (QWEN, {"model_max_length": 10**30}, None, {}, 4096),
        (QWEN, {}, None, {"max_tokens": 2048}, 2048),
        ({**BERT, "model_type": "xlm-roberta", "pad_token_id": 1}, {}, 514, {}, 510),
        ({"model_type": "bert", "hidden_size": 8}, {}, None, {}, 32768),
        ({**QWEN, "rope_scaling": {"factor": 4.0}}, {}, 9000, {}, 9000),
        ({**QWEN, "rope_scaling": {"factor": 2.0}}, {}, 9000, {}, 8192),
        ({"model_type": "t5", "d_model": 8, "n_positions": 16}, {}, 64, {}, 64),
        ({**BERT, "model_type": "luke", "pad_token_id": 1}, {}, None, {}, 510),
    ],
)
def test_lengths(model, config, tokenizer, length, registry, expected):
    files = {"tokenizer_config": tokenizer, "1_Pooling__config": {"pooling_mode": "cls"}}
    if length:
        files["sentence_bert_config"] = {"max_seq_length": length}
    snapshot = model(config, MODULES, **files)
    facts, _ = resolve(spec(registry=registry), snapshot)
    assert facts["max_length"] == {"query": expected, "passage": expected}


def test_one_length_from_the_user_the_other_from_the_model(model):
    files = {"1_Pooling__config": {}, "sentence_bert_config": {"max_seq_length": 256}}
    given = {"max_length": {"query": 32}}
    facts, _ = resolve(spec(facts=given), model(modules=MODULES, **files))
    assert facts["max_length"] == {"query": 32, "passage": 256}


def test_attention(model):
    given = GIVEN | {"end_token": "</s>"}
    assert resolve(spec(facts=given), model(QWEN))[0]["attention"] == "causal"
    stated = QWEN | {"is_causal": False}
    assert resolve(spec(facts=given), model(stated))[0]["attention"] == "bidirectional"
    shipped = stated | {"auto_map": {"AutoModel": "m.C"}}
    with pytest.raises(UserError, match="set attention: causal or bidirectional"):
        resolve(spec(facts=given), model(shipped))
    silent = QWEN | {"auto_map": {"AutoModel": "m.C"}}
    with pytest.raises(UserError, match="qwen2 is causal, but custom .* set attention: causal"):
        resolve(spec(facts=given), model(silent))
    generates = QWEN | {"auto_map": {"AutoModelForCausalLM": "m.C"}}
    assert resolve(spec(facts=given), model(generates))[0]["attention"] == "causal"
    facts, _ = resolve(spec(facts=given | {"attention": "causal"}), model(shipped))
    assert facts["attention"] == "causal"
    own = {"model_type": "unheard-of", "hidden_size": 8, "auto_map": {"AutoModel": "m.C"}}
    with pytest.raises(UserError, match="attention is"):
        resolve(spec(facts=given), model(own))
    gemma = QWEN | {"model_type": "gemma3_text", "use_bidirectional_attention": True}
    assert resolve(spec(facts=given), model(gemma))[0]["attention"] == "bidirectional"


def test_end_token(model):
    given = GIVEN | {"pooling": "last_token"}
    template = {"type": "TemplateProcessing", "single": [{"Sequence": {}}]}
    closed = template | {"single": [{"Sequence": {}}, {"SpecialToken": {"id": "<eos>"}}]}
    chain = {"type": "Sequence", "processors": [{"type": "ByteLevel"}, closed]}
    for files, expected in (
        ({"tokenizer": {"post_processor": closed}}, "<eos>"),
        ({"tokenizer": {"post_processor": chain}}, "<eos>"),
        (
            {"tokenizer": {"post_processor": {"type": "RobertaProcessing", "sep": ["</s>", 2]}}},
            "</s>",
        ),
        (
            {
                "tokenizer": {"post_processor": template},
                "tokenizer_config": {"add_eos_token": True, "eos_token": {"content": "<|end|>"}},
            },
            "<|end|>",
        ),
    ):
        assert resolve(spec(facts=given), model(QWEN, **files))[0]["end_token"] == expected
    with pytest.raises(UserError, match="set end_token"):
        resolve(spec(facts=given), model(QWEN, tokenizer={}, tokenizer_config={}))
    assert resolve(spec(facts=given | {"end_token": ""}), model(QWEN))[0]["end_token"] is None


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"pooling": "sum"}, "pooling: sum is none of mean, cls, last_token"),
        ({"normalize": "yes"}, "normalize: yes is none of True, False"),
        ({"normalize": 1}, "normalize: 1 is none of"),
        ({"query_prompt": 3}, "query_prompt: 3 is not text"),
        ({"max_length": 0}, "0 is not a positive"),
        ({"max_length": {"query": True}}, "True is not a positive"),
        ({"dtype": "int8"}, "dtype: int8 is none of"),
    ],
)
def test_values_of_the_wrong_kind(model, facts, says):
    with pytest.raises(UserError, match=says):
        resolve(spec(facts=GIVEN | facts), model())


@pytest.mark.parametrize(
    ("adds", "post_processor", "end"),
    [
        ({"add_eos_token": True}, None, "</s>"),
        ({"add_eos_token": False}, None, None),
        ({"add_eos_token": True}, {"type": "TemplateProcessing", "single": CLOSED}, None),
    ],
)
def test_what_a_tokenizer_s_own_class_appends_is_appended_under_any_pooling(
    model, adds, post_processor, end
):
    """The class isn't run, and a mean is over the end token, too: stella's vectors."""
    own = {"auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]}, "eos_token": "</s>"}
    files = {"tokenizer_config": own | adds, "tokenizer": {"post_processor": post_processor}}
    facts, _ = resolve(spec(facts=GIVEN), model(**files))
    assert facts["end_token"] == end


def test_a_tokenizer_s_own_class_that_says_nothing_is_asked_about(model):
    own = {"auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]}, "eos_token": "</s>"}
    snapshot = model(tokenizer_config=own, tokenizer={"post_processor": None})
    with pytest.raises(UserError, match="class of its own, which isn't run.*set end_token:"):
        resolve(spec(facts=GIVEN), snapshot)
    facts, _ = resolve(spec(facts=GIVEN | {"end_token": ""}), snapshot)
    assert facts["end_token"] is None


def test_unsupported_models_are_refused_with_the_registry_s_reason(model):
    with pytest.raises(UserError, match="not supported: a static table"):
        resolve(spec(registry={"unsupported": "a static table"}), model())


def test_registry_holds_to_its_schema_and_to_what_was_collected():
    entries = yaml.safe_load(REGISTRY.read_text(encoding="utf-8"))
    schema = json.loads((REPOSITORY / "rules/schemas/models.schema.json").read_text())
    jsonschema.validate(entries, schema)
    if not SHARED.exists():
        pytest.skip("the collected facts are not beside this repository")
    collected = yaml.safe_load(SHARED.read_text(encoding="utf-8"))["models"]
    models = entries["models"]
    assert list(models) == list(collected) and len(models) == 72
    assert sum("." in name for name in models) == 15
    for name, known in collected.items():
        entry = models[name]
        assert entry["revision"] == known["revision"]
        if known["pooling"] in ("mean", "cls", "last_token"):
            assert entry["pooling"] == known["pooling"]
        else:
            assert "pooling" not in entry and (
                "pooling" in entry["unconfirmed"] or "unsupported" in entry
            )
        if known["query_prompt"] and name != "BAAI/bge-en-icl":
            assert entry["query_prompt"] == known["query_prompt"]
        if known["needs_custom_code"]:
            assert entry["custom_code"] in ("native", "required")


def test_gte_qwen2_is_causal_in_the_registry(model):
    models = yaml.safe_load(REGISTRY.read_text(encoding="utf-8"))["models"]
    shipped = QWEN | {"is_causal": False, "auto_map": {"AutoModel": "m.C"}}
    for size in ("1.5B", "7B"):
        name = f"Alibaba-NLP/gte-Qwen2-{size}-instruct"
        facts, decisions = resolve(spec(name, registry=models[name]), model(shipped))
        assert facts["attention"] == "causal" and source_of(decisions, "attention") == "registry"
        assert facts["end_token"] == "<|endoftext|>" and facts["padding_side"] == "left"
