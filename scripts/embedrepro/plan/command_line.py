"""What the command lines of all steps share: `--plan FILE --job NAME`, and working through a list."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ..errors import UserError, printable
from .artifacts import Artifact
from .plan import Plan, read_plan


def read_job(description: str, *options: tuple[str, dict[str, object]]) -> "Task":
    """Parse the command line of a step. `options`: further arguments, as argparse takes them."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--plan", required=True, help="the plan's file, in .embed-repro/")
    parser.add_argument("--job", required=True, help="name of one of the plan's jobs")
    parser.add_argument(
        "--directory", help="where the plan's paths start (default: the working directory)"
    )
    for name, settings in options:
        parser.add_argument(name, **settings)  # type: ignore[arg-type]
    arguments = parser.parse_args()
    plan = read_plan(arguments.plan)
    if arguments.directory:
        os.chdir(arguments.directory)
    return Task(plan, plan.of_job(arguments.job), plan.job(arguments.job).label, arguments)


class Task:
    """One job's artifacts, and those of them that are still to be made."""

    def __init__(
        self, plan: Plan, artifacts: Sequence[Artifact], label: str, options: argparse.Namespace
    ) -> None:
        self.plan, self.artifacts, self.label, self.options = plan, artifacts, label, options

    def missing(self, *steps: str) -> list[Artifact]:
        """Artifacts of these steps (all by default) that aren't there, in the plan's order."""
        return [a for a in self.artifacts if (not steps or a.step in steps) and not is_there(a)]

    def each(self, artifacts: Iterable[Artifact], make: Callable[[Artifact], object]) -> None:
        """Make one after the other. What can't be made is told and keeps none of the others from
        being made; then the process ends with status 2."""
        failed = False
        for artifact in artifacts:
            try:
                make(artifact)
            except UserError as error:
                print(f"error: {printable(error, 2000)}", file=sys.stderr, flush=True)
                failed = True
        if failed:
            sys.exit(2)


def is_there(artifact: Artifact) -> bool:
    """Every file is renamed when it is whole, so what is there is whole."""
    return all(Path(path).exists() for path in artifact.outputs)
