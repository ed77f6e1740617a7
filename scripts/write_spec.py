"""Write a spec file: python write_spec.py VALUE FILE, VALUE being JSON in one word."""

import argparse

from embedrepro.argument import unpack
from embedrepro.errors import run_cli
from embedrepro.files import write_json, write_record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("value", help="JSON as `argument.pack` packs it")
    parser.add_argument("file", help="the JSON file to write")
    args = parser.parse_args()
    value = unpack(args.value)
    write = write_record if isinstance(value, dict) else write_json
    write(args.file, value)


if __name__ == "__main__":
    run_cli(main)
