"""FlagEmbedding's numbers beside ours: a record and a table on the screen."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where Python is told not to

from embedrepro.errors import run_cli
from embedrepro.evaluation import reference
from embedrepro.plan.artifacts import Artifact
from embedrepro.plan.command_line import read_job


def main() -> None:
    task = read_job(__doc__)

    def make(artifact: Artifact) -> None:
        print(reference.table(reference.compare(artifact.spec["rows"], Path(artifact.path))))

    task.each(task.missing(), make)
    task.finish()


if __name__ == "__main__":
    run_cli(main)
