"""Staging: what the folder holds, what is refused, and that nothing else is written."""

import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest
import traps
from embedrepro.errors import UserError
from embedrepro.files import sha256, write_json
from embedrepro.models.by_id import register
from embedrepro.models.staged import verify_code, verify_staged
from embedrepro.models.staging import stage
from helpers import one_model, planned, step
from minilm import minilm_folder

SCRIPTS = Path(__file__).parents[2] / "scripts"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
WORDS = {"type": "WordLevel", "vocab": {"a": 0, "</s>": 1}, "unk_token": "a"}
BERT = {"model_type": "bert", "hidden_size": 4}
FACTS = {"pooling": "mean", "normalize": True, "query_prompt": "", "passage_prompt": ""}


def read(path):
    value = json.loads(Path(path).read_text(encoding="utf-8"))
    if isinstance(value, dict):
        value.pop("self_sha256", None)
    return value


def tensors_header(name, size):
    facts = {"dtype": "F32", "shape": [size], "data_offsets": [0, 4 * size]}
    header = json.dumps({name: facts}).encode()
    return struct.pack("<Q", len(header)) + header


def safetensors(size=0):
    """The bytes of a safetensors file that holds one tensor `t` of `size` float32 zeros."""
    return tensors_header("t", size) + bytes(4 * size)


def small(folder, **files):
    """A folder that can be staged (never loaded); `files` replaces by name, None leaves out."""
    folder.mkdir(parents=True)
    contents = {
        "config.json": BERT,
        "model.safetensors": safetensors(),
        "tokenizer.json": {"model": WORDS, "added_tokens": []},
        "tokenizer_config.json": {},
    }
    for name, content in (contents | files).items():
        if content is not None:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def staged_custom(tmp_path):
    stage(traps.spec(), traps.custom(tmp_path / "snap"), tmp_path / "demo__Tiny-0_1B-k")
    return tmp_path / "demo__Tiny-0_1B-k"


def test_real_model(tmp_path):
    snapshot = minilm_folder()
    hub = {"hub": MINILM, "revision": "8b3219a92973c328a8e22fadcfa821b5dc75636a"}
    spec = {"id": MINILM, "model": "m", "source": hub}
    record = stage(spec, snapshot, tmp_path / "st")
    assert record["class"] == "BertModel" and record["native"] and record["engine"] == "packed"
    assert record["pooling"] == "mean" and record["max_length"] == {"query": 256, "passage": 256}
    assert record["code"] == {}
    assert read(tmp_path / "st" / "stage.json") == record
    config = read(tmp_path / "st" / "config.json")
    assert config["is_causal"] is False and config["use_cache"] is False
    same = (tmp_path / "st" / "model.safetensors").samefile(snapshot / "model.safetensors")
    assert same or tmp_path.stat().st_dev != snapshot.stat().st_dev
    tokenizer = read(tmp_path / "st" / "tokenizer.json")
    assert tokenizer["padding"] is None and tokenizer["truncation"] is None
    for name, facts in record["files"].items():
        assert sha256(tmp_path / "st" / name) == facts["sha256"]
    assert set(record["files"]) == set(tree_files(tmp_path / "st")) - {"stage.json"}


def tree_files(folder):
    return [name for name in tree(folder) if (folder / name).is_file()]


def test_staged_real_model_gives_the_same_bytes_through_transformers(tmp_path):
    import torch
    from transformers import AutoModel, AutoTokenizer

    snapshot = minilm_folder()
    stage({"id": MINILM, "model": "m", "source": {"path": "x"}}, snapshot, tmp_path / "st")
    states = []
    for folder in (snapshot, tmp_path / "st"):
        tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
        batch = tokenizer(["one text", "another, longer text"], padding=True, return_tensors="pt")
        with torch.no_grad():
            states.append(model.eval()(**batch).last_hidden_state)
    assert torch.equal(*states)


def test_custom_code_is_kept_and_made_local(staged_custom):
    record, config = read(staged_custom / "stage.json"), read(staged_custom / "config.json")
    assert config["auto_map"] == {
        "AutoConfig": "modeling_tiny.TinyConfig",
        "AutoModel": "modeling_tiny.TinyModel",
    }
    assert not record["native"] and record["trust_remote_code"]
    assert (record["engine"], record["engine_reason"]) == ("flagembedding", "custom code")
    assert record["code"] == {"modeling_tiny.py": sha256(staged_custom / "modeling_tiny.py")}
    template = read(staged_custom / "tokenizer.json")["post_processor"]
    assert template["single"][-1] == {"SpecialToken": {"id": traps.END, "type_id": 0}}
    assert read(staged_custom / "tokenizer_config.json")["padding_side"] == "left"


