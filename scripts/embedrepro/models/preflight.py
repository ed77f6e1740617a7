"""Prove on CPU, before any GPU hour, that a staged folder computes what its stage.json says.

Newer libraries fail silently: an end token dropped, causal attention turned bidirectional, buffers
left uninitialised. `preflight` finds that out and writes what it found.

A plain native folder is examined in the calling process: the model is loaded once, in float32, into
memory that is poisoned with NaN. A second load in a fresh process, which would pay every import
again, could only tell tensors that nobody wrote from those that hold what the last owner of the
memory left; poisoned, they are found at once. Code of the model's own can do anything (a clock, a
random number), so a fresh process with its own cache proves it, and it is loaded once more here.

What goes beyond the plain layouts (stage.json's `beyond` lists it) is also held against
sentence-transformers itself: the same texts through the staged folder's engine and through
`SentenceTransformer` on the files as they came.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import UserError, printable
from ..files import free_cores, read_json, write_record
from ..startup import import_transformers
from .comparison import compare, compare_m3, compare_many
from .examination import FULL_BYTES, Finding, Prompts, examine, finding, weight_bytes

TIMEOUT = 600  # seconds for one child
# What loading and running a model raises where it can't be done.
LOADING = (OSError, ValueError, ImportError, RuntimeError, TypeError, AttributeError)
LOADED = ("load", "finite", "buffers", "repeat", "weights")  # checks of what loading gave
COMPUTING = ("torch", "transformers", "tokenizers", "sentence-transformers", "numpy")


class FreshProcess:
    """A fresh process that examines a folder with code of its own, started and not waited for.

    It has its own cache of modules and can neither hang nor end this one.
    """

    def __init__(self, staged: Path, record: dict[str, Any], put: Prompts) -> None:
        large = weight_bytes(record) > FULL_BYTES
        self.threads = min(free_cores(), 8) if large else 1
        self.scratch = tempfile.TemporaryDirectory(prefix="preflight-")
        # Loaded under the name that it will have: while staging, its own still has a dot.
        self.view = Path(self.scratch.name) / re.sub(r"^\.tmp-[0-9a-f]+-", "", staged.name)
        self.view.symlink_to(staged)
        self.child = self.start("modules1", "--put", json.dumps(put))

    def start(self, modules: str, *options: str) -> subprocess.Popen[str]:
        return start(self.view, Path(self.scratch.name) / modules, self.threads, *options)


def begin_fresh(staged: Path | str, put: Prompts | None = None) -> FreshProcess | None:
    """Start what `preflight` of a folder with code of its own waits for; None of other folders.

    It takes seconds and one core: other folders can be proved beside it.
    """
    staged = Path(staged).absolute()
    with suppress(UserError, OSError):  # told by `preflight`
        record = read_json(staged / "stage.json")
        if proved_apart(record):
            return FreshProcess(staged, record, put or {})
    return None


def proved_apart(record: dict[str, Any]) -> bool:
    """Whether a folder has code of its own that is run as it is."""
    return bool(record.get("code")) and record.get("kind", "dense") == "dense" and not whole(record)


def whole(record: dict[str, Any]) -> bool:
    """Whether it is sentence-transformers' own modules alone: there is nothing else to probe."""
    return bool(record.get("beyond")) and record["pooling"] == "modules" and not record["modules"]


