"""Preflight: each silent trap gives a wrong vector without it, and is refused with it."""

import json
import time

import pytest
import torch
import traps
from embedrepro.errors import UserError
from embedrepro.files import read_json, write_json
from embedrepro.models import examination
from embedrepro.models.examination import examine
from embedrepro.models.preflight import preflight, refuse_failed
from embedrepro.models.staging import stage
from minilm import minilm_folder
from transformers import AutoModel, AutoTokenizer

TEXT = "abc"


def load(folder, **options):
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model, info = AutoModel.from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True, **options
    )
    return tokenizer, model.eval(), info


def last_state(folder, texts=(TEXT,)):
    """The last token's state of the first text, as anybody would compute it."""
    tokenizer, model, _ = load(folder)
    with torch.no_grad():
        batch = tokenizer(list(texts), padding=True, return_tensors="pt")
        return model(**batch).last_hidden_state[0, -1]


def truth(snapshot):
    return traps.custom_truth(snapshot, [*map(byte_id, TEXT), 256])


def byte_id(letter):
    alphabet = sorted(traps.pre_tokenizers.ByteLevel.alphabet())
    return alphabet.index(letter)


def failed(staged):
    return [row["check"] for row in examine(staged)["findings"] if not row["ok"]]


@pytest.fixture
def staged(tmp_path):
    def make(trap=None, facts=None, **config):
        snapshot = traps.custom(tmp_path / "snap", trap, **config)
        stage(traps.spec(facts=facts or {}), snapshot, tmp_path / "demo__Tiny-0_1B-k")
        return snapshot, tmp_path / "demo__Tiny-0_1B-k"

    return make


def test_sound_custom_model_passes_and_equals_its_own_code(staged):
    snapshot, folder = staged()
    assert failed(folder) == []
    assert torch.equal(last_state(folder), truth(snapshot))


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({}, None),
        ({"key.bias": None}, "not in the checkpoint and left random: key.bias"),
        ({"more.weight": torch.zeros(2)}, "another architecture: more.weight"),
    ],
)
def test_code_that_loads_by_itself_is_held_against_the_checkpoint(tmp_path, tensors, says):
    snapshot = traps.custom(tmp_path / "snap", "loader")
    path = snapshot / "model.safetensors"
    kept = {k: v for k, v in (traps.load_file(path) | tensors).items() if v is not None}
    traps.save_file(kept, path, metadata={"format": "pt"})
    folder = tmp_path / "demo__Tiny-0_1B-k"
    stage(traps.spec(), snapshot, folder)
    record = json.loads((folder / "stage.json").read_text())
    found = {row["check"]: row for row in examination.load(folder, record)[2]}["weights"]
    assert found["ok"] == (says is None)
    assert says is None or says in found["detail"]
    if says is None:
        assert failed(folder) == []


def test_real_model_passes(tmp_path):
    spec = {"id": "s/all-MiniLM-L6-v2", "model": "m", "source": {"path": "x"}}
    stage(spec, minilm_folder(), tmp_path / "st")
    assert failed(tmp_path / "st") == []


def test_trap_end_token_dropped(staged):
    """A tokenizer class of transformers 5 that rebuilds itself and ignores the post-processor."""
    snapshot, folder = staged()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    write_json(folder / "tokenizer_config.json", settings | {"tokenizer_class": "RobertaTokenizer"})
    tokenizer, _, _ = load(folder)
    assert tokenizer(TEXT)["input_ids"][-1] != 256
    assert "end_token" in failed(folder) and "tokenizer" in failed(folder)
    # Unstaged, the stock tokenizer appends nothing at all, and the vector is another.
    assert (last_state(snapshot_without_hub_code(snapshot)) - truth(snapshot)).abs().max() > 0.01


def snapshot_without_hub_code(snapshot):
    config = json.loads((snapshot / "config.json").read_text())
    config["auto_map"] = {k: v.partition("--")[2] for k, v in config["auto_map"].items()}
    write_json(snapshot / "config.json", config)
    return snapshot


def test_trap_buffers_left_uninitialised(staged):
    snapshot, folder = staged("buffers")
    difference = (last_state(folder) - truth(snapshot)).abs().max()
    assert not difference < 0.01  # wrong or NaN, and not a word
    assert "buffers" in failed(folder)


