"""Write datasets as validated Parquet: corpora, queries and judgements."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where Python is told not to

from embedrepro.errors import run_cli
from embedrepro.plan.artifacts import Artifact
from embedrepro.plan.command_line import read_job


def main() -> None:
    task = read_job(__doc__)
    os.environ.setdefault("USE_TORCH", "NO")  # `datasets` would import torch and never use it
    from embedrepro.datasets.prepare import prepare_corpus, prepare_split

    def make(artifact: Artifact) -> None:
        spec, folder = dict(artifact.spec), Path(artifact.path).parent
        if artifact.step == "corpus":
            facts = prepare_corpus(spec, folder)
            print(f"prepare: {artifact.label}, {facts['documents']:,} passages")
        else:
            facts = prepare_split(spec, folder.parent, folder)
            print(
                f"prepare: {artifact.label}, {facts['queries']:,} queries, "
                f"{facts['qrels']:,} judgements"
            )
        for flaw, count in facts["flaws"].items():
            print(f"  kept as the benchmark has it: {count:,} {flaw}")

    task.each(task.missing(), make)
    task.finish()


if __name__ == "__main__":
    run_cli(main)
