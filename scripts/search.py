"""Exact search: runs of rows that one process searches, hits of the pieces of large corpora."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where Python is told not to

from embedrepro.errors import run_cli
from embedrepro.plan.command_line import read_job


def main() -> None:
    task = read_job(__doc__, ("--device", {"choices": ("auto", "cpu", "cuda"), "default": "auto"}))
    from embedrepro.plan.tasks import AFTER, DERIVED, search_piece, search_row
    from embedrepro.search.kinds import search_pieces, search_rows

    device = task.options.device
    task.attempt(search_rows, [search_row(a) for a in task.missing("search")], device)
    task.attempt(search_pieces, [search_piece(a) for a in task.missing("hits")], device)
    for step, make in DERIVED.items():
        task.each(task.missing(step, ready=True), make)
    for artifact in task.missing(*AFTER, ready=True):
        task.attempt(AFTER[artifact.step], artifact, device)
    task.finish()


if __name__ == "__main__":
    run_cli(main)
