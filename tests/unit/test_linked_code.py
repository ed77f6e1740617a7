"""Code that lies in another repository: fetched at its own commit, hashed, staged beside."""

import json
import sys

import pytest
from embedrepro.errors import UserError
from embedrepro.models.staging import stage
from embedrepro.sources import hub_client
from embedrepro.sources.hub import download_model
from helpers import REPOSITORY
from hub_server import HubServer
from huggingface_hub import constants
from test_plan import changed, experiment, keys

sys.path.insert(0, str(REPOSITORY / "tests" / "journeys"))
from stand_ins import bert_with_code, files, write_json  # noqa: E402

OTHER = "other/Code-2.0"
CODE = {"modeling_own.py": b"from .shift import SHIFT\n", "shift.py": b"SHIFT = 1\n"}


@pytest.fixture
def folder(tmp_path):
    folder = bert_with_code(tmp_path / "linked")
    name(folder, AutoModel=f"{OTHER}--modeling_own.OwnModel")
    (folder / "modeling_own.py").unlink()
    return folder


def name(folder, **targets):
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"auto_map": targets})


def staged(tmp_path, monkeypatch, folder, code=CODE, revision=None, **more):
    """stage.json of the model in `folder`, and what the hub was asked for."""
    with HubServer({"me/Linked-1.5B": files(folder), OTHER: code}) as hub:
        places = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + places)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub_client, "WAITS", (0, 0))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        source = {"hub": "me/Linked-1.5B", "revision": hub.commit("me/Linked-1.5B")}
        spec = {"id": "me/Linked-1.5B", "model": "m", "source": source, "registry": {}}
        spec |= {"facts": {"native": False}, "trust_remote_code": True} | more
        spec["code_revision"] = hub.commit(OTHER) if revision is None else revision
        try:
            manifest = download_model(spec, tmp_path / "snap", tmp_path / "cache")
            record = stage(spec, tmp_path / "snap", tmp_path / "staged")
        finally:
            asked = [path for _, path, _ in hub.requests if "Code-2.0" in path]
    return manifest, record, asked


def test_the_code_comes_at_its_commit_and_loads_from_the_staged_folder(
    folder, tmp_path, monkeypatch
):
    manifest, record, _ = staged(tmp_path, monkeypatch, folder)
    listed = {path for path in manifest["files"] if path.endswith(".py")}
    assert listed == {f"code/other__Code-2_0/{file}" for file in CODE}
    assert set(record["code"]) == set(CODE)
    for file, text in CODE.items():
        assert (tmp_path / "staged" / file).read_bytes() == text
    config = json.loads((tmp_path / "staged" / "config.json").read_text())
    assert config["auto_map"] == {"AutoModel": "modeling_own.OwnModel"}
    assert (record["trust_remote_code"], record["native"]) == (True, False)


def test_without_its_commit_nothing_is_fetched_and_the_line_says_what_to_set(
    folder, tmp_path, monkeypatch
):
    with pytest.raises(UserError) as error:
        staged(tmp_path, monkeypatch, folder, revision="")
    said = str(error.value)
    assert said.startswith("me/Linked-1.5B: its code modeling_own.py lies in another repository")
    assert f"({OTHER})" in said and "set code_revision: under the model" in said
    assert not (tmp_path / "staged").exists() and not (tmp_path / "snap" / "code").exists()


@pytest.mark.parametrize(
    ("targets", "code", "revision", "says"),
    [
        ({}, {"other.py": b""}, None, "is not in other/Code-2.0 at the code_revision: that is set"),
        ({}, {"README.md": b""}, None, "holds no .py file"),
        ({}, CODE, "0" * 40, "has no commit 0000"),
        ({"AutoConfig": "third/x--c.C"}, CODE, None, "in several (other/Code-2.0, third/x)"),
        ({"AutoModel": "modeling_own.OwnModel"}, CODE, None, "names code in no other"),
    ],
)
def test_what_can_t_be_had_is_one_line(
    folder, tmp_path, monkeypatch, targets, code, revision, says
):
    name(folder, **({"AutoModel": f"{OTHER}--modeling_own.OwnModel"} | targets))
    with pytest.raises(UserError) as error:
        staged(tmp_path, monkeypatch, folder, code, revision)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_two_files_of_one_name_that_differ_are_refused(folder, tmp_path, monkeypatch):
    targets = {"AutoModel": f"{OTHER}--modeling_own.OwnModel", "AutoConfig": "shift.Config"}
    name(folder, **targets)
    (folder / "shift.py").write_text("SHIFT = 2\n")
    with pytest.raises(UserError, match=r"two files shift.py.*differ"):
        staged(tmp_path, monkeypatch, folder)


def test_its_commit_is_part_of_the_keys_and_can_t_move():
    model = {"id": "Org/Known-1.5B", "trust_remote_code": True}
    plain, pinned = (experiment(models=[m]) for m in (model, model | {"code_revision": "a" * 40}))
    everything = {"source", "stage", "corpus", "query", "run", "scores"}
    assert changed(keys(plain), keys(pinned)) == everything
    with pytest.raises(UserError, match="code_revision 'main' can move"):
        experiment(models=[model | {"code_revision": "main"}])
