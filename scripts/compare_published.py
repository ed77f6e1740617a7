"""Compare scores with published numbers; with --require, fail where they were not reproduced."""

import argparse
import sys

from embedrepro.errors import printable, run_cli
from embedrepro.evaluation import verdicts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scores", nargs="*", default=[], help="scores files, .json")
    parser.add_argument("--published", help="table of published numbers, .tsv")
    parser.add_argument("--output", help="verdicts.tsv to write")
    parser.add_argument(
        "--require",
        metavar="VERDICTS",
        help="an existing verdicts.tsv: exit with status 1 if a comparable number is higher or "
        "lower than published, or none is reproduced",
    )
    args = parser.parse_args()
    if args.require is None and None in (args.published, args.output):
        parser.error("give --published and --output, or --require VERDICTS")
    if args.output:
        verdicts.compare_files(args.scores, args.published, args.output)
    if args.require:
        failures = verdicts.failures(args.require)
        for line in failures:
            print(f"not reproduced: {printable(line, 500)}", file=sys.stderr)
        sys.exit(1 if failures else 0)


if __name__ == "__main__":
    run_cli(main)
