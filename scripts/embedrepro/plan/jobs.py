"""Jobs: lists of artifacts that one process makes, by one policy.

As few processes as possible load a model, each for a minute or so of device time, so that starting
up is a small part of it and a killed job loses little. What is one job depends on the work alone,
never on the devices that happen to be there: every process that reads the plan cuts it alike.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ..datasets.local import local_kind
from .artifacts import Artifact, Catalogue, Row, spread
from .config import CALIBRATION, RESCORE, Model, in_order
from .cost import (
    JOB_SECONDS,
    MODEL_SECONDS,
    ROW_SECONDS,
    SHARED_PARAMETERS,
    SHARED_SECONDS,
    START_SECONDS,
    download_bytes,
    parameters,
)

# Runs that are made of other runs, or of what is made from all pieces of a corpus' vectors.
AFTER = ("weighted", "maxsim", "stored")
ON_CPU = ("stored",)  # of them those that take no device
MERGED = 5  # bytes a parameter that merging an adapter holds: the model in float32, a tensor twice
LOCAL_TOGETHER = 20_000_000  # characters of local corpora that one process prepares together


@dataclass(frozen=True)
class Job:
    """What one process makes. `rule` names the file of rules it belongs to and its command line.

    `inputs` are what its artifacts are made from; `gpu` devices, `threads`, `mem_mb` and `minutes`
    are asked for; `label` tells people which model and dataset it is about. A `shared` job uses its
    device for seconds only, beside others. `priority`: it waits for a network, and had better do so
    beside what computes; or more than its own pieces waits for it.
    """

    name: str
    rule: str
    artifacts: tuple[str, ...]
    inputs: tuple[str, ...]
    label: str
    gpu: int = 0
    shared: bool = False
    priority: int = 0
    threads: int = 1
    mem_mb: int = 4000
    minutes: int = 60
    seconds: float = 0.0
    python: str = ""  # of an environment of its own; "" is the workflow's

    @property
    def imports(self) -> bool:
        """Whether it imports torch, which takes seconds, unless it is forked."""
        return self.rule in IMPORTING and not self.python

    @property
    def forked(self) -> bool:
        """Whether a process that imported all already can become this job."""
        return self.rule in FORKED and not self.python


# The script of each kind of job.
SCRIPTS = {
    "download": "download_model",
    "environment": "make_environment",
    "stage": "stage_model",
    "preflight": "preflight_model",
    "prepare": "prepare_dataset",
    "encode": "encode",
    "search": "search",
    "refine": "refine",
    "merge": "merge_runs",
    "bm25": "bm25_run",
    "fuse": "fuse_runs",
    "run": "import_run",
    "rerank": "rerank",
    "score": "score_runs",
    "report": "make_report",
    "report_with_reference": "make_report",
    "parity": "compare_reference",
    "reference": "run_reference",
}

IMPORTING = ("preflight", "encode", "search", "refine", "rerank")  # rules that import torch
FORKED = (*IMPORTING, "merge", "fuse", "score", "report", "report_with_reference")
LOADING = ("stage", "preflight", "encode", "refine", "rerank")  # rules that load a model
TABLELESS = ("download", "environment", "stage", "preflight")  # rules that do without pyarrow
# rule: (gpu, threads, mem_mb, minutes); what is forked from one process has one number of threads
RESOURCES = {
    "download": (0, 1, 4000, 240),
    "environment": (0, 1, 4000, 120),
    "stage": (0, 1, 4000, 60),
    "preflight": (0, 2, 8000, 60),
    "prepare": (0, 1, 4000, 240),
    "encode": (1, 2, 12000, 360),
    "search": (1, 2, 8000, 120),
    "refine": (1, 2, 16000, 360),
    "merge": (0, 2, 8000, 60),
    "bm25": (0, 1, 16000, 240),
    "fuse": (0, 2, 4000, 60),
    "run": (0, 1, 4000, 60),
    "rerank": (1, 2, 12000, 360),
    "score": (0, 2, 8000, 60),
    "report": (0, 2, 4000, 30),
    "report_with_reference": (0, 2, 4000, 30),
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
    for models in families(in_order(catalogue.experiment.models)):
        of_models = [row for row in rows if any(row.model is model for model in models)]
        if of_models:
            model, scores = of_models[0].model, [row.scores for row in of_models]
            jobs += model_jobs(catalogue, model, of_models)
            jobs.append(make_job(model.slug, "score", scores, model.id))
    return merged(together(catalogue, jobs))


def together(catalogue: Catalogue, jobs: Sequence[Job]) -> list[Job]:
    """Small models in one process, as many as compute about as long as it takes to start.

    Only those that need nothing but staged models and datasets, so that no two jobs can wait for
    one another.
    """
    found: list[Job] = []
    group: list[Job] = []
    ready = ("stage", "corpus", "split")
    for job in jobs:
        outside = {path for pattern in job.inputs for path in spread(pattern)} - set(job.artifacts)
        if not job.shared or any(catalogue.artifacts[p].step not in ready for p in outside):
            found.append(job)
            continue
        if group and sum(map(little_seconds, [*group, job])) > START_SECONDS:
            found.append(one_of(group))
            group = []
        group.append(job)
    return [*found, one_of(group)] if group else found


def little_seconds(job: Job) -> float:
    """About how long a little job takes once its process has started."""
    return MODEL_SECONDS + ROW_SECONDS * len(job.artifacts) + job.seconds


def one_of(jobs: Sequence[Job]) -> Job:
    """The jobs as one."""
    first, *others = jobs
    if not others:
        return first
    return replace(
        first,
        name=f"{first.name}__and_{len(others)}_more",
        artifacts=tuple(dict.fromkeys(path for job in jobs for path in job.artifacts)),
        inputs=tuple(dict.fromkeys(path for job in jobs for path in job.inputs)),
        label=", ".join(dict.fromkeys(job.label for job in jobs)),
        seconds=sum(job.seconds for job in jobs),
    )


def families(models: Iterable[Model]) -> list[list[Model]]:
    """The models, those together that are rows of one encoding."""
    found: list[list[Model]] = []
    for model in models:
        whole = encoding(model)
        one = next((family for family in found if encoding(family[0]) == whole), None)
        if one is None or whole is model:
            found.append([model])
        else:
            one.append(model)
    return found


def encoding(model: Model) -> Model:
    """What rows of one encoding have in common; a row that is whole stands for itself."""
    if model.kind in ("multivector", "late"):
        return replace(model, slug="", kind="multivector", options={})
    if model.cut or model.way or model.stored:
        model = replace(model, stored=None, rescore=RESCORE, calibration=CALIBRATION)
        return replace(model, slug="", cut=None, way=None)
    return model


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
            job = make_job(dataset.slug, "prepare", artifacts)
            jobs.append(replace(job, priority=int(not local_kind(dataset.source))))
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
        download_job(catalogue, model),
        make_job(model.name, "stage", [catalogue.stage(model)]),
    ]
    if model.base:
        jobs.append(download_job(catalogue, model.base))
        jobs[1] = replace(jobs[1], mem_mb=jobs[1].mem_mb + parameters(model) * MERGED // 10**6)
    if model.kind == "rerank":
        jobs += rerank_jobs(catalogue, model, runs)
    else:
        jobs += encode_jobs(catalogue, model, rows)
    if model.served:
        return [asking(job) for job in jobs]
    if environment := catalogue.environment(model):
        own = make_job(model.environment, "environment", [environment])
        return [own, *(within(environment, job) for job in jobs)]
    return jobs


def download_job(catalogue: Catalogue, model: Model) -> Job:
    job = make_job(model.name, "download", [catalogue.download(model)])
    return replace(job, priority=int(download_bytes(model) > 0))


def asking(job: Job) -> Job:
    """A job of a model on a server: it has no device of ours to wait for, but its server."""
    if job.rule not in LOADING:
        return job
    return replace(job, gpu=0, minutes=max(job.minutes, round(job.seconds / 20)))


def within(environment: Artifact, job: Job) -> Job:
    """A job of a model with an environment of its own: what loads the model runs there."""
    if job.rule not in LOADING:
        return job
    python = f"{environment.spec['folder']}/bin/python"
    return replace(after(environment, job), python=python)


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


def encode_jobs(catalogue: Catalogue, model: Model, rows: Sequence[Row]) -> list[Job]:
    """Encoding and search of all of a model's rows: one process where the work is little."""
    datasets = {row.dataset.name: row.dataset for row in rows}.values()
    preflight = catalogue.preflight(model)
    queries = unique(catalogue.queries(model, row.dataset, row.split) for row in rows)
    pieces = [piece for d in datasets for piece in catalogue.passages(model, d)]
    # A server is asked by one process, which knows how many requests are under way.
    batches = [pieces] if model.served else list(cut(pieces))
    runs = with_bases(catalogue, rows)
    cuts = unique(
        vectors
        for row in rows
        if row.model.cut
        for vectors in (
            catalogue.asked(row.model, row.dataset, row.split),
            *catalogue.cut(row.model, row.dataset),
        )
    )
    codes = codes_of(catalogue, rows)
    at_once = len(batches) == 1 and not model.environment  # which is there for the model alone
    if at_once and all(run.step in ("search", "refine", *AFTER) for run in runs):
        everything = [preflight, *queries, *pieces, *cuts, *codes, *runs]
        job = make_job(model.name, "encode", everything, model.id)
        return [replace(job, shared=not model.served and is_little(model, job.seconds))]
    jobs = [make_job(model.name, "preflight", [preflight])]
    for number, batch in enumerate(batches):
        some = [*queries, *batch] if number == 0 else batch
        whole = {artifact.path for artifact in some}
        some = [*some, *(artifact for artifact in cuts if artifact.inputs[0] in whole)]
        name = f"{model.name}__{number + 1}_of_{len(batches)}"
        label = f"{model.id}, part {number + 1} of {len(batches)}"
        job = after(preflight, make_job(name, "encode", some, label))
        # The queries' first: its model in float32 is loaded for them alone.
        jobs.append(replace(job, priority=int(number == 0)))
    return jobs + search_jobs(catalogue, model, runs, codes)


