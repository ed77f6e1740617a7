import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from drive import REPOSITORY
from stand_ins import Texts, bert, qwen


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A folder of models and datasets that tests only read."""
    folder = tmp_path_factory.mktemp("tiny")
    bert(folder / "bert")
    bert(folder / "other", seed=1)
    qwen(folder / "qwen")
    Texts(1).beir(folder / "mine")
    return folder


@pytest.fixture(scope="session")
def clone(tmp_path_factory):
    """A fresh clone of the working tree's state, with this environment in place of a new one."""
    return fresh_clone(tmp_path_factory.mktemp("clone") / "embed-repro")


def fresh_clone(folder: Path) -> Path:
    """Tracked files as they are now, and new ones that git doesn't ignore; committed there."""

    def git(*words: object, cwd: Path = folder) -> str:
        identity = ["-c", "user.name=journeys", "-c", "user.email=journeys@localhost"]
        command = ["git", *identity, *map(str, words)]
        return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout

    git("clone", "--quiet", "--no-hardlinks", REPOSITORY, folder, cwd=REPOSITORY)
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=REPOSITORY)
    names = [name for name in listed.split("\0") if name]
    for path in [folder / name for name in git("ls-files", "-z").split("\0") if name]:
        path.unlink()
    for name in names:
        if (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, folder / name)
    git("add", "--all")
    git("commit", "--quiet", "--allow-empty", "-m", "as it is now")
    (folder / ".venv").symlink_to(sys.prefix)
    os.utime(folder / "pyproject.toml", (0, 0))  # older than the environment's stamps
    return folder
