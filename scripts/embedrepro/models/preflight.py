"""Prove on CPU, before any GPU hour, that a staged folder computes what its stage.json says.

Newer libraries fail silently: an end token dropped, causal attention turned bidirectional, buffers
left uninitialised. `preflight` loads the folder twice, in fresh child processes without network and
with a cache of their own for custom code, and returns one finding for each check.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ..errors import UserError
from .examination import FULL_BYTES, Finding, finding, weight_bytes
from .facts import json_object

TIMEOUT = 600  # seconds for one child


def preflight(staged: Path) -> list[Finding]:
    """The findings for a staged folder, in the order of the checks; takes some seconds.

    The two children run side by side; for a large model, which fills some GB, one after the other.
    """
    staged = Path(staged).absolute()
    large = weight_bytes(json_object(staged / "stage.json")) > FULL_BYTES
    with tempfile.TemporaryDirectory(prefix="preflight-") as scratch:
        # Loaded under the name that it will have: while staging, its own still has a dot.
        view = Path(scratch) / re.sub(r"^\.tmp-[0-9a-f]+-", "", staged.name)
        view.symlink_to(staged)
        jobs = [
            (view, Path(scratch) / "modules1", large),
            (view, Path(scratch) / "modules2", large),
        ]
        if large:
            answers = [finish(start(*jobs[0])), finish(start(*jobs[1], "--digest-only"))]
        else:
            children = [start(*jobs[0]), start(*jobs[1], "--digest-only")]
            answers = [finish(child) for child in children]
    for answer in answers:
        if "error" in answer:
            return [finding("load", False, answer["error"])]
    first, second = answers
    same = first["digest"] == second["digest"]
    detail = "two fresh processes gave the same bytes"
    if not same:
        detail = "two fresh processes gave different bytes: something is left uninitialised"
    return [*first["findings"], finding("repeat", same, detail)]


def refuse_failed(findings: list[Finding], model_id: str) -> None:
    """Raise a UserError that names the first failed check."""
    for row in findings:
        if not row["ok"]:
            raise UserError(f"{model_id}: preflight check '{row['check']}' failed: {row['detail']}")


def start(staged: Path, modules: Path, large: bool, *options: str) -> subprocess.Popen:
    environment = os.environ | {
        "HF_MODULES_CACHE": str(modules),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": str(min(os.cpu_count() or 1, 8) if large else 1),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "embedrepro.models.examination", "--staged", str(staged), *options],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )


def finish(child: subprocess.Popen) -> dict[str, Any]:
    """The child's answer, or {"error": its last line}."""
    try:
        out, err = child.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        return {"error": f"no answer within {TIMEOUT} s"}
    lines = out.splitlines()
    if child.returncode == 0 and lines:
        return json.loads(lines[-1])
    said = [line for line in err.splitlines() if line.strip()]
    last = said[-1] if said else "nothing on stderr"
    return {"error": f"the model can't be loaded and run (exit {child.returncode}): {last}"}
