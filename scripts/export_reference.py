"""A split of a prepared dataset as FlagEmbedding's evaluators read it."""

import argparse
from pathlib import Path

from embedrepro.errors import run_cli
from embedrepro.evaluation import reference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", type=Path, required=True, help="folder of a prepared dataset")
    parser.add_argument("--split", required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    args = parser.parse_args()
    reference.export(args.dataset, args.split, args.output)


if __name__ == "__main__":
    run_cli(main)
