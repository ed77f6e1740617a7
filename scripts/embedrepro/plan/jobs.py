"""Jobs: lists of artifacts that one process makes, by one policy.

As few processes as possible load a model, each for a minute or so of device time, so that starting
up is a small part of it and a killed job loses little. What is one job depends on the work alone,
never on the devices that happen to be there: every process that reads the plan cuts it alike.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..datasets.local import local_kind
from .artifacts import Artifact, Catalogue, Row, spread
from .config import Model, in_order
from .cost import JOB_SECONDS

LOCAL_TOGETHER = 20_000_000  # characters of local corpora that one process prepares together


@dataclass(frozen=True)
class Job:
    """What one process makes. `rule` names the file of rules it belongs to and its command line.

    `inputs` are what its artifacts are made from; `gpu` devices, `threads`, `mem_mb` and `minutes`
    are asked for; `label` tells people which model and dataset it is about.
    """

    name: str
    rule: str
    artifacts: tuple[str, ...]
    inputs: tuple[str, ...]
    label: str
    gpu: int = 0
    threads: int = 1
    mem_mb: int = 4000
    minutes: int = 60
    seconds: float = 0.0


# rule: (gpu, threads, mem_mb, minutes)
RESOURCES = {
    "download": (0, 1, 4000, 240),
    "stage": (0, 1, 4000, 60),
    "preflight": (0, 2, 8000, 60),
    "prepare": (0, 1, 4000, 240),
    "encode": (1, 2, 12000, 360),
    "search": (1, 2, 8000, 120),
    "refine": (1, 2, 16000, 360),
    "merge": (0, 1, 8000, 60),
    "bm25": (0, 1, 16000, 240),
    "fuse": (0, 1, 4000, 60),
    "run": (0, 1, 4000, 60),
    "rerank": (1, 2, 12000, 360),
    "score": (0, 1, 8000, 60),
    "report": (0, 1, 4000, 30),
    "report_with_reference": (0, 1, 4000, 30),
    "parity": (0, 1, 4000, 30),
    "reference": (0, 2, 8000, 60),
}


def make_job(name: str, rule: str, artifacts: Sequence[Artifact], label: str = "") -> Job:
    gpu, threads, mem_mb, minutes = RESOURCES[rule]
    inputs = dict.fromkeys(i for a in artifacts for i in a.inputs)
    return Job(
        name=f"{rule}__{name}",
        rule=rule,
        artifacts=tuple(a.path for a in artifacts),
        inputs=tuple(inputs),
        label=label or artifacts[0].label,
        gpu=gpu,
        threads=threads,
        mem_mb=mem_mb,
        minutes=minutes,
        seconds=sum(a.seconds for a in artifacts),
    )


def make_jobs(catalogue: Catalogue, rows: Sequence[Row]) -> list[Job]:
    """All jobs of an experiment, the report's not among them."""
    jobs = [*prepare_jobs(catalogue, rows)]
    for model in in_order(catalogue.experiment.models):
        of_model = [row for row in rows if row.model is model]
        if not of_model:
            continue
        jobs += model_jobs(catalogue, model, of_model)
        scores = [row.scores for row in of_model]
        jobs.append(make_job(model.slug, "score", scores, model.id))
    return merged(jobs)


def merged(jobs: Iterable[Job]) -> list[Job]:
    """Each job once: rows that share a model's id share its download, staging and vectors."""
    by_artifact: dict[tuple[str, ...], Job] = {}
    for job in jobs:
        by_artifact.setdefault(job.artifacts, job)
    names: dict[str, int] = {}
    unique = []
    for job in by_artifact.values():
        count = names[job.name] = names.get(job.name, 0) + 1
        numbered = f"{job.name}__{count}" if count > 1 else job.name
        unique.append(Job(**{**vars(job), "name": numbered}))
    return unique


def prepare_jobs(catalogue: Catalogue, rows: Sequence[Row]) -> list[Job]:
    """A job for each dataset, small local ones together."""
    jobs, together, chars = [], [], 0
    for dataset in catalogue.experiment.datasets:
        asked = {row.split for row in rows if row.dataset is dataset}
        splits = [catalogue.split(dataset, split) for split in dataset.splits if split in asked]
        if not splits:
            continue
        artifacts = [catalogue.corpus(dataset), *splits]
        size = catalogue.outside.sizes[dataset.name].characters
        if local_kind(dataset.source) and chars + size <= LOCAL_TOGETHER:
            together.append((dataset.name, artifacts))
            chars += size
        else:
            jobs.append(make_job(dataset.slug, "prepare", artifacts))
    if together:
        label = ", ".join(name for name, _ in together)
        everything = [a for _, artifacts in together for a in artifacts]
        jobs.append(make_job("local", "prepare", everything, label))
    return jobs


