"""Fuse other rows' runs into one."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where Python is told not to

from embedrepro.errors import run_cli
from embedrepro.plan.artifacts import Artifact
from embedrepro.plan.command_line import read_job
from embedrepro.search.fusion import fuse
from embedrepro.search.runs import write_run


def main() -> None:
    task = read_job(__doc__)

    def make(artifact: Artifact) -> None:
        spec = artifact.spec
        rankings = fuse(spec["runs"], dict(spec["options"]), spec["top_k"])
        write_run(artifact.path, rankings, spec["tag"])
        print(f"fuse: {artifact.label}")

    task.each(task.missing(), make)
    task.finish()


if __name__ == "__main__":
    run_cli(main)
