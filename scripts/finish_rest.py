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
    parser.add_argument("--snakefile", required=True)
    parser.add_argument("--directory", required=True)
    parser.add_argument("--configfile", action="append", default=[])
    parser.add_argument("words", nargs="*", help="how the workflow was started")
    options = parser.parse_args()
    plan = read_plan(options.plan)
    rows = plan.artifacts[plan.report].spec["rows"]
    known = set(json.loads(os.environ.get(WITHOUT, "[]")))
    lost = refused(plan, rows) | known
    left = [row for row in rows if not Path(row["scores"]).exists()]
    if lost == known or len(left) == len(lost - known):
        return
    environment = os.environ | {WITHOUT: json.dumps(sorted(lost))}
    targets = {*TARGETS, *(job.name for job in plan.jobs)}
    command = [*absolute(options, targets), "--", "scores"]
    subprocess.run([sys.executable, "-m", "snakemake", *command], env=environment, check=False)


TARGETS = ("all", "fetch", "plan", "reference", "reproduce", "scores")


def absolute(options: argparse.Namespace, targets: set[str]) -> list[str]:
    """The workflow's own arguments without targets, paths replaced by absolute ones."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-s", "--snakefile")
    parser.add_argument("-d", "--directory")
    parser.add_argument("--configfile", "--configfiles", nargs="+")
    parser.add_argument("--profile")
    words = options.words
    words = words[: words.index("--")] if "--" in words else words
    named, rest = parser.parse_known_args([word for word in words if word not in targets])
    given = ["-s", options.snakefile, "-d", options.directory]
    given += ["--configfile", *options.configfile] if options.configfile else []
    if named.profile:
        inside = Path(options.snakefile).parent / named.profile
        given += ["--profile", str(inside if inside.exists() else named.profile)]
    return [*given, *rest]


if __name__ == "__main__":
    run_cli(main)
