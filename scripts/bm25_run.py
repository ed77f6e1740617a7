"""Rank datasets' passages by BM25: a TREC run each."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where Python is told not to

from embedrepro.errors import run_cli
from embedrepro.plan.artifacts import Artifact
from embedrepro.plan.command_line import read_job


def main() -> None:
    task = read_job(__doc__)

    def make(artifact: Artifact) -> None:
        from embedrepro.search.bm25 import search_bm25
        from embedrepro.search.runs import write_run

        spec = artifact.spec
        texts = Path(spec["corpus"]), Path(spec["queries"]), spec["title"]
        rankings = search_bm25(*texts, dict(spec["options"]), spec["top_k"])
        write_run(artifact.path, rankings, spec["tag"])
        print(f"bm25: {artifact.label}")

    task.each(task.missing(), make)
    task.finish()


if __name__ == "__main__":
    run_cli(main)