def preflight(
    staged: Path | str,
    output: Path | str,
    put: Prompts | None = None,
    address: str | None = None,
    fresh: FreshProcess | None = None,
) -> None:
    """Check the staged folder and write the findings to `output`; takes some seconds.

    `put`: the texts that will stand before queries and passages; without it those of stage.json.
    `address`: where a model on a server is now; of others nothing reaches for the network.
    `fresh`: what `begin_fresh` gave, where that was called before. Raises UserError naming the
    first check that failed; then nothing is written. It can run in a process of its own or in one
    that encodes afterwards; there the imports are paid once.
    """
    staged = Path(staged).absolute()
    record = read_json(staged / "stage.json")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    findings = examined(staged, record, put or {}, address, fresh)
    refuse_failed(findings, printable(record["id"]), advice(record))
    versions = {name: installed(name) for name in COMPUTING}
    write_record(output, {"id": record["id"], "findings": findings, "versions": versions})


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def examined(
    staged: Path,
    record: dict[str, Any],
    put: Prompts,
    address: str | None = None,
    fresh: FreshProcess | None = None,
) -> list[Finding]:
    """The findings for a staged folder, in the order of the checks."""
    if "server" in record:
        from .served import examine_server

        return examine_server(record, address or record["address"])
    if record.get("kind") == "reranker":
        from .rerankers import examine_reranker

        return examine_reranker(staged, record)
    if record.get("kind") == "m3":
        return compare_m3(staged, record)
    if record.get("kind", "dense") != "dense":
        return compare_many(staged, record)
    if whole(record):
        return compare(staged, record)
    if record["code"]:
        findings = own_code(fresh or FreshProcess(staged, record, put))
    else:
        findings = native(staged, put)
    if record.get("beyond") and all(row["ok"] for row in findings):
        if find_spec("sentence_transformers"):
            findings += compare(staged, record)
        else:
            detail = "not compared: its environment has no sentence-transformers"
            findings.append(finding("sentence-transformers", True, detail))
    return findings


def native(staged: Path, put: Prompts) -> list[Finding]:
    try:
        return list(examine(staged, put, digest=False)["findings"])
    except LOADING as error:
        return [finding("load", False, f"the model can't be loaded and run: {last_line(error)}")]


def last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def own_code(fresh: FreshProcess) -> list[Finding]:
    """A folder with code of its own: proved in a fresh process, then loaded once more in this one.

    Where the second load gives other bytes, what this process imported or sees may be why, so
    another fresh one is asked.
    """
    with fresh.scratch:
        import_transformers()  # meanwhile: this process needs them as well
        answer = finish(fresh.child)
        if "error" in answer:
            return [finding("load", False, answer["error"])]
        same = answer["digest"] == digest_here(fresh.view, fresh.threads)
        if not same:
            again = finish(fresh.start("modules2", "--digest-only"))
            if "error" in again:
                return [finding("load", False, again["error"])]
            same = answer["digest"] == again["digest"]
    detail = "two processes gave the same bytes"
    if not same:
        detail = "two fresh processes gave different bytes: something is left uninitialised"
    return [*answer["findings"], finding("repeat", same, detail)]


def digest_here(staged: Path, threads: int) -> str:
    """The digest of `examination.examine` from this process, on so many threads; "" if none."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return str(examine(staged, checks=False)["digest"])
    except LOADING:
        return ""
    finally:
        torch.set_num_threads(before)


def advice(record: dict[str, Any]) -> str:
    """What to try where loading failed: code of its own was mostly written for older libraries."""
    if not record.get("code") or int(version("transformers").partition(".")[0]) < 5:
        return ""
    return "; its own code may be for older libraries: set environment: legacy under the model"


def refuse_failed(findings: Sequence[Finding], model_id: str, advice: str = "") -> None:
    """Raise a UserError that names the first failed check; `advice` is for what loading gave."""
    for row in findings:
        if not row["ok"]:
            said = f"preflight check '{row['check']}' failed: {row['detail']}"
            raise UserError(f"{model_id}: {said}{advice if row['check'] in LOADED else ''}")


def start(staged: Path, modules: Path, threads: int, *options: str) -> subprocess.Popen[str]:
    environment = os.environ | {
        "HF_MODULES_CACHE": str(modules),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    environment.pop("PYTHONSAFEPATH", None)
    return subprocess.Popen(
        [sys.executable, "-m", "embedrepro.models.examination", "--staged", str(staged), *options],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )


def finish(child: subprocess.Popen[str]) -> dict[str, Any]:
    """The child's answer, or {"error": its last line}."""
    try:
        out, err = child.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        return {"error": f"no answer within {TIMEOUT} s"}
    lines = out.splitlines()
    if child.returncode == 0 and lines:
        return dict(json.loads(lines[-1]))
    said = [line for line in err.splitlines() if line.strip()]
    last = said[-1] if said else "nothing on stderr"
    return {"error": f"the model can't be loaded and run (exit {child.returncode}): {last}"}
