"""Print what is cached, what is to do, bytes to download and hours on one device."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where Python is told not to

from embedrepro.errors import run_cli
from embedrepro.plan.plan import read_plan
from embedrepro.plan.show import overview


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", required=True, help="the plan's file, in .embed-repro/")
    print(overview(read_plan(parser.parse_args().plan)))


if __name__ == "__main__":
    run_cli(main)