def codes_of(catalogue: Catalogue, rows: Sequence[Row]) -> list[Artifact]:
    """What rows of quantised vectors search, after what all pieces of it are made with."""
    quantized = [row for row in rows if row.model.quantized]
    codes = unique(c for row in quantized for c in catalogue.searched(row.model, row.dataset))
    ranges = unique(
        catalogue.artifacts[code.spec["ranges"]] for code in codes if code.spec["ranges"]
    )
    return [*ranges, *codes]


def is_little(model: Model, seconds: float) -> bool:
    """Whether a job is most of all starting up, and leaves room for others on its device."""
    return seconds <= SHARED_SECONDS and parameters(model) <= SHARED_PARAMETERS


def with_bases(catalogue: Catalogue, rows: Sequence[Row]) -> list[Artifact]:
    """The rows' runs, after them those that are made of other runs of the same encoding."""
    runs = [row.run for row in rows]
    last = [run for run in runs if run.step in AFTER]
    bases = [catalogue.artifacts[path] for run in last for path in run.spec.get("runs", ())]
    return unique([*(run for run in runs if run.step not in AFTER), *bases, *last])


def unique(artifacts: Iterable[Artifact]) -> list[Artifact]:
    return list({artifact.path: artifact for artifact in artifacts}.values())


def search_jobs(
    catalogue: Catalogue, model: Model, runs: Sequence[Artifact], codes: Sequence[Artifact]
) -> list[Job]:
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
    if last := [run for run in runs if run.step in AFTER]:
        job = make_job(f"{model.slug}__again", "search", [*codes, *last], model.id)
        takes_device = any(run.step not in ON_CPU for run in last)
        jobs.append(job if takes_device else replace(job, gpu=0))
    return jobs


def after(artifact: Artifact, job: Job) -> Job:
    """The same job, not before `artifact` is there."""
    return replace(job, inputs=(*job.inputs, artifact.path))


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
