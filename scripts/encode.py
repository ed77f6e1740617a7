"""Encode the pieces of a job, and where the work is little, prove the models and search as well.

One process loads a model once. What is there already is left out, so a killed job goes on where
it stopped; what other jobs of the model haven't begun is made as well.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where Python is told not to

from embedrepro.errors import run_cli
from embedrepro.plan.command_line import read_job


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
    refused = task.prove()
    vectors = [a for a in task.missing("encode") if a.spec["staged"] not in refused]
    for folder in dict.fromkeys(a.spec["staged"] for a in vectors):
        from embedrepro.encode.job import encode_pieces
        from embedrepro.plan.tasks import encode_piece

        staged, options = Path(folder), task.options
        pieces = [encode_piece(a) for a in vectors if a.spec["staged"] == folder]
        others = [encode_piece(a) for a in task.of_others("encode", staged)]
        chosen = options.device, options.tokens_per_batch
        task.attempt(encode_pieces, staged, pieces, *chosen, None, others)
    from embedrepro.plan.tasks import AFTER, DERIVED

    for step, make in DERIVED.items():
        task.each(task.missing(step, ready=True), make)
    # A row whose vectors couldn't be made is left; the others are searched.
    if runs := task.missing("search", ready=True):
        from embedrepro.plan.tasks import search_row
        from embedrepro.search.kinds import search_rows

        task.attempt(search_rows, [search_row(a) for a in runs], task.options.device)
    for artifact in task.missing(*AFTER, ready=True):
        task.attempt(AFTER[artifact.step], artifact, task.options.device)
    if runs := task.missing("refine", ready=True):
        from embedrepro.plan.refining import refine_runs

        refine_runs(task, runs)
    task.finish()


if __name__ == "__main__":
    run_cli(main)
