"""Write an experiment's report into the store: page, Markdown, LaTeX, tables, provenance."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where Python is told not to

from embedrepro.errors import run_cli
from embedrepro.plan.artifacts import Artifact
from embedrepro.plan.command_line import read_job
from embedrepro.report.write import write_report


def main() -> None:
    task = read_job(__doc__)

    def make(artifact: Artifact) -> None:
        write_report(artifact.spec, Path(artifact.path).parent)

    task.each(task.missing(), make)
    task.finish()


if __name__ == "__main__":
    run_cli(main)
