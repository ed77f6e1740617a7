"""The same workflow once more, as the user started it, for a part that the first couldn't plan."""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from .plan import Plan

TARGETS = ("all", "fetch", "plan", "reference", "reproduce", "scores", "why")


def restart_parser(description: str | None) -> argparse.ArgumentParser:
    """What a rule tells a script that starts the workflow again (`restart` in showing.smk)."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--plan", required=True, help="the plan's file, in .embed-repro/")
    parser.add_argument("--snakefile", required=True)
    parser.add_argument("--directory", required=True)
    parser.add_argument("--configfile", action="append", default=[])
    parser.add_argument("words", nargs="*", help="how the workflow was started")
    return parser


def restart(
    plan: Plan, options: argparse.Namespace, target: str, environment: Mapping[str, str]
) -> int:
    """Run `target` with all the user's own arguments; its exit status.

    `environment`: variables besides, by which the second workflow knows what it is for.
    """
    targets = {*TARGETS, *(job.name for job in plan.jobs)}
    command = [*absolute(options, targets), "--", target]
    variables = os.environ | environment
    words = [sys.executable, "-m", "snakemake", *command]
    return subprocess.run(words, env=variables, check=False).returncode


def absolute(options: argparse.Namespace, targets: set[str]) -> list[str]:
    """The workflow's own arguments without targets, paths replaced by absolute ones."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-s", "--snakefile")
    parser.add_argument("-d", "--directory")
    parser.add_argument("--configfile", "--configfiles", nargs="+")
    parser.add_argument("--profile")
    words: Sequence[str] = options.words
    words = words[: words.index("--")] if "--" in words else words
    named, rest = parser.parse_known_args([word for word in words if word not in targets])
    given = ["-s", options.snakefile, "-d", options.directory]
    given += ["--configfile", *options.configfile] if options.configfile else []
    if named.profile:
        inside = Path(options.snakefile).parent / named.profile
        given += ["--profile", str(inside if inside.exists() else named.profile)]
    return [*given, *rest]