def test_changed_or_added_code_is_refused_at_load(staged_custom):
    from embedrepro.encode import load_engine

    assert verify_code(staged_custom)["code"]
    extra = staged_custom / "helper.py"
    extra.write_text("")
    with pytest.raises(UserError, match="helper.py: not what was staged"):
        verify_code(staged_custom)
    extra.unlink()
    with open(staged_custom / "modeling_tiny.py", "a") as file:
        file.write("# other code\n")
    with pytest.raises(UserError, match="modeling_tiny.py: not what was"):
        load_engine(staged_custom, {}, "cpu")


def test_code_beside_a_native_class_is_left_out_only_if_somebody_says_so(tmp_path):
    from unit.layout_folders import own_forward

    snapshot = own_forward(tmp_path / "snap")
    untrusted = {"trust_remote_code": False}
    with pytest.raises(UserError, match="modeling_own.Squared.* beside transformers' BertModel"):
        stage(traps.spec(**untrusted), snapshot, tmp_path / "no")
    assert not (tmp_path / "no").exists()
    for number, said in enumerate(
        ({"facts": {"native": True}}, {"registry": {"custom_code": "native"}})
    ):
        record = stage(traps.spec(**untrusted, **said), snapshot, tmp_path / str(number))
        assert record["class"] == "BertModel" and not record["code"]


def test_native_class_replaces_custom_code(tmp_path):
    snapshot = traps.qwen2(tmp_path / "snap")
    spec = traps.spec(facts={"attention": "causal"}, trust_remote_code=False)
    record = stage(spec, snapshot, tmp_path / "st")
    assert record["class"] == "Qwen2Model" and record["native"] and not record["code"]
    assert not list((tmp_path / "st").glob("*.py"))
    config, tokenizer = (
        read(tmp_path / "st" / n) for n in ("config.json", "tokenizer_config.json")
    )
    assert "auto_map" not in config and "auto_map" not in tokenizer
    assert config["is_causal"] is True
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    reasons = {row["fact"]: row["reason"] for row in record["decisions"]}
    assert "custom code dropped" in reasons["class"]
    required = traps.spec(
        facts={"attention": "causal"}, registry={"custom_code": "required"}, trust_remote_code=False
    )
    with pytest.raises(UserError, match="trust_remote_code"):
        stage(required, snapshot, tmp_path / "st2")


def test_code_needs_trust_and_a_full_revision(tmp_path):
    snapshot = traps.custom(tmp_path / "snap")
    with pytest.raises(UserError, match="trust_remote_code: true"):
        stage(traps.spec(trust_remote_code=False), snapshot, tmp_path / "st")
    branch = {"hub": "demo/Tiny-0.1B", "revision": "main"}
    with pytest.raises(UserError, match="full revision"):
        stage(traps.spec(branch), snapshot, tmp_path / "st")
    pinned = branch | {"revision": "0" * 40}
    assert stage(traps.spec(pinned), snapshot, tmp_path / "st")["revision"] == "0" * 40


@pytest.mark.slow
def test_staged_qwen2_is_one_model_to_every_library(tmp_path):
    """packed, FlagEmbedding and sentence-transformers, each loading the folder by itself."""
    import numpy as np
    from embedrepro.encode import load_engine
    from FlagEmbedding import FlagLLMModel
    from sentence_transformers import SentenceTransformer

    folder = tmp_path / "demo__Tiny-0_1B-k"
    spec = traps.spec(facts={"attention": "causal", "native": True})
    assert stage(spec, traps.qwen2(tmp_path / "snap"), folder)["engine"] == "packed"
    texts = ["one", "another, longer text", "北京大学 and the rest of it"] * 2

    def ours(engine):
        vectors = np.zeros((len(texts), 32), np.float32)
        settings = {"dtype": "float32", "engine": engine}
        for part in load_engine(folder, settings, "cpu").encode(texts, "passage"):
            vectors[part.rows] = part.vectors
        return vectors

    peer = FlagLLMModel(str(folder), use_fp16=False, devices="cpu")
    third = SentenceTransformer(str(folder), device="cpu")
    reference = ours("packed")
    for vectors in (ours("flagembedding"), peer.encode(texts), third.encode(texts)):
        assert np.abs(vectors - reference).max() <= 1e-6


