"""After a run in which something could not be made: make what that held up.

A job makes a list, so what one mistake stops may hold up others. They are made by the same command
once more, without the rows that can't be.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where Python is told not to

from embedrepro.errors import run_cli
from embedrepro.plan.build import WITHOUT
from embedrepro.plan.plan import read_plan
from embedrepro.plan.show import refused


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", required=True, help="the plan's file, in .embed-repro/")
    parser.add_argument("--start", required=True, help="folder in which the workflow was started")
    parser.add_argument("command", nargs="+", help="how the workflow was started, without target")
    options = parser.parse_args()
    plan = read_plan(options.plan)
    rows = plan.artifacts[plan.report].spec["rows"]
    known = set(json.loads(os.environ.get(WITHOUT, "[]")))
    lost = refused(plan, rows) | known
    left = [row for row in rows if not Path(row["scores"]).exists()]
    if lost == known or len(left) == len(lost):
        return
    environment = os.environ | {WITHOUT: json.dumps(sorted(lost))}
    command = [*options.command, "--", "scores"]
    run = [sys.executable, "-m", "snakemake", *command]
    subprocess.run(run, cwd=options.start, env=environment, check=False)


if __name__ == "__main__":
    run_cli(main)
