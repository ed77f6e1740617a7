"""Write a dataset as validated Parquet: python prepare_dataset.py --spec SPEC.json --output DIR"""

import argparse
import os
from pathlib import Path

from embedrepro.datasets.prepare import prepare
from embedrepro.errors import run_cli
from embedrepro.files import read_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", type=Path, required=True, help="JSON: name, source, splits, …")
    parser.add_argument("--output", type=Path, required=True, help="the dataset's folder")
    args = parser.parse_args()
    os.environ.setdefault("USE_TORCH", "NO")  # `datasets` would import torch and never use it
    facts = prepare(read_json(args.spec), args.output)
    print(f"{facts['name']}: {facts['documents']:,} passages")
    for split, counts in facts["splits"].items():
        print(f"  {split}: " + ", ".join(f"{n:,} {what}" for what, n in counts.items()))
    for flaw, count in facts["flaws"].items():
        print(f"  kept as the benchmark has it: {count:,} {flaw}")


if __name__ == "__main__":
    run_cli(main)
