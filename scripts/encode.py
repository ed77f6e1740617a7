"""Encode the pieces of a job, and where the work is little, prove the model and search as well.

One process loads the model once. What is there already is left out, so a killed job goes on where
it stopped.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where Python is told not to

from embedrepro.errors import run_cli
from embedrepro.plan.artifacts import Artifact
from embedrepro.plan.command_line import Task, read_job


def main() -> None:
    task = read_job(
        __doc__,
        ("--device", {"choices": ("auto", "cpu", "cuda"), "default": "auto"}),
        ("--tokens-per-batch", {"type": int, "help": "default: chosen by itself"}),
    )
    # Read by torch when it is imported; a cluster may prefer its nodes' own disks.
    compiled = Path(task.plan.store).absolute() / "compiler"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(compiled / "inductor"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(compiled / "triton"))
    task.each(task.missing("preflight"), prove)
    encode(task)
    runs = task.missing("search")
    if runs:
        from embedrepro.search.job import search_rows

        search_rows([row_of(run) for run in runs], device=task.options.device)


def prove(artifact: Artifact) -> None:
    from embedrepro.models.preflight import preflight

    preflight(Path(artifact.spec["staged"]), Path(artifact.path))


def encode(task: Task) -> None:
    from embedrepro.encode.job import Piece, encode_pieces

    missing = task.missing("encode")
    if not missing:
        return
    pieces = [
        Piece(
            texts=Path(a.spec["texts"]),
            role=a.spec["role"],
            shard=a.piece,
            of=a.spec["of"],
            output=Path(a.path),
            dtype=a.spec["dtype"],
            compiled=a.spec["compiled"],
            prompt=a.spec["prompt"],
            instruction=a.spec["instruction"],
            title=a.spec["title"],
        )
        for a in missing
    ]
    options = task.options
    encode_pieces(Path(missing[0].spec["staged"]), pieces, options.device, options.tokens_per_batch)


if __name__ == "__main__":
    run_cli(main)