@pytest.mark.parametrize(("trap", "check"), [("mixed", "attention"), ("padding", "padding")])
def test_trap_a_batch_changes_the_vector(staged, trap, check):
    _, folder = staged(trap)
    difference = last_state(folder) - last_state(folder, (TEXT, "a much longer text"))
    assert difference.abs().max() > 1e-3
    assert check in failed(folder)


def test_trap_declared_bidirectional_but_causal(staged):
    """gte-Qwen2's: config.json says is_causal: false, the code's default is causal."""
    _, folder = staged(is_causal=False)
    assert json.loads((folder / "stage.json").read_text())["attention"] == "bidirectional"
    rows = [row for row in examine(folder)["findings"] if not row["ok"]]
    assert [row["check"] for row in rows] == ["attention"]
    assert rows[0]["detail"] == "bidirectional is declared, but a text alone is read as causal"


def test_trap_native_class_honours_a_flag_that_the_code_ignored(tmp_path):
    snapshot = traps.qwen2(tmp_path / "snap")
    ids = torch.tensor([[1, 2, 3, 4, 256]])

    def vector(folder):
        with torch.no_grad():
            return AutoModel.from_pretrained(folder).eval()(ids).last_hidden_state[0]

    with pytest.raises(UserError, match="set attention"):
        stage(traps.spec(trust_remote_code=False), snapshot, tmp_path / "refused")
    stage(traps.spec(facts={"attention": "causal", "native": True}), snapshot, tmp_path / "st")
    assert failed(tmp_path / "st") == []
    for name in ("config.json", "tokenizer_config.json"):  # as a user who only drops the code
        settings = json.loads((snapshot / name).read_text())
        settings.pop("auto_map")
        write_json(snapshot / name, settings)
    untouched, right = vector(snapshot), vector(tmp_path / "st")
    assert torch.cosine_similarity(untouched, right).min() < 0.99
    with torch.no_grad():  # the reference: the same weights, causal by construction
        model = AutoModel.from_pretrained(snapshot, is_causal=True).eval()
        assert torch.equal(model(ids).last_hidden_state[0], right)


def test_trap_code_of_another_model(staged):
    snapshot, folder = staged()
    (folder / "modeling_tiny.py").write_text(traps.code("bidirectional"))
    tokenizer, model, _ = load(folder)
    with torch.no_grad():
        first = model(torch.tensor([[byte_id("a"), byte_id("b")]])).last_hidden_state[0, 0]
    assert (first - traps.custom_truth(snapshot, [byte_id("a")])).abs().max() > 0.01
    with pytest.raises(UserError, match=r"modeling_tiny.py: not what was staged"):
        examine(folder)


def test_code_that_runs_from_elsewhere_is_found(staged):
    _, folder = staged()
    tokenizer, model, _ = load(folder)
    record = json.loads((folder / "stage.json").read_text())
    record["code"] = {"modeling_tiny.py": "0" * 64}
    (row,) = examination.Probe(folder, record, tokenizer, model).code()
    assert not row["ok"]


@pytest.mark.parametrize(
    ("layers", "says"),
    [(3, "not in the checkpoint and left random"), (1, "another architecture")],
)
def test_trap_another_architecture_under_a_native_type(tmp_path, layers, says):
    snapshot = traps.qwen2(tmp_path / "snap", num_hidden_layers=layers, layer_types=None)
    stage(traps.spec(facts={"attention": "causal", "native": True}), snapshot, tmp_path / "st")
    if layers == 3:  # without a word, every load is another model
        states = [last_state(tmp_path / "st") for _ in range(2)]
        assert not torch.equal(*states)
    row = next(row for row in examine(tmp_path / "st")["findings"] if row["check"] == "weights")
    assert not row["ok"] and says in row["detail"]


def test_nan_in_the_weights(staged, tmp_path):
    snapshot = traps.custom(tmp_path / "other")
    tensors = traps.load_file(snapshot / "model.safetensors")
    tensors["key.bias"][3] = float("nan")
    traps.save_file(tensors, snapshot / "model.safetensors", metadata={"format": "pt"})
    stage(traps.spec(), snapshot, tmp_path / "st")
    assert "finite" in failed(tmp_path / "st")


