"""Build the demonstration model (custom code, a dot in its name) from a seed."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where Python is told not to

from embedrepro.errors import run_cli
from embedrepro.sources.demo_model import build


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder to write; must be new")
    arguments = parser.parse_args()
    build(arguments.output, arguments.seed)


if __name__ == "__main__":
    run_cli(main)
