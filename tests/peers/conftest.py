"""Tools to compare with, at the versions whose numbers the unit tests hold, beside the tests.

They are installed without their dependencies (what these modules import is in the environment
already), into a folder of the user's cache, once. No index, no tests: they are skipped and say so.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = ("mteb==2.26.24", "beir==2.2.0", "polars==1.44.0", "polars-runtime-32==1.44.0")
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))


@pytest.fixture(scope="session")
def peers():
    """Put the packages on `sys.path`, last, so that they replace nothing that is installed."""
    folder = CACHE / "embed-repro" / ("peers-" + "-".join(p.split("==")[1] for p in PACKAGES))
    if not (folder / "mteb").exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        done = subprocess.run(
            [*command, "--target", str(folder), *PACKAGES], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"can't install {' '.join(PACKAGES)}: {done.stderr.strip()[-300:]}")
    sys.path.append(str(folder))
    yield folder
    sys.path.remove(str(folder))
