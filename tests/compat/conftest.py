"""The historic stack, built once: the last versions that ran gte-Qwen2's own code."""

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest
from embedrepro.files import digest
from minilm import CACHE

PINS = [
    "torch==2.13.0",
    "transformers==4.51.3",
    "numpy==2.2.6",
    "pandas==2.2.3",
    "peft==0.15.2",
    "accelerate==1.6.0",
    "datasets==3.5.0",
    "sentencepiece==0.2.0",
    "faiss-cpu==1.15.1",
    "pytrec-eval-terrier==0.5.11",
]
# Its metadata asks for more than its embedders import.
ALONE = ["FlagEmbedding==1.3.5"]


@pytest.fixture(scope="session")
def old_python() -> Path:
    """Python of the old environment; kept between sessions, built anew when a pin changes."""
    key = digest([PINS, ALONE, sys.version_info[:2]])
    folder = CACHE / f"old-env-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    python, stamp = folder / "bin" / "python", folder / "complete"
    with open(CACHE / f"old-env-{key}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # pytest's workers build it once
        if not stamp.exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
            pip = [python, "-m", "pip", "install", "--quiet"]
            for packages in (PINS, ["--no-deps", *ALONE]):
                done = subprocess.run([*pip, *packages], capture_output=True, text=True)
                if done.returncode:
                    pytest.skip(f"the old environment can't be had: {done.stderr[-300:]}")
            stamp.touch()
    return python
