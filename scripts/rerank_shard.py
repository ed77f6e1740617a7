"""Score the top of a run again with a reranker, for one shard of the run's queries."""

import argparse

from embedrepro.errors import run_cli
from embedrepro.files import read_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True, help="a TREC run")
    parser.add_argument("--dataset", required=True, help="the prepared dataset's folder")
    parser.add_argument("--split", required=True)
    parser.add_argument("--staged", required=True, help="folder of the reranker")
    parser.add_argument("--spec", required=True, help="JSON: engine, depth, max_length, ...")
    parser.add_argument("--shard", type=int, default=0, help="from 0")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--output", required=True, help="scores, .parquet")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    args = parser.parse_args()

    from embedrepro.encode import pick_device
    from embedrepro.search.rerank import rerank_shard

    rerank_shard(
        args.run,
        args.dataset,
        args.split,
        args.staged,
        read_json(args.spec),
        (args.shard, args.shards),
        args.output,
        pick_device(args.device),
    )


if __name__ == "__main__":
    run_cli(main)
