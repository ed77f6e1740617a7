"""Hostile configs and sources: nothing reaches a shell, a page or a place outside the store."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from embedrepro.datasets.registry import Registry
from embedrepro.errors import UserError, run_cli
from embedrepro.files import read_json, write_json
from embedrepro.models.preflight import preflight
from embedrepro.models.staging import stage
from embedrepro.plan.build import config_schema
from embedrepro.plan.config import read_experiment
from embedrepro.sources.demo_model import build
from small_run import REPOSITORY, Run, write_corpus

SCHEMA = config_schema(REPOSITORY)
SHELL = "$(touch pwned) `touch pwned`; touch pwned; '\"\\ & touch pwned #"
PAGE = "<img src=x onerror=alert(1)>"
SECRETS = {"HF_TOKEN": "hf_secretsecretsecret", "AWS_SECRET_ACCESS_KEY": "aws+secret/secret"}
# Forms that may stand in a page: escaped for HTML, for JSON in a script, or backslashed.
RAW = re.compile(rb"<img src=x onerror")


def experiment(**changes):
    config = {
        "experiment": "t",
        "models": [{"id": "a", "source": {"demo": 1}}],
        "datasets": [{"name": "d", "source": {"beir": "/d"}}],
    }
    known = {"schema": SCHEMA, "models": {}, "datasets": Registry({})}
    return read_experiment(config | changes, **known, path_digest=str, file_digest=str)


OUTSIDE = {
    "experiment": {"experiment": "../../up"},
    "experiment with a shell": {"experiment": "a;touch pwned"},
    "model id up": {"models": [{"id": "../../etc/passwd", "source": {"demo": 1}}]},
    "model id dots": {"models": [{"id": "..", "source": {"demo": 1}}]},
    "model id absolute": {"models": [{"id": "/etc/passwd", "source": {"demo": 1}}]},
    "model id over two lines": {"models": [{"id": "a\nb", "source": {"demo": 1}}]},
    "model id in colour": {"models": [{"id": "a\x1b[31mb", "source": {"demo": 1}}]},
    "dataset up": {"datasets": [{"name": "../../d", "source": {"beir": "/d"}}]},
    "dataset in colour": {"datasets": [{"name": "d\x1b[2J", "source": {"beir": "/d"}}]},
    "split up": {"datasets": [{"name": "d", "source": {"beir": "/d"}, "splits": ["../x"]}]},
    "wheel with an option": {"models": [{"id": "a", "source": {"wheel": "--index-url=x==1"}}]},
    "wheel from a page": {"models": [{"id": "a", "source": {"wheel": "a @ http://x/y==1"}}]},
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_out_of_the_store_are_refused_in_a_printable_line(name, capsys):
    with pytest.raises(SystemExit) as ended:
        run_cli(lambda: experiment(**OUTSIDE[name]))
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.rstrip("\n").isprintable()


@pytest.mark.parametrize("alias", ["../../up", "/etc/x", "a/../../b", "$(touch x)", "a\x1b[31m"])
def test_an_alias_is_a_plain_name_or_refused(alias):
    try:
        built = experiment(models=[{"id": "a", "alias": alias, "source": {"demo": 1}}])
    except UserError:
        return
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", model.slug) for model in built.models)


EVIL = "import pathlib\npathlib.Path({marker!r}).touch()\n"


@pytest.mark.parametrize("trusted", [False, True])
def test_a_tokenizers_code_never_runs(tmp_path, trusted):
    snapshot, marker = tmp_path / "snapshot", tmp_path / "ran"
    build(snapshot, 7)
    (snapshot / "evil.py").write_text(EVIL.format(marker=str(marker)))
    settings = read_json(snapshot / "tokenizer_config.json")
    settings |= {"auto_map": {"AutoTokenizer": ["evil.Slow", "evil.Fast"]}}
    settings |= {"tokenizer_class": "Evil"}
    write_json(snapshot / "tokenizer_config.json", settings)
    spec = {"id": "a/b", "model": "a__b", "source": {"demo": 7}, "trust_remote_code": trusted}
    spec |= {"facts": {"query_prompt": "", "passage_prompt": ""}}
    if trusted:
        stage(spec, snapshot, tmp_path / "staged")
        preflight(
            tmp_path / "staged", tmp_path / "preflight.json"
        )  # loads it as every library does
        assert not (tmp_path / "staged" / "evil.py").exists()
        assert "auto_map" not in read_json(tmp_path / "staged" / "tokenizer_config.json")
    else:
        with pytest.raises(UserError, match="trust_remote_code"):
            stage(spec, snapshot, tmp_path / "staged")
        assert not (tmp_path / "staged").exists()
    assert not marker.exists()


def test_a_datasets_script_is_never_run(tmp_path):
    marker = tmp_path / "ran"
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "evil.py").write_text(EVIL.format(marker=str(marker)))
    code = f"import datasets; datasets.load_dataset({str(folder)!r}, trust_remote_code=True)"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "USE_TORCH": "NO", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert done.returncode
    assert not marker.exists()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A run whose config is hostile wherever it takes free text, with secrets around it."""
    folder = tmp_path_factory.mktemp("hostile") / f"quo'te \"$(touch pwned) {PAGE}"
    corpus = write_corpus(folder / "cor'pus $(touch pwned)")
    model = {
        "id": f"evil/{PAGE} $(touch pwned) 'x' \"y\"",
        "source": {"demo": 7},
        "trust_remote_code": True,
        "query_prompt": f"{SHELL}\n\x1b[31m{PAGE} {{task}}: ",
        "passage_prompt": f"{PAGE}\n",
    }
    dataset = {
        "name": f"d/{PAGE} $(touch pwned) '\"",
        "source": {"beir": str(corpus)},
        "instruction": f"{SHELL}\n{PAGE}\x1b]0;title\x07",
    }
    settings = {"experiment": "demo", "models": [model], "datasets": [dataset]}
    settings |= {"store": "sto're $(touch pwned)"}
    run = Run(folder / "work", settings)
    status, output = run(environment=SECRETS)
    assert status == 0, output
    return run, output


@pytest.mark.slow
def test_no_shell_has_read_the_config(hostile):
    run, _ = hostile
    assert not [p for p in run.workdir.parent.parent.rglob("*") if p.name == "pwned"]
    assert not Path("pwned").exists()


@pytest.mark.slow
def test_no_page_and_no_screen_shows_it_raw(hostile):
    run, output = hostile
    page = (run.workdir / "results" / "demo" / "report.html").read_bytes()
    assert b"img src=x" in page  # it is there, as text
    assert not RAW.search(page)
    assert "\x1b]0;" not in output
    assert "\x1b[31m" not in output
    for log in (run.workdir / "logs").rglob("*.log"):
        assert b"\x1b[31m" not in log.read_bytes(), log


@pytest.mark.slow
def test_the_store_stays_in_its_folder(hostile):
    run, _ = hostile
    for link in (p for p in run.workdir.rglob("*") if p.is_symlink()):
        assert link.resolve().is_relative_to(run.workdir.resolve()), link


@pytest.mark.slow
def test_no_secret_is_written_anywhere(hostile):
    run, output = hostile
    for secret in SECRETS.values():
        assert secret not in output
        for path in run.workdir.rglob("*"):
            if path.is_file():
                assert secret.encode() not in path.read_bytes(), path
