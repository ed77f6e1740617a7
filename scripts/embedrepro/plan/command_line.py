"""What the command lines of all steps share: `--plan FILE --job NAME`, and a list to work off."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..datasets.local import local_kind
from ..errors import UserError, printable
from ..startup import without_pandas
from .artifacts import Artifact
from .jobs import TABLELESS, Job
from .plan import Plan, read_plan

if TYPE_CHECKING:
    from ..models.preflight import FreshProcess


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
    return Task(plan, plan.job(arguments.job), arguments)


class Task:
    """One job's artifacts, and those of them that are still to be made."""

    def __init__(self, plan: Plan, job: Job, options: argparse.Namespace) -> None:
        self.plan, self.artifacts, self.options = plan, plan.of_job(job.name), options
        self.label = job.label
        if not job.gpu and getattr(options, "device", None) == "auto":
            options.device = "cpu"  # it asked for no GPU, so those that it sees are others'
        self.failed = False
        missing = self.missing()
        if missing and job.rule not in TABLELESS and not any(map(is_remote, missing)):
            without_pandas()

    def missing(self, *steps: str, ready: bool = False) -> list[Artifact]:
        """Artifacts of these steps (all by default) that aren't there, in the plan's order.

        `ready`: only those whose inputs are there.
        """
        return [
            a
            for a in self.artifacts
            if (not steps or a.step in steps)
            and not is_there(a)
            and not (ready and any(not Path(path).exists() for path in a.needs))
        ]

    def of_others(self, step: str, staged: Path) -> list[Artifact]:
        """Artifacts of the same step and model that other jobs make, the last to begin first."""
        mine = {artifact.path for artifact in self.artifacts}
        jobs = (job for job in reversed(self.plan.jobs) if job.rule == step)
        all_of_them = (self.plan.artifacts[p] for job in jobs for p in reversed(job.artifacts))
        return [
            a
            for a in all_of_them
            if a.step == step and a.path not in mine and Path(a.spec["staged"]) == staged
        ]

    def each(self, artifacts: Iterable[Artifact], make: Callable[[Artifact], object]) -> None:
        """Make one after the other."""
        for artifact in artifacts:
            self.attempt(make, artifact)

    def attempt(self, make: Callable[..., object], *arguments: object) -> None:
        """Call `make`; what can't be made is told, and keeps nothing else from being made."""
        try:
            make(*arguments)
        except UserError as error:
            print(f"error: {printable(error, 2000)}", file=sys.stderr, flush=True)
            self.failed = True

    def prove(self) -> set[str]:
        """Make the job's missing preflights; the staged folders that fail are not to be run."""
        missing = self.missing("preflight")
        fresh = {a.path: begin_proof(a) for a in missing}  # beside the others' proofs
        self.each(missing, lambda a: prove_model(a, fresh[a.path]))
        return {a.spec["staged"] for a in missing if not is_there(a)}

    def finish(self) -> None:
        """End the process with status 2 where something could not be made."""
        if self.failed:
            sys.exit(2)


def is_remote(artifact: Artifact) -> bool:
    """Whether some of it is a dataset from elsewhere than a local folder, which is read by
    libraries that have uses for pandas."""
    theirs = artifact.spec.get("theirs")
    sources = [artifact.spec.get("source"), theirs["source"] if isinstance(theirs, dict) else None]
    return any(source is not None and not local_kind(source) for source in sources)


def begin_proof(artifact: Artifact) -> "FreshProcess | None":
    """Start what of a preflight can run in a process of its own."""
    from ..models.preflight import begin_fresh

    return begin_fresh(artifact.spec["staged"], artifact.spec["put"])


def prove_model(artifact: Artifact, fresh: "FreshProcess | None" = None) -> None:
    """Make a preflight; `fresh`: what `begin_proof` gave."""
    from ..models.preflight import preflight

    spec = artifact.spec
    preflight(Path(spec["staged"]), Path(artifact.path), spec["put"], spec["address"], fresh)


def is_there(artifact: Artifact) -> bool:
    """Every file is renamed when it is whole, so what is there is whole."""
    return all(Path(path).exists() for path in artifact.outputs)