def test_prompt_that_never_reaches_the_tokens(staged):
    _, folder = staged(facts={"query_prompt": "", "passage_prompt": ""})
    record = json.loads((folder / "stage.json").read_text())
    tokenizer, model, _ = load(folder)
    for prompt, ok in (("query: ", True), ("", True)):
        probe = examination.Probe(folder, record | {"query_prompt": prompt}, tokenizer, model)
        assert [row["ok"] for row in probe.prompts()] == [ok]

    def deaf(text, **_):
        return {"input_ids": tokenizer(text.removeprefix("query: "))["input_ids"]}

    probe = examination.Probe(folder, record | {"query_prompt": "query: "}, tokenizer, model)
    probe.tokenizer = deaf
    assert [row["ok"] for row in probe.prompts()] == [False]


def test_only_prompts_that_are_put_are_looked_at(staged):
    """A table may hold prompts of tasks that nobody asks for."""
    _, folder = staged(facts={"query_prompt": "", "passage_prompt": ""})
    record = json.loads((folder / "stage.json").read_text())
    tokenizer, model, _ = load(folder)

    def deaf(text, **_):
        return {"input_ids": tokenizer(text.removeprefix("lost: "))["input_ids"]}

    deaf.unk_token_id = tokenizer.unk_token_id
    prompts = {"default": "query: ", "other": "lost: "}
    for put, ok in (
        (None, True),
        ({"query": ["query: ", None]}, True),
        ({"query": ["query: ", "lost: "]}, False),
        ({"passage": ["lost: "]}, False),
    ):
        probe = examination.Probe(folder, record | {"query_prompt": prompts}, tokenizer, model, put)
        probe.tokenizer = deaf
        assert [row["ok"] for row in probe.prompts()] == [ok], put


def test_large_model_is_cut_to_its_first_layers(tmp_path, monkeypatch):
    monkeypatch.setattr(examination, "FULL_BYTES", 0)
    snapshot = traps.qwen2(tmp_path / "snap", layers=4)
    stage(traps.spec(facts={"attention": "causal", "native": True}), snapshot, tmp_path / "st")
    findings = examine(tmp_path / "st")["findings"]
    assert all(row["ok"] for row in findings)
    scope = next(row["detail"] for row in findings if row["check"] == "scope")
    assert "first 2 of 4 layers" in scope and "layers 2 to 3 were not read" in scope


def test_refusal_names_model_and_check():
    rows = [examination.finding("a", True, "x"), examination.finding("b", False, "why\nnot")]
    with pytest.raises(UserError) as error:
        refuse_failed(rows, "org/m")
    assert str(error.value) == "org/m: preflight check 'b' failed: why\\nnot"


def test_fresh_processes_that_disagree_are_refused_and_nothing_is_written(tmp_path):
    snapshot = traps.custom(tmp_path / "snap", "unrepeatable")
    stage(traps.spec(), snapshot, tmp_path / "demo__Tiny-0_1B-k")
    output = tmp_path / "store" / "p.json"
    with pytest.raises(UserError, match="'repeat' failed: two fresh") as error:
        preflight(tmp_path / "demo__Tiny-0_1B-k", output)
    assert str(error.value).startswith("demo/Tiny-0.1B: preflight check")
    assert str(error.value).endswith("set environment: legacy under the model")
    assert not output.exists()


def test_what_loading_leaves_unwritten_is_seen_in_one_load(staged, monkeypatch):
    """Poisoned memory: the buffers that only a second process told apart are NaN."""
    _, folder = staged("buffers")
    monkeypatch.setattr(examination.Probe, "buffers", lambda self: iter(()))
    assert "finite" in failed(folder)


def test_preflight_of_the_real_model(tmp_path):
    spec = {"id": "s/all-MiniLM-L6-v2", "model": "m", "source": {"path": "x"}}
    stage(spec, minilm_folder(), tmp_path / "st")
    started = time.perf_counter()
    examination.load(tmp_path / "st", json.loads((tmp_path / "st" / "stage.json").read_text()))
    loaded = time.perf_counter() - started
    started = time.perf_counter()
    preflight(tmp_path / "st", tmp_path / "p.json")
    assert time.perf_counter() - started < 10 * loaded + 5  # about two seconds when alone
    record = read_json(tmp_path / "p.json")
    assert {row["check"] for row in record["findings"]} >= {"long", "finite", "attention"}
    assert record["versions"]["torch"]
