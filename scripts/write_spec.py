"""Write a spec file: python write_spec.py VALUE FILE, VALUE being base64 of deflated JSON."""

import argparse
import base64
import json
import zlib

from embedrepro.errors import run_cli
from embedrepro.files import write_json, write_record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("value", help="JSON, deflated, in base64: no shell reads anything into it")
    parser.add_argument("file", help="the JSON file to write")
    args = parser.parse_args()
    value = json.loads(zlib.decompress(base64.b64decode(args.value)))
    write = write_record if isinstance(value, dict) else write_json
    write(args.file, value)


if __name__ == "__main__":
    run_cli(main)
