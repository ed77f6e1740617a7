"""check_names: its table and exit status, and renaming that can always be taken back."""

import subprocess
import sys
from pathlib import Path

import pytest
from embedrepro.errors import UserError
from embedrepro.models import local_models
from embedrepro.models.local_models import rename_dotted, restore_dotted

ROOT = Path(__file__).parents[2]


def check_names(*args: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "scripts" / "check_names.py"), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def models(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(name)
    return folder


def tree(folder: Path) -> dict[str, str]:
    """Everything in a folder: links with their target, files with their text."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"→ {path.readlink()}"
        elif path.is_file():
            found[name] = path.read_text()
    return found


def test_dotted_ids_are_fine_and_the_table_says_what_was_avoided():
    done = check_names("Alibaba-NLP/gte-Qwen2-1.5B-instruct", "MiniMax-M2")
    assert done.returncode == 0, done.stderr
    dotted, plain = done.stdout.splitlines()[1:3]
    assert "Alibaba-NLP__gte-Qwen2-1_5B-instruct" in dotted
    assert "No module named 'transformers_modules.Alibaba-NLP.gte-Qwen2-1'" in dotted
    assert "4.44.2 … 4.56.2" in dotted
    assert plain.split() == ["MiniMax-M2", "MiniMax-M2", "no", "nothing"]


@pytest.mark.parametrize("bad", ["../x", "a_b", "a\x1b[31mb", "", "A.b"])
def test_one_refusal_gives_status_2_and_the_whole_table(bad):
    done = check_names("a.b", bad, "last")
    assert done.returncode == 2
    assert "refused" in done.stdout.splitlines()[2]
    assert done.stdout.splitlines()[3].split()[:2] == ["last", "last"]
    assert len(done.stderr.splitlines()) == 1
    assert "\x1b" not in done.stdout + done.stderr


def test_the_models_of_a_config(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("models:\n  - id: a.b\n  - id: a_b\n    alias: other\n  - c\n")
    assert check_names("--config", config).returncode == 0
    config.write_text("models:\n  - id: a.b\n  - id: a_b\n")
    done = check_names("--config", config)
    assert done.returncode == 2
    assert "alias:" in done.stderr


@pytest.mark.parametrize("text", ["models: {", "- a", "models: 3", "models: [{name: x}]", "\x00"])
def test_a_broken_config_is_named_in_one_line(tmp_path, text):
    config = tmp_path / "config.yaml"
    config.write_text(text)
    done = check_names("--config", config)
    assert done.returncode == 2
    assert str(config) in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_fix_renames_and_leaves_links_and_undo_takes_it_back(tmp_path):
    folder = models(tmp_path, "bge-large-en-v1.5", "plain", "org/GOT-OCR-2.0-hf", "v1.0/model")
    before = tree(folder)
    assert check_names("--folder", folder).returncode == 0

    first = check_names("--folder", folder, "--fix")
    assert first.returncode == 0, first.stderr
    fixed = tree(folder)
    assert fixed["bge-large-en-v1.5"] == "→ bge-large-en-v1_5"
    assert fixed["org/GOT-OCR-2.0-hf"] == "→ GOT-OCR-2_0-hf"
    assert fixed["bge-large-en-v1_5/config.json"] == "bge-large-en-v1.5"
    assert (folder / "bge-large-en-v1.5" / "config.json").read_text() == "bge-large-en-v1.5"
    assert fixed["v1.0/model/config.json"] == "v1.0/model"  # a dotted parent does no harm

    again = check_names("--folder", folder, "--fix")
    assert (again.returncode, again.stdout) == (0, "0 folders renamed\n")
    assert tree(folder) == fixed

    assert check_names("--folder", folder, "--undo").returncode == 0
    assert tree(folder) == before
    assert check_names("--folder", folder, "--undo").stdout == "0 folders renamed\n"


class Killed(Exception):
    """Stands for a process that ends here."""


def die_after(monkeypatch, steps: int) -> None:
    """Let that many changes of names and links happen, then no further one."""
    left = [steps]

    def limited(method):
        def act(*args, **kwargs):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return method(*args, **kwargs)

        return act

    for name in ("rename", "symlink_to", "unlink"):
        monkeypatch.setattr(Path, name, limited(getattr(Path, name)))


@pytest.mark.parametrize("steps", range(6))
def test_an_interrupted_fix_can_be_finished_or_undone(tmp_path, steps):
    whole = models(tmp_path / "whole", "a.b", "c.d")
    before = tree(whole)
    rename_dotted(whole)
    for finish, expected in ((rename_dotted, tree(whole)), (restore_dotted, before)):
        folder = models(tmp_path / finish.__name__, "a.b", "c.d")
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            die_after(patch, steps)
            rename_dotted(folder)
        finish(folder)
        assert tree(folder) == expected


@pytest.mark.parametrize("steps", range(6))
def test_an_interrupted_undo_can_be_finished_or_reversed(tmp_path, steps):
    whole = models(tmp_path / "whole", "a.b", "c.d")
    before = tree(whole)
    rename_dotted(whole)
    for finish, expected in ((rename_dotted, tree(whole)), (restore_dotted, before)):
        folder = models(tmp_path / finish.__name__, "a.b", "c.d")
        rename_dotted(folder)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            die_after(patch, steps)
            restore_dotted(folder)
        finish(folder)
        assert tree(folder) == expected


@pytest.mark.parametrize("taken", ["folder", "empty", "file", "dead link"])
def test_fix_never_overwrites(tmp_path, taken):
    folder = models(tmp_path, "a.b", "other-1.0")
    target = folder / "a_b"
    if taken == "folder":
        models(folder, "a_b")
    elif taken == "empty":
        target.mkdir()
    elif taken == "file":
        target.write_text("mine")
    else:
        target.symlink_to("nowhere")
    before = tree(folder)
    done = check_names("--folder", folder, "--fix")
    assert done.returncode == 2
    assert "a_b" in done.stderr
    assert tree(folder) == before  # also 'other-1.0', which could have been renamed


def test_fix_refuses_two_models_that_would_meet(tmp_path):
    folder = models(tmp_path, "a.b", "a b.", "a+b.")
    with pytest.raises(UserError, match="rename one of them first"):
        rename_dotted(folder)
    assert "a.b/config.json" in tree(folder)


def test_undo_leaves_other_peoples_links(tmp_path):
    folder = models(tmp_path, "a_b", "real")
    (folder / "latest.model").symlink_to("real")
    (folder / "away.x").symlink_to("../away_x")
    before = tree(folder)
    assert restore_dotted(folder) == []
    assert tree(folder) == before


def test_what_is_no_model_is_left_alone(tmp_path):
    (tmp_path / "notes.d").mkdir()
    (tmp_path / "file.txt").write_text("x")
    models(tmp_path, "a.b")
    assert [old.name for old, _ in rename_dotted(tmp_path)] == ["a.b"]
    assert local_models.model_folders(tmp_path) == [tmp_path / "a_b"]


def test_wrong_use_is_one_line(tmp_path):
    for args in ((), ("--fix",), ("--folder", tmp_path / "none"), ("--folder", tmp_path)):
        done = check_names(*args)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
