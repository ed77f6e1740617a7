"""Environments of a model's own: their pins, the venv, and what the plan runs in it."""

import base64
import hashlib
import json
import subprocess
import zipfile

import pytest
from embedrepro.errors import UserError
from embedrepro.plan.build import build_plan
from embedrepro.sources.environments import make_environment, pins_digest, read_pins
from embedrepro.verify import damage
from helpers import REPOSITORY, one_model
from test_plan import ALL, changed, experiment, keys, plan

ENVS = REPOSITORY / "envs"
OWN = {"id": "Org/Known-1.5B", "trust_remote_code": True}


def wheel(folder, name, needs=()):
    """A package of one module that holds its name, and perhaps needs others that aren't there."""
    files = {f"{name}.py": f"NAME = {name!r}\n"}
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    metadata += "".join(f"Requires-Dist: {need}\n" for need in needs)
    info = f"{name}-1.0.dist-info"
    files[f"{info}/METADATA"] = metadata
    files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    rows = []
    for path, text in files.items():
        value = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        rows.append(f"{path},sha256={value.decode()},{len(text)}\n")
    files[f"{info}/RECORD"] = "".join([*rows, f"{info}/RECORD,,\n"])
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """pip sees the wheels of a folder, and no network."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    wheel(tmp_path / "wheels", "together")
    wheel(tmp_path / "wheels", "lonely", needs=["nowhere==9.9"])
    return tmp_path


@pytest.mark.slow
def test_a_venv_is_made_of_the_pins_whole_or_not_at_all(offline):
    pins, folder = offline / "own.txt", offline / "store" / "own-0123456789ab"
    pins.write_text("# mine\ntogether==1.0\n\n# alone: asks for too much\nlonely==1.0  # yes\n")
    record = make_environment(pins, folder)
    assert record["pins"] == ["together==1.0", "lonely==1.0"]
    assert record["installed"]["together"] == record["installed"]["lonely"] == "1.0"
    code = "import lonely, sys, together; print(lonely.NAME + together.NAME, sys.prefix)"
    command = [folder / "bin" / "python", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["lonelytogether", str(folder)]
    assert json.loads((folder / "environment.json").read_text())["installed"] == record["installed"]
    (folder / "lib" / "made-up.npy").write_bytes(b"no array")
    assert not list(damage(offline / "store"))
    (folder / "environment.json").write_text("{")
    assert len(list(damage(offline / "store"))) == 1
    pins.write_text("together==1.0\nabsent==2.0\n")
    with pytest.raises(UserError) as error:
        make_environment(pins, offline / "store" / "other-0123456789ab")
    assert "absent==2.0" in str(error.value) and "`make fetch` makes it" in str(error.value)
    assert "\n" not in str(error.value)
    assert [path.name for path in (offline / "store").iterdir()] == [folder.name]


@pytest.mark.parametrize("text", ["", "torch>=2\n", "-r other.txt\n", "a==1.*\n"])
def test_what_is_no_pin_is_refused(tmp_path, text):
    (tmp_path / "own.txt").write_text(text)
    with pytest.raises(UserError, match="no pin"):
        read_pins(tmp_path / "own.txt")


def test_a_pin_changes_the_key_and_a_comment_does_not(tmp_path):
    found = []
    for text in ("a==1\n", "# words\na==1\n", "a==2\n", "# alone\na==1\n"):
        (tmp_path / "own.txt").write_text(text)
        found.append(pins_digest(tmp_path, "own"))
    assert found[0] == found[1] and len(set(found)) == 3


@pytest.mark.parametrize("path", sorted(ENVS.glob("*.txt")), ids=lambda path: path.name)
def test_the_environments_here_are_pinned(path):
    together, alone = read_pins(path)
    names = [pin.partition("==")[0].lower() for pin in (*together, *alone)]
    assert len(names) == len(set(names)) > 5


def test_what_loads_the_model_runs_in_its_environment_and_nothing_else():
    """And where there is none, no key knows of such things."""
    plain, own = (experiment(models=[m]) for m in (OWN, OWN | {"environment": "legacy"}))
    assert changed(keys(plain), keys(own)) == {"stage", *ALL}
    for datasets in (["beir/scifact"], ["msmarco-passage"]):
        made = plan(models=[OWN | {"environment": "legacy"}], datasets=datasets)
        inside = {job.rule for job in made.jobs if job.python}
        outside = {job.rule for job in made.jobs if not job.python}
        assert {"stage", "preflight", "encode"} <= inside <= {*inside, "refine"}
        assert {"download", "environment", "prepare", "score", "report"} <= outside
        assert not inside & outside
        (folder,) = {job.python for job in made.jobs if job.python}
        (made_there,) = (a for a in made.artifacts.values() if a.step == "environment")
        assert folder == made_there.path.replace("environment.json", "bin/python")
        for job in made.jobs:
            assert not job.python or made_there.path in job.inputs
            if job.rule == "encode":
                steps = {made.artifacts[path].step for path in job.artifacts}
                assert not steps & {"search", "refine"}


def test_an_environment_that_nobody_pinned_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = {"id": "me/m", "source": {"demo": 1}, "trust_remote_code": True}
    config = one_model([model | {"environment": "oldest"}])
    with pytest.raises(UserError, match=r"oldest: there is no .*envs/oldest.txt.*known are legacy"):
        build_plan(config, REPOSITORY, [], {})
