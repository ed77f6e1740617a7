"""Check that no file of a store or of results was damaged: verify_files.py store results"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where Python is told not to

from embedrepro.errors import printable, run_cli
from embedrepro.verify import damage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="+")
    args = parser.parse_args()
    found = [line for folder in args.folder for line in damage(folder)]
    for line in found:
        print(f"error: {printable(line, 2000)}", file=sys.stderr)
    if found:
        sys.exit(1)
    print(f"{', '.join(map(str, args.folder))}: every file is as it was written")


if __name__ == "__main__":
    run_cli(main)
