"""The registry's generated files are what their scripts make of mteb's metadata."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
REGISTRY = ROOT / "rules" / "registry"


@pytest.mark.parametrize(
    ("script", "made"),
    [
        ("mteb_tasks.py", "mteb_tasks.json"),
        ("mteb_prompts.py", "prompts.json"),
        ("mteb_models.py", "models.json"),
    ],
)
def test_made_anew_it_is_the_same(peers, tmp_path, script, made):
    output = tmp_path / made
    path = os.pathsep.join(filter(None, [str(peers), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "registry" / script, output],
        env=os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert output.read_bytes() == (REGISTRY / made).read_bytes()
