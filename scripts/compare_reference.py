"""FlagEmbedding's numbers beside ours: parity.json and a table.

spec.json: a list of {"model_id", "model", "dataset", "split", "ignore_identical_ids", "reference",
"run", "folder"}, the last three paths.
"""

import argparse
from pathlib import Path

from embedrepro.errors import run_cli
from embedrepro.evaluation import reference
from embedrepro.files import read_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", type=Path, required=True, help="JSON, see above")
    parser.add_argument("--output", type=Path, required=True, help="parity.json to write")
    args = parser.parse_args()
    print(reference.table(reference.compare(read_json(args.spec), args.output)))


if __name__ == "__main__":
    run_cli(main)
