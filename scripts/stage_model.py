"""Stage a downloaded model: dot-free name, linked weights, every fact stated and proven."""

import argparse
from pathlib import Path

from embedrepro.errors import run_cli
from embedrepro.files import read_json
from embedrepro.models.by_id import register
from embedrepro.models.staging import stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--spec", type=Path, required=True, help="JSON: id, source, facts, registry"
    )
    parser.add_argument("--snapshot", type=Path, required=True, help="folder with manifest.json")
    parser.add_argument("--output", type=Path, required=True, help="folder to write; must be new")
    parser.add_argument("--by-id-root", type=Path, help="where by_id/ and names.tsv are kept")
    arguments = parser.parse_args()
    record = stage(read_json(arguments.spec), arguments.snapshot, arguments.output, prove=True)
    if arguments.by_id_root:
        register(record, arguments.output, arguments.by_id_root)


if __name__ == "__main__":
    run_cli(main)
