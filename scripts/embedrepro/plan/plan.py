"""The plan itself: built once, written to one file named by its digest, read by every job."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import damaged, write_text
from .artifacts import Artifact, spread
from .jobs import Job

PLAIN = ("experiment", "store", "results", "report", "report_with_reference", "repeat", "config")


@dataclass(frozen=True)
class Plan:
    """Everything that an experiment consists of."""

    experiment: str
    store: str
    results: str
    artifacts: Mapping[str, Artifact]
    jobs: tuple[Job, ...]
    report: str  # path of the report's record
    report_with_reference: str | None  # the same with FlagEmbedding's own numbers beside ours
    repeat: str  # the command that repeats the experiment
    config: Mapping[str, Any] = field(default_factory=dict)  # what it was compiled from

    def job(self, name: str) -> Job:
        for job in self.jobs:
            if job.name == name:
                return job
        raise UserError(
            f"the plan has no job '{name}'; it has {', '.join(j.name for j in self.jobs)}"
        )

    def of_job(self, name: str) -> list[Artifact]:
        return [self.artifacts[path] for path in self.job(name).artifacts]

    def wanted(self, job: Job, everything: bool = False) -> list[str]:
        """The outputs of a job that Snakemake is told of: a missing file of the last of its
        artifacts that isn't there stands for all. `everything`: all, where they are carried.

        A path holds its key, so what is there is right, whatever its age and whoever made it.
        """
        if everything:
            return [f for path in job.artifacts for f in self.artifacts[path].outputs]
        left = (self.artifacts[path] for path in reversed(job.artifacts))
        last = next((artifact for artifact in left if not is_made(artifact)), None)
        # A sidecar, where there is one: Snakemake copies what appears before a job begins.
        return [next(f for f in reversed(last.outputs) if not _exist((f,)))] if last else []

    def awaited(self, job: Job, everything: bool = False) -> list[str]:
        """The outputs of other jobs that a job has to wait for."""
        if everything:
            return [path for pattern in job.inputs for path in spread(pattern)]
        needed = (path for pattern in job.inputs for path in spread(pattern))
        return self.missing_of(needed, but=job.name)

    def shown(self, report: str) -> list[str]:
        """What has to be made before a report can be shown: it, and the files of its rows."""
        rows = self.artifacts[report].spec["rows"]
        return self.missing_of([report, *(row[part] for row in rows for part in ("run", "scores"))])

    def missing_of(self, paths: Iterable[str], but: str = "") -> list[str]:
        """What is `wanted` of all jobs, `but` one, that make what is missing of some artifacts."""
        missing = (path for path in paths if not is_made(self.artifacts[path]))
        makers = dict.fromkeys(self.makers[path] for path in missing)
        return [out for maker in makers if maker != but for out in self.wanted(self.job(maker))]

    def of_rules(self, *rules: str) -> list[str]:
        """What is `wanted` of all jobs of some rules."""
        return [out for job in self.jobs if job.rule in rules for out in self.wanted(job)]

    @cached_property
    def makers(self) -> dict[str, str]:
        """The job that makes each artifact."""
        return {path: job.name for job in self.jobs for path in job.artifacts}

    @cached_property
    def by_name(self) -> dict[str, Job]:
        return {job.name: job for job in self.jobs}

    def to_json(self) -> dict[str, Any]:
        """Specs that several artifacts share stand in it once."""
        specs: dict[int, Any] = {}
        rows = []
        for a in self.artifacts.values():
            specs.setdefault(id(a.spec), (len(specs), a.spec))
            number = specs[id(a.spec)][0]
            lists = a.inputs, a.beside
            estimates = a.seconds, a.download
            rows.append([a.step, a.path, number, *lists, a.piece, a.label, *estimates])
        rest = {f: getattr(self, f) for f in PLAIN}
        return rest | {
            "specs": [spec for _, spec in specs.values()],
            "artifacts": rows,
            "jobs": [vars(job) for job in self.jobs],
        }


def is_made(artifact: Artifact) -> bool:
    """Whether an artifact is there; asked once in the life of a process that only plans."""
    return _exist(artifact.outputs)


@cache
def _exist(paths: tuple[str, ...]) -> bool:
    return all(Path(path).exists() for path in paths)


def read_plan(path: Path | str) -> Plan:
    """The plan in a file that `write_plan` wrote; one that was edited is refused."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{path}: can't be read ({error.strerror}); `make plan` writes it"
        ) from None
    if name_of(text) != Path(path).stem.rpartition("-")[2]:
        raise damaged(path, "not the plan that was written")
    value = json.loads(text)
    specs = value.pop("specs")
    artifacts = {}
    for step, name, number, inputs, beside, *rest in value.pop("artifacts"):
        made = Artifact(step, name, specs[number], tuple(inputs), tuple(beside), *rest)
        artifacts[name] = made
    jobs = []
    for row in value.pop("jobs"):
        lists = {"inputs": tuple(row["inputs"]), "artifacts": tuple(row["artifacts"])}
        jobs.append(Job(**row | lists))
    return Plan(artifacts=artifacts, jobs=tuple(jobs), **value)


def write_plan(plan: Plan, folder: Path | str) -> Path:
    """Write the plan to `folder`, under its digest; what is there already is the same."""
    text = json.dumps(plan.to_json(), ensure_ascii=False, separators=(",", ":"))
    path = Path(folder) / f"{plan.experiment}-{name_of(text)}.json"
    if not path.exists():
        write_text(path, text)
    return path


def name_of(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:12]
