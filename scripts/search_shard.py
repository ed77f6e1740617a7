"""Exact search of one shard: the top k documents of each query, as Parquet."""

import argparse

from embedrepro.errors import run_cli
from embedrepro.search.exact import search_shard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", required=True, help="query embeddings, .npy with sidecar")
    parser.add_argument("--corpus", required=True, help="the shard's embeddings, .npy with sidecar")
    parser.add_argument("--ids", required=True, help="corpus.parquet: document ids break ties")
    parser.add_argument("--top-k", type=int, required=True)
    parser.add_argument("--output", required=True, help="hits, .parquet")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    args = parser.parse_args()
    search_shard(args.queries, args.corpus, args.ids, args.top_k, args.output, args.device)


if __name__ == "__main__":
    run_cli(main)