def model_jobs(catalogue: Catalogue, model: Model, rows: Sequence[Row]) -> list[Job]:
    runs = [row.run for row in rows]
    if model.kind in ("bm25", "fuse", "run"):
        return [make_job(model.slug, model.kind, runs, model.id)]
    jobs = [
        make_job(model.name, "download", [catalogue.download(model)]),
        make_job(model.name, "stage", [catalogue.stage(model)]),
    ]
    if model.kind == "rerank":
        return jobs + rerank_jobs(catalogue, model, runs)
    return jobs + dense_jobs(catalogue, model, rows)


def rerank_jobs(catalogue: Catalogue, model: Model, runs: Sequence[Artifact]) -> list[Job]:
    """One job for all rows, or one for each piece where the config asks for several."""
    preflight = catalogue.preflight(model)
    pieces = [catalogue.artifacts[p] for run in runs for p in spread(run.spec["scores"])]
    if model.options.get("shards", 1) == 1:
        return [make_job(model.slug, "rerank", [preflight, *pieces, *runs], model.id)]
    jobs = [make_job(model.name, "preflight", [preflight])]
    for number in range(model.options["shards"]):
        mine = [piece for piece in pieces if piece.piece == number]
        jobs.append(after(preflight, make_job(f"{model.slug}__{number}", "rerank", mine)))
    return [*jobs, make_job(model.slug, "merge", runs, model.id)]


def dense_jobs(catalogue: Catalogue, model: Model, rows: Sequence[Row]) -> list[Job]:
    """Encoding and search of all of a model's rows: one process where the work is little."""
    datasets = {row.dataset.name: row.dataset for row in rows}.values()
    preflight = catalogue.preflight(model)
    queries = [catalogue.queries(model, row.dataset, row.split) for row in rows]
    pieces = [piece for d in datasets for piece in catalogue.passages(model, d)]
    batches = list(cut(pieces))
    runs = [row.run for row in rows]
    if len(batches) == 1 and all(run.step in ("search", "refine") for run in runs):
        everything = [preflight, *queries, *pieces, *runs]
        return [make_job(model.name, "encode", everything, model.id)]
    jobs = [make_job(model.name, "preflight", [preflight])]
    for number, batch in enumerate(batches):
        some = [*queries, *batch] if number == 0 else batch
        name = f"{model.name}__{number + 1}_of_{len(batches)}"
        label = f"{model.id}, part {number + 1} of {len(batches)}"
        jobs.append(after(preflight, make_job(name, "encode", some, label)))
    return jobs + search_jobs(catalogue, model, runs)


def search_jobs(catalogue: Catalogue, model: Model, runs: Sequence[Artifact]) -> list[Job]:
    """One process for all rows that are searched at once; large corpora piece by piece."""
    jobs = []
    at_once = [run for run in runs if run.step == "search"]
    if at_once:
        jobs.append(make_job(model.slug, "search", at_once, model.id))
    refined = [run for run in runs if run.step == "refine"]
    if refined:
        jobs.append(make_job(model.slug, "refine", refined, model.id))
    by_pieces = [run for run in runs if run.step == "merge"]
    hits = [catalogue.artifacts[p] for run in by_pieces for p in spread(run.spec["hits"])]
    for number, batch in enumerate(cut(hits)):
        jobs.append(make_job(f"{model.name}__{number + 1}", "search", batch))
    if by_pieces:
        jobs.append(make_job(model.slug, "merge", by_pieces, model.id))
    return jobs


def after(artifact: Artifact, job: Job) -> Job:
    """The same job, not before `artifact` is there."""
    return Job(**{**vars(job), "inputs": (*job.inputs, artifact.path)})


def cut(pieces: Sequence[Artifact]) -> Iterable[list[Artifact]]:
    """Runs of neighbouring pieces of about `JOB_SECONDS` each."""
    batch: list[Artifact] = []
    seconds = 0.0
    for piece in pieces:
        if batch and seconds + piece.seconds > JOB_SECONDS * 1.2:
            yield batch
            batch, seconds = [], 0.0
        batch.append(piece)
        seconds += piece.seconds
    if batch:
        yield batch
