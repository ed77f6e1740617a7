"""Write results in another tool's format."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where Python is told not to

from embedrepro.errors import run_cli
from embedrepro.evaluation import exports


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    formats = parser.add_subparsers(dest="format", required=True)
    mteb = formats.add_parser("mteb", help="one task's result, for mteb.TaskResult.from_disk")
    mteb.add_argument("--scores", nargs="+", required=True, help="scores files of one model")
    flag = formats.add_parser("flagembedding", help="search results, for its evaluators")
    flag.add_argument("--run", required=True, help="TREC run, six columns")
    for parser_ in (mteb, flag):
        parser_.add_argument("--spec", required=True, help="JSON: names in that format")
        parser_.add_argument("--output", required=True)
    args = parser.parse_args()
    if args.format == "mteb":
        exports.export_mteb(args.scores, args.spec, args.output)
    else:
        exports.export_flagembedding(args.run, args.spec, args.output)


if __name__ == "__main__":
    run_cli(main)
