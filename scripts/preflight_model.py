"""Prove that staged models compute what their stage.json says, before they cost GPU time."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where Python is told not to

from embedrepro.errors import run_cli
from embedrepro.plan.artifacts import Artifact
from embedrepro.plan.command_line import prove_model, read_job


def main() -> None:
    task = read_job(__doc__)

    def make(artifact: Artifact) -> None:
        prove_model(artifact)
        print(f"preflight: {artifact.label}")

    task.each(task.missing(), make)
    task.finish()


if __name__ == "__main__":
    run_cli(main)
