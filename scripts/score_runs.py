"""Score a model's runs: every metric, per query and mean with intervals, under each protocol."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where Python is told not to

from embedrepro.errors import run_cli
from embedrepro.plan.artifacts import Artifact
from embedrepro.plan.command_line import read_job


def main() -> None:
    task = read_job(__doc__)
    from embedrepro.evaluation.scoring import score_row
    from embedrepro.plan import tasks

    def make(artifact: Artifact) -> None:
        score_row(tasks.score_row(artifact))

    task.each(task.missing(), make)
    print(f"score: {task.label}, {len(task.artifacts)} rows")
    task.finish()


if __name__ == "__main__":
    run_cli(main)
