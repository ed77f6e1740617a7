"""Merge all shards of a reranking into one TREC run of the documents that were scored."""

import argparse

from embedrepro.errors import run_cli
from embedrepro.search.rerank import merge_reranked
from embedrepro.search.runs import write_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scores", nargs="+", required=True, help="rerank_shard.py's outputs")
    parser.add_argument("--tag", required=True, help="last column of the run")
    parser.add_argument("--output", required=True, help="run.trec")
    args = parser.parse_args()
    write_run(args.output, merge_reranked(args.scores), args.tag)


if __name__ == "__main__":
    run_cli(main)
