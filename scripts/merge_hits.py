"""Merge the hits of all shards of a corpus into one TREC run."""

import argparse

from embedrepro.errors import run_cli
from embedrepro.search.hits import merge_hits
from embedrepro.search.runs import write_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hits", nargs="+", required=True, help="search_shard.py's outputs")
    parser.add_argument("--corpus", required=True, help="corpus.parquet")
    parser.add_argument("--queries", required=True, help="queries.parquet")
    parser.add_argument("--top-k", type=int, required=True)
    parser.add_argument("--tag", required=True, help="last column of the run")
    parser.add_argument(
        "--spare-identical-ids",
        action="store_true",
        help="a document whose id is the query's doesn't count among the k (hits need k + 1)",
    )
    parser.add_argument("--output", required=True, help="run.trec")
    args = parser.parse_args()
    rankings = merge_hits(
        args.hits, args.corpus, args.queries, args.top_k, args.spare_identical_ids
    )
    write_run(args.output, rankings, args.tag)


if __name__ == "__main__":
    run_cli(main)
