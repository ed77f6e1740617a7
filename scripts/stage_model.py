"""Stage downloaded models: dot-free names, linked weights, every fact stated with its source."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where Python is told not to

from embedrepro.errors import run_cli
from embedrepro.models.by_id import register
from embedrepro.models.staging import stage
from embedrepro.plan.artifacts import Artifact
from embedrepro.plan.command_line import read_job


def main() -> None:
    task = read_job(__doc__)

    def make(artifact: Artifact) -> None:
        spec, folder = artifact.spec, Path(artifact.spec["folder"])
        record = stage(dict(spec), Path(spec["snapshot"]), folder)
        register(record, folder, Path(task.plan.store) / "models")
        how = record.get("engine") or record["kind"]
        print(f"stage: {record['id']} as {folder.name}, {how}")

    task.each(task.missing(), make)
    task.finish()


if __name__ == "__main__":
    run_cli(main)
