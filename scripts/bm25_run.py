"""Rank a prepared dataset's passages by BM25; write a TREC run."""

import argparse

from embedrepro.errors import run_cli
from embedrepro.files import read_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True, help="a prepared dataset's folder")
    parser.add_argument("--split", required=True)
    parser.add_argument("--spec", required=True, help="JSON: method, k1, b, tokenizer, ...")
    parser.add_argument("--top-k", type=int, required=True)
    parser.add_argument("--tag", required=True, help="last column of the run")
    parser.add_argument("--output", required=True, help="run.trec")
    args = parser.parse_args()

    from embedrepro.search.bm25 import search_bm25
    from embedrepro.search.runs import write_run

    rankings = search_bm25(args.dataset, args.split, read_json(args.spec), args.top_k)
    write_run(args.output, rankings, args.tag)


if __name__ == "__main__":
    run_cli(main)
