"""Print what an experiment has cached and what is to do."""

import argparse

from embedrepro import plan
from embedrepro.errors import run_cli
from embedrepro.files import read_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", required=True, help="JSON: tflops, and steps with their outputs")
    args = parser.parse_args()
    spec = read_json(args.spec)
    print(plan.table(plan.count(spec["steps"]), spec["tflops"]))


if __name__ == "__main__":
    run_cli(main)
