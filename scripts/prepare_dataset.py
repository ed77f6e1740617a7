"""Write datasets as validated Parquet: corpora, queries and judgements."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where Python is told not to

from embedrepro.errors import UserError, run_cli
from embedrepro.plan.artifacts import Artifact
from embedrepro.plan.command_line import read_job


def main() -> None:
    task = read_job(__doc__)
    os.environ.setdefault("USE_TORCH", "NO")  # `datasets` would import torch and never use it
    for corpus, splits in datasets(task.missing()).items():
        task.attempt(make, task.plan.artifacts[corpus], splits)
    task.finish()


def datasets(missing: list[Artifact]) -> dict[str, list[Artifact]]:
    """What is missing, by the path of the corpus: its splits, or none where only it is missing."""
    found: dict[str, list[Artifact]] = {}
    for artifact in missing:
        if artifact.step == "corpus":
            found.setdefault(artifact.path, [])
        else:
            found.setdefault(artifact.inputs[0], []).append(artifact)
    return found


def make(corpus: Artifact, splits: list[Artifact]) -> None:
    """The corpus is read once for all of its splits. Where that finds a mistake in one of several,
    the others are made one by one."""
    try:
        prepare(corpus, splits)
    except UserError:
        for split in splits if len(splits) > 1 else []:
            try:
                prepare(corpus, [split])
            except UserError:
                continue  # told below, or the same as what is
        raise


def prepare(corpus: Artifact, splits: list[Artifact]) -> None:
    from embedrepro.datasets.prepare import CorpusTask, SplitTask, prepare_dataset, summary

    tasks = [SplitTask(split.spec, Path(split.path).parent) for split in splits]
    records = prepare_dataset(CorpusTask(corpus.spec, Path(corpus.path).parent), tasks)
    print("\n".join(summary(records)))


if __name__ == "__main__":
    run_cli(main)
