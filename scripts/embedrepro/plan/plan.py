"""The plan itself: built once, written to one file named by its digest, read by every job."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import digest, read_json, write_record
from .artifacts import Artifact
from .jobs import Job


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

    def job(self, name: str) -> Job:
        for job in self.jobs:
            if job.name == name:
                return job
        raise UserError(
            f"the plan has no job '{name}'; it has {', '.join(j.name for j in self.jobs)}"
        )

    def of_job(self, name: str) -> list[Artifact]:
        return [self.artifacts[path] for path in self.job(name).artifacts]

    def to_json(self) -> dict[str, Any]:
        """Specs that several artifacts share stand in it once."""
        specs: dict[str, Any] = {}
        rows = []
        for artifact in self.artifacts.values():
            row = {k: v for k, v in vars(artifact).items() if k != "spec"}
            name = digest(artifact.spec)
            specs[name] = artifact.spec
            rows.append(row | {"spec": name})
        rest = {k: v for k, v in vars(self).items() if k not in ("artifacts", "jobs")}
        return rest | {
            "specs": specs,
            "artifacts": rows,
            "jobs": [asdict(job) for job in self.jobs],
        }


def read_plan(path: Path | str) -> Plan:
    """The plan in a file that `write_plan` wrote."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such plan; `make plan` writes it")
    value = read_json(path)
    specs = value.pop("specs")
    artifacts = {}
    for row in value.pop("artifacts"):
        lists = {"inputs": tuple(row["inputs"]), "beside": tuple(row["beside"])}
        artifacts[row["path"]] = Artifact(**row | lists | {"spec": specs[row["spec"]]})
    jobs = []
    for row in value.pop("jobs"):
        lists = {"inputs": tuple(row["inputs"]), "artifacts": tuple(row["artifacts"])}
        jobs.append(Job(**row | lists))
    return Plan(artifacts=artifacts, jobs=tuple(jobs), **value)


def write_plan(plan: Plan, folder: Path | str) -> Path:
    """Write the plan to `folder`, under its digest; what is there already is the same."""
    value = json.loads(json.dumps(plan.to_json()))
    path = Path(folder) / f"{plan.experiment}-{digest(value)}.json"
    if not path.exists():
        write_record(path, value)
    return path
