"""Search corpora that are stored in a fast precision, and make the first ranks those of float32."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where Python is told not to

from embedrepro.errors import run_cli
from embedrepro.plan.command_line import read_job


def main() -> None:
    task = read_job(__doc__, ("--device", {"choices": ("auto", "cpu", "cuda"), "default": "auto"}))
    if runs := task.missing("refine"):
        from embedrepro.plan.refining import refine_runs

        refine_runs(task, runs)
    task.finish()


if __name__ == "__main__":
    run_cli(main)
