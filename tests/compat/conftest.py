"""Environments built once: the last versions that ran gte-Qwen2's own code, and PyLate's."""

import fcntl
from pathlib import Path

import pytest
from embedrepro.errors import UserError
from embedrepro.plan.keys import key_of
from embedrepro.sources.environments import make_environment, pins_digest
from helpers import REPOSITORY
from minilm import CACHE

LEGACY = REPOSITORY / "envs" / "legacy.txt"
PYLATE = Path(__file__).with_name("pylate.txt")


def kept(pins: Path) -> Path:
    """The environment of these pins, kept between sessions under the name that a store gives it."""
    key = key_of("environment", pins_digest(pins.parent, pins.stem))
    folder = CACHE / "environments" / f"{pins.stem}-{key}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "environments.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # pytest's workers build it once
        if not (folder / "environment.json").exists():
            try:
                make_environment(pins, folder)
            except UserError as error:
                pytest.skip(str(error))
    return folder


@pytest.fixture(scope="session")
def legacy() -> Path:
    return kept(LEGACY)


@pytest.fixture(scope="session")
def old_python(legacy) -> Path:
    return legacy / "bin" / "python"


@pytest.fixture(scope="session")
def pylate_python() -> Path:
    return kept(PYLATE) / "bin" / "python"
