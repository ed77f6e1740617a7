"""Test every pair of models on every dataset, split and metric that both were scored on."""

import argparse

from embedrepro.errors import run_cli
from embedrepro.evaluation import significance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--per-query",
        nargs="*",
        default=[],
        help="tables of score_run.py, each as <dataset>/<split>/<model>.per_query.tsv",
    )
    parser.add_argument("--output", required=True, help="comparisons, .json")
    args = parser.parse_args()
    significance.compare_models(args.per_query, args.output)


if __name__ == "__main__":
    run_cli(main)
