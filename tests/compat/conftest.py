"""The historic stack, built once: the last versions that ran gte-Qwen2's own code."""

import fcntl
from pathlib import Path

import pytest
from embedrepro.errors import UserError
from embedrepro.plan.keys import key_of
from embedrepro.sources.environments import make_environment, pins_digest
from helpers import REPOSITORY
from minilm import CACHE

PINS = REPOSITORY / "envs" / "legacy.txt"


@pytest.fixture(scope="session")
def legacy() -> Path:
    """The environment `legacy`, kept between sessions under the name that a store gives it."""
    key = key_of("environment", pins_digest(PINS.parent, PINS.stem))
    folder = CACHE / "environments" / f"{PINS.stem}-{key}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "environments.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # pytest's workers build it once
        if not (folder / "environment.json").exists():
            try:
                make_environment(PINS, folder)
            except UserError as error:
                pytest.skip(str(error))
    return folder


@pytest.fixture(scope="session")
def old_python(legacy) -> Path:
    return legacy / "bin" / "python"
