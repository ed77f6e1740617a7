"""Take up runs that were made elsewhere: checked and ordered as trec_eval orders them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where Python is told not to

from embedrepro.errors import run_cli
from embedrepro.plan.artifacts import Artifact
from embedrepro.plan.command_line import read_job
from embedrepro.search.imported import import_run


def main() -> None:
    task = read_job(__doc__)

    def make(artifact: Artifact) -> None:
        spec = artifact.spec
        import_run(Path(spec["file"]), spec["top_k"], spec["tag"], Path(artifact.path))
        print(f"run: {artifact.label} from {spec['file']}")

    task.each(task.missing(), make)
    task.finish()


if __name__ == "__main__":
    run_cli(main)