def test_engine(tmp_path):
    facts = FACTS | {"engine": "packed"}
    snapshot = small(tmp_path / "a")
    spec = traps.spec(facts=FACTS)
    assert stage(spec, snapshot, tmp_path / "b")["engine"] == "packed"
    chosen = traps.spec(facts=FACTS | {"engine": "flagembedding"})
    assert stage(chosen, snapshot, tmp_path / "c")["engine"] == "flagembedding"
    other = small(tmp_path / "d", **{"config.json": BERT | {"model_type": "deberta-v2"}})
    record = stage(spec, other, tmp_path / "e")
    assert record["engine_reason"] == "packed does not take deberta-v2"
    with pytest.raises(UserError, match="engine: packed can't run"):
        stage(traps.spec(facts=facts), other, tmp_path / "f")


def test_lower_casing_by_sentence_transformers_is_honoured(tmp_path):
    from tokenizers import Tokenizer

    snapshot = traps.custom(tmp_path / "snap")
    write_json(snapshot / "sentence_bert_config.json", {"do_lower_case": True})
    stage(traps.spec(), snapshot, tmp_path / "st")
    tokenizer = Tokenizer.from_file(str(tmp_path / "st" / "tokenizer.json"))
    assert tokenizer.encode("ABC").ids == tokenizer.encode("abc").ids


def test_sharded_weights(tmp_path):
    index = {"weight_map": {"t": "model-1.safetensors"}}
    files = {"model.safetensors": None, "model.safetensors.index.json": index}
    shard = {"model-1.safetensors": safetensors(3)}
    spec = traps.spec(facts=FACTS)
    record = stage(spec, small(tmp_path / "a", **files, **shard), tmp_path / "b")
    assert {*shard, "model.safetensors.index.json"} <= set(record["files"])


def test_7b_checkpoint_is_linked_not_copied_and_its_hashes_come_from_the_manifest(tmp_path):
    names = {f"t{i}": f"model-{i}.safetensors" for i in range(1, 5)}
    files = {"model.safetensors": None, "model.safetensors.index.json": {"weight_map": names}}
    snapshot = small(tmp_path / "snap", **files)
    for tensor, name in names.items():
        header = tensors_header(tensor, 10**9)
        (snapshot / name).write_bytes(header)
        os.truncate(snapshot / name, len(header) + 4 * 10**9)  # sparse: takes no room
    known = {
        path.name: {"size": path.stat().st_size, "sha256": "0" * 64} for path in snapshot.iterdir()
    }
    write_json(snapshot / "manifest.json", {"files": known})
    started = time.perf_counter()
    record = stage(traps.spec(facts=FACTS), snapshot, tmp_path / "st")
    assert time.perf_counter() - started < 5
    for name in names.values():
        assert (tmp_path / "st" / name).samefile(snapshot / name)
        assert record["files"][name]["sha256"] == "0" * 64


