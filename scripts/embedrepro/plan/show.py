"""What a plan still has to do, and why a row couldn't be made: the plan held against the store."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .artifacts import Artifact, row_name
from .jobs import Job
from .plan import Plan

LOGS = Path("logs")
PART = re.compile(r", part \d+ of \d+$")


@dataclass
class Work:
    """What is left of some jobs: artifacts `cached` and to do, bytes and seconds of one device."""

    jobs: int = 0
    cached: int = 0
    missing: int = 0
    download: float = 0.0
    seconds: float = 0.0

    def add(self, artifacts: Sequence[Artifact]) -> None:
        """Count one more job."""
        missing = [a for a in artifacts if not Path(a.path).exists()]
        self.jobs += bool(missing)
        self.cached += len(artifacts) - len(missing)
        self.missing += len(missing)
        self.download += sum(a.download for a in missing)
        self.seconds += sum(a.seconds for a in missing)


def overview(plan: Plan) -> str:
    """A line for each job: how much of it is cached, what it downloads, how long it takes.

    The parts of a large corpus share a line.
    """
    total, lines = Work(), dict[tuple[str, str], Work]()
    for job in plan.jobs:
        if job.rule in ("reference", "parity", "report_with_reference"):
            continue
        for work in (total, lines.setdefault((job.rule, PART.sub("", job.label)), Work())):
            work.add(plan.of_job(job.name))
    return "\n".join(
        [
            f"{'step':<10} {'jobs':>5} {'cached':>7} {'to do':>6} {'download':>10} "
            f"{'device time':>12}  what",
            *(
                f"{rule:<10} {work.jobs:>5,} {work.cached:>7,} {work.missing:>6,} "
                f"{bytes_text(work.download):>10} {time_text(work.seconds):>12}  {label}"
                for (rule, label), work in lines.items()
            ),
            "",
            *other_versions(plan),
            f"{total.jobs:,} jobs to run, {bytes_text(total.download)} to download, "
            f"{time_text(total.seconds)} on one device",
        ]
    )


def other_versions(plan: Plan) -> Iterator[str]:
    """A line where stored vectors were made by other versions than the installed ones."""
    from importlib import metadata

    from ..files import read_json

    seen: set[str] = set()
    for artifact in plan.artifacts.values():
        sidecar = Path(artifact.beside[0]) if artifact.step == "encode" else None
        if sidecar is None or not sidecar.exists():
            continue
        if plan.by_name[plan.makers[artifact.path]].python:
            continue  # an environment of its own has its own versions
        for name, version in read_json(sidecar).get("versions", {}).items():
            installed = metadata.version(name)
            line = f"note: vectors of {artifact.label} were made by {name} {version}, "
            line += f"{installed} is installed"
            if version != installed and line not in seen:
                seen.add(line)
                yield line


def holes(plan: Plan, rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The rows of a report's spec whose scores are not there, each with the reason."""
    return [
        {k: row[k] for k in ("model", "dataset", "split")} | {"reason": reason(plan, row["scores"])}
        for row in rows
        if not Path(row["scores"]).exists()
    ]


def refused(plan: Plan, rows: list[dict[str, str]]) -> set[str]:
    """Names of the rows that can't be made for a mistake which a job has told.

    A job that was killed, or never ran, refuses nothing.
    """
    found = set()
    for row in rows:
        if Path(row["scores"]).exists():
            continue
        artifact = first_missing(plan, plan.artifacts[row["scores"]])
        if error_of(job_of(plan, artifact), told=True):
            found.add(row_name(row["model"], row["dataset"], row["split"]))
    return found


def job_of(plan: Plan, artifact: Artifact) -> Job:
    return next(job for job in plan.jobs if artifact.path in job.artifacts)


def reason(plan: Plan, path: str) -> str:
    """Why an artifact isn't there: the error of the job that should have come first."""
    artifact = first_missing(plan, plan.artifacts[path])
    job = job_of(plan, artifact)
    return error_of(job) or f"{job.rule} was not done; run again"


def first_missing(plan: Plan, artifact: Artifact) -> Artifact:
    for path in artifact.needs:
        source = plan.artifacts.get(path)
        if source and not Path(path).exists():
            return first_missing(plan, source)
    return artifact


def error_of(job: Job, told: bool = False) -> str:
    """The last error that a job's log holds, or a crash's last line; `told`: only one in words."""
    log = LOGS / job.rule / f"{job.name}.log"
    if not log.is_file():
        return ""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if not errors and not told and any(line.startswith("Traceback") for line in lines):
        errors = [line for line in lines if line.strip()]
    return errors[-1] if errors else ""


def bytes_text(count: float) -> str:
    if not count:
        return "-"
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def time_text(seconds: float) -> str:
    if not seconds:
        return "-"
    if seconds < 120:
        return f"{max(1, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
