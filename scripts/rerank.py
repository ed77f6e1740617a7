"""Score the top of other rows' runs again with a reranker."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where Python is told not to

from embedrepro.errors import run_cli
from embedrepro.plan.artifacts import Artifact, spread
from embedrepro.plan.command_line import read_job


def main() -> None:
    task = read_job(__doc__, ("--device", {"choices": ("auto", "cpu", "cuda"), "default": "auto"}))
    if task.prove():
        task.finish()

    def score(artifact: Artifact) -> None:
        from embedrepro.encode import pick_device
        from embedrepro.search.rerank import rerank_shard

        spec = artifact.spec
        rerank_shard(
            run=spec["base"],
            corpus=spec["corpus"],
            queries=spec["queries"],
            title=spec["title"],
            staged=spec["staged"],
            spec=dict(spec["options"]),
            shard=(artifact.piece, spec["of"]),
            output=artifact.path,
            device=pick_device(task.options.device),
            address=spec["address"],
        )
        print(f"rerank: {artifact.label}")

    def merge(artifact: Artifact) -> None:
        from embedrepro.search.rerank import merge_reranked
        from embedrepro.search.runs import write_run

        spec = artifact.spec
        write_run(artifact.path, merge_reranked(spread(spec["scores"])), spec["tag"])

    task.each(task.missing("rerank"), score)
    task.each(task.missing("merge_reranked"), merge)
    task.finish()


if __name__ == "__main__":
    run_cli(main)