def test_weights_are_copied_where_they_can_t_be_linked(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(18, "cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    snapshot = small(tmp_path / "a", **{"model.safetensors": safetensors(50)})
    stage(traps.spec(facts=FACTS), snapshot, tmp_path / "b")
    assert (tmp_path / "b/model.safetensors").read_bytes() == safetensors(50)


@pytest.mark.parametrize("linked", [True, False])
def test_damage_is_told_of_all_folders_that_have_it(tmp_path, monkeypatch, linked):
    """Staging again would link the damaged file again."""
    if not linked:
        monkeypatch.setattr(os, "link", mock.Mock(side_effect=OSError(18, "cross-device link")))
    hub, staged = tmp_path / "hub", tmp_path / "staged" / "m-1"
    for name, size in (("m-0", 50), ("other-0", 60)):
        small(hub / name, **{"model.safetensors": safetensors(size)})
        files = [path for path in (hub / name).iterdir() if path.is_file()]
        listed = {p.name: {"size": p.stat().st_size, "sha256": sha256(p)} for p in files}
        write_json(hub / name / "manifest.json", {"files": listed})
    stage(traps.spec(facts=FACTS), hub / "m-0", staged)
    verify_staged(staged)
    damaged = bytearray(safetensors(50))
    damaged[-1] ^= 1
    (staged / "model.safetensors").write_bytes(damaged)
    with pytest.raises(UserError) as told:
        verify_staged(staged)
    folders = [staged, hub / "m-0"] if linked else [staged]
    assert str(told.value).endswith(f"; delete {' '.join(map(str, folders))} and run again")
    (hub / "m-0" / "model.safetensors").write_bytes(damaged)
    with pytest.raises(UserError, match=f"delete {staged} {hub / 'm-0'} and run again"):
        verify_staged(staged)


def test_names_and_links(tmp_path):
    for name, revision in (("org/b-1.5", "r1"), ("org/a", None), ("org/b-1.5", "r2")):
        staged = tmp_path / "staged" / f"{name[4]}-{revision}"
        staged.mkdir(parents=True)
        record = {"id": name, "revision": revision, "model": "slug"}
        register(record, staged, tmp_path)
        register(record, staged, tmp_path)  # again: nothing changes
        assert (tmp_path / "by_id" / name).resolve() == staged
    assert (tmp_path / "names.tsv").read_text().splitlines() == [
        "id\trevision\tmodel\tpath\thas_dot",
        "org/a\t\tslug\tstaged/a-None\tfalse",
        "org/b-1.5\tr1\tslug\tstaged/b-r1\ttrue",
        "org/b-1.5\tr2\tslug\tstaged/b-r2\ttrue",
    ]
    for hostile in ("../x", "/etc/x", "a//b", "a\nb"):
        with pytest.raises(UserError):
            register({"id": hostile, "revision": None, "model": "s"}, staged, tmp_path)


def test_many_jobs_write_names_at_once(tmp_path):
    program = (
        "import sys; from pathlib import Path; from embedrepro.models.by_id import register\n"
        "root = Path(sys.argv[1])\n"
        "for i in range(20):\n"
        "    record = {'id': f'o/{sys.argv[2]}{i}', 'revision': None, 'model': 'm'}\n"
        "    register(record, root / 'staged' / f'{sys.argv[2]}{i}', root)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS)}
    jobs = [
        subprocess.Popen([sys.executable, "-c", program, tmp_path, name], env=environment)
        for name in "abc"
    ]
    assert [job.wait(60) for job in jobs] == [0, 0, 0]
    assert len((tmp_path / "names.tsv").read_text().splitlines()) == 61


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
CUSTOM = {"model_type": "own", "hidden_size": 4, "is_causal": True}
INDEX = "model.safetensors.index.json"
NO_SINGLE = {"model.safetensors": None}


def auto(target):
    return {"config.json": CUSTOM | {"auto_map": {"AutoModel": target}}}


# what is broken, its files, and what the one line says
BROKEN = [
    (
        "an empty folder",
        dict.fromkeys(("config.json", "model.safetensors"), None),
        "no config.json",
    ),
    ("config.json cut off", {"config.json": '{"model_type": "bert'}, "not whole JSON"),
    ("config.json empty", {"config.json": ""}, "not whole JSON"),
    ("config.json {}", {"config.json": {}}, "no model_type"),
    ("config.json a list", {"config.json": []}, "not a JSON object"),
    ("config.json not UTF-8", {"config.json": b"\xff\xfe{}"}, "not whole JSON"),
    ("model_type a number", {"config.json": {"model_type": 7}}, "no model_type"),
    (
        "hidden_size text",
        {"config.json": {"model_type": "bert", "hidden_size": "x"}},
        "hidden_size",
    ),
    ("an encoder-decoder", {"config.json": BERT | {"is_encoder_decoder": True}}, "encoder-decoder"),
    ("unknown architecture", {"config.json": CUSTOM}, "no AutoModel for own"),
    ("no weights", NO_SINGLE, "no weights"),
    ("weights a git-lfs pointer", {"model.safetensors": POINTER}, "run `git lfs pull`"),
    ("tokenizer a git-lfs pointer", {"tokenizer.json": POINTER}, "run `git lfs pull`"),
    ("weights empty", {"model.safetensors": b""}, "not a whole safetensors file"),
    ("weights cut off", {"model.safetensors": safetensors(9)[:20]}, "not a whole safetensors file"),
    (
        "weights an error page",
        {"model.safetensors": b"<html>404</html>"},
        "not a whole safetensors",
    ),
    ("only a pickle", NO_SINGLE | {"pytorch_model.bin": b"x"}, "allow_pickle: true"),
    (
        "a shard missing",
        NO_SINGLE | {INDEX: {"weight_map": {"a": "model-1.safetensors"}}},
        "names the shard 'model-1.safetensors', which is missing",
    ),
    (
        "an index that leads outside",
        NO_SINGLE | {INDEX: {"weight_map": {"a": "../../secret"}}},
        "leads out of the folder",
    ),
    ("an index without a map", NO_SINGLE | {INDEX: {}}, "has no weight_map"),
    ("no tokenizer", {"tokenizer.json": None}, "no tokenizer"),
    ("tokenizer.json cut off", {"tokenizer.json": '{"model":'}, "not a tokenizer"),
    ("tokenizer.json without a model", {"tokenizer.json": {}}, "not a tokenizer"),
    (
        "an end token it doesn't have",
        {"tokenizer.json": {"model": WORDS | {"vocab": {"a": 0}}, "added_tokens": []}},
        "end_token </s> is not in its vocabulary",
    ),
    ("modules.json of text", {"modules.json": ["x"]}, "not a list of modules"),
    (
        "a module outside",
        {"modules.json": [{"type": "sentence_transformers.models.Pooling", "path": "../x"}]},
        "leaves the folder",
    ),
    (
        "manifest disagrees",
        {"manifest.json": {"files": {"config.json": {"size": 1}}}},
        "bytes, the",
    ),
    ("code missing", auto("modeling_x.Model"), "modeling_x.py is not in the snapshot"),
    ("code elsewhere", auto("other/repo--modeling_x.Model"), "set code_revision: under the model"),
    ("code that leads outside", auto("../../evil.Model"), "is not module.Class"),
    ("code not Python", auto("m.Model") | {"m.py": "def ("}, "not Python"),
    ("auto_map a list", {"config.json": CUSTOM | {"auto_map": ["x"]}}, "auto_map is not a table"),
]


@pytest.mark.parametrize(("files", "says"), [row[1:] for row in BROKEN], ids=[r[0] for r in BROKEN])
def test_broken_folders_are_refused_in_one_line(tmp_path, files, says):
    snapshot = small(tmp_path / "snap", **files)
    before = tree(tmp_path)
    facts = FACTS | {"end_token": "</s>"}
    with pytest.raises(UserError) as error:
        stage(traps.spec(facts=facts), snapshot, tmp_path / "out" / "st")
    assert says in str(error.value)
    assert tree(tmp_path) == before or tree(tmp_path) == sorted([*before, "out"])


def test_command_line(tmp_path):
    source = small(tmp_path / "snap", **{"config.json": {}})
    models = [{"id": "a/b", "source": {"path": str(source)}, **FACTS}]
    plan, names = planned(tmp_path, one_model(models))
    run(step("download_model", plan, names["download"]), check=True)
    done = run(step("stage_model", plan, names["stage"]))
    assert done.returncode == 2
    assert not list((tmp_path / "store/models").glob("staged/*"))
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_command_line_stages_and_links_the_model_by_its_id(tmp_path):
    models = [{"id": "a/b-1.5", "source": {"path": str(small(tmp_path / "snap"))}, **FACTS}]
    plan, names = planned(tmp_path, one_model(models))
    for script, rule in (("download_model", "download"), ("stage_model", "stage")):
        done = run(step(script, plan, names[rule]), check=True)
    assert done.stdout.startswith("stage: a/b-1.5 as a__b-1_5-")
    by_id = tmp_path / "store/models/by_id/a/b-1.5"
    (staged,) = (tmp_path / "store/models/staged").glob("a__b-1_5-*")
    assert by_id.resolve() == staged.resolve()
    before = (staged / "stage.json").stat()
    run(step("stage_model", plan, names["stage"]), check=True)  # there already
    assert (staged / "stage.json").stat() == before


def run(command, **more):
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **more)


def test_what_a_workflow_left_is_replaced_but_nobody_s_files(tmp_path):
    snapshot, output = small(tmp_path / "a"), tmp_path / "b"
    stage(traps.spec(facts=FACTS), snapshot, output)
    (output / "stage.json").unlink()
    assert stage(traps.spec(facts=FACTS), snapshot, output) == read(output / "stage.json")
    (output / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="thesis.txt"):
        stage(traps.spec(facts=FACTS), snapshot, output)
    assert (output / "thesis.txt").read_text() == "precious"


def test_a_dot_in_the_output_s_name_is_refused(tmp_path):
    with pytest.raises(UserError, match="must not hold a dot"):
        stage(traps.spec(facts=FACTS), small(tmp_path / "a"), tmp_path / "gte-1.5B")


def test_no_torch_for_light_steps():
    check = "import sys, embedrepro.models.staging; sys.exit('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS)}
    assert subprocess.run([sys.executable, "-c", check], env=environment).returncode == 0
