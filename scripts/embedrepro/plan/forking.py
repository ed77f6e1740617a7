"""The process that jobs are forked from: what it imports, how it starts."""

import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from .artifacts import Artifact

# The longest first. What touches a device may not be here: a fork can't use it again.
MODULES = (
    "torch",
    "transformers",
    "embedrepro.encode.packed",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "embedrepro.encode.job",
    "embedrepro.models.examination",
    "embedrepro.models.preflight",
    "embedrepro.plan.refining",
    "embedrepro.search.kinds",
    "embedrepro.plan.tasks",
    "embedrepro.evaluation.scoring",
    "embedrepro.report.write",
)
COMPILER = "embedrepro.encode.compiling"
THREADS = ("OMP_NUM", "GOTO_NUM", "OPENBLAS_NUM", "MKL_NUM", "VECLIB_MAXIMUM", "NUMEXPR_NUM")


def forkserver_path() -> str:
    """A new name for a forkserver's socket."""
    return f"{tempfile.gettempdir()}/embedrepro-{secrets.token_hex(8)}.socket"


def modules_for(artifacts: Iterable[Artifact]) -> tuple[str, ...]:
    """What is imported for jobs that make these."""
    compiled = any(artifact.spec.get("compiled") for artifact in artifacts)
    return (*MODULES, COMPILER) if compiled else MODULES


def start_forkserver(
    path: str, threads: int, modules: Sequence[str] = MODULES
) -> subprocess.Popen[bytes] | None:
    """Start `forkserver.py`, which ends with this process; None where it can't be had.

    Then `forked.py` does without. `threads`: of the jobs that will ask, as Snakemake tells them.
    """
    if not hasattr(os, "pidfd_open"):
        return None
    program = Path(__file__).parents[2] / "forkserver.py"
    counts = {f"{name}_THREADS": str(threads) for name in THREADS}
    with suppress(OSError), socket.socket(socket.AF_UNIX) as listener:
        before = os.umask(0o077)
        try:
            listener.bind(path)
        finally:
            os.umask(before)
        listener.listen(64)
        number = listener.fileno()
        return subprocess.Popen(
            [sys.executable, str(program), str(number), *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[number],
            env=os.environ | counts,
        )
    return None
