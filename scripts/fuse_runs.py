"""Fuse TREC runs of the same queries into one."""

import argparse

from embedrepro.errors import run_cli
from embedrepro.files import read_json
from embedrepro.search.fusion import fuse
from embedrepro.search.runs import write_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", nargs="+", required=True)
    parser.add_argument("--spec", required=True, help="JSON: method, k, normalize, weights")
    parser.add_argument("--top-k", type=int, required=True)
    parser.add_argument("--tag", required=True, help="last column of the run")
    parser.add_argument("--output", required=True, help="run.trec")
    args = parser.parse_args()
    write_run(args.output, fuse(args.runs, read_json(args.spec), args.top_k), args.tag)


if __name__ == "__main__":
    run_cli(main)
