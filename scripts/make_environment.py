"""Make environments of other libraries, for models whose own code needs them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where Python is told not to

from embedrepro.errors import run_cli
from embedrepro.plan.artifacts import Artifact
from embedrepro.plan.command_line import read_job
from embedrepro.sources.environments import make_environment


def main() -> None:
    task = read_job(__doc__)

    def make(artifact: Artifact) -> None:
        record = make_environment(Path(artifact.spec["pins"]), Path(artifact.spec["folder"]))
        print(f"{artifact.label}: {len(record['installed'])} packages, python {record['python']}")

    task.each(task.missing(), make)
    task.finish()


if __name__ == "__main__":
    run_cli(main)
