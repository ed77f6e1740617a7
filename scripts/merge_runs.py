"""Merge what was found in the pieces of a corpus, or by the parts of a reranking, into runs."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where Python is told not to

from embedrepro.errors import run_cli
from embedrepro.plan.artifacts import spread
from embedrepro.plan.command_line import read_job


def main() -> None:
    task = read_job(__doc__)
    if merges := task.missing("merge"):
        from embedrepro.plan.tasks import merge_row
        from embedrepro.search.job import merge_rows

        merge_rows([merge_row(a) for a in merges])
    if reranked := task.missing("merge_reranked"):
        from embedrepro.search.rerank import merge_reranked
        from embedrepro.search.runs import write_run

        for artifact in reranked:
            spec = artifact.spec
            write_run(artifact.path, merge_reranked(spread(spec["scores"])), spec["tag"])
    task.finish()


if __name__ == "__main__":
    run_cli(main)
