"""From an experiment to its plan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..datasets.registry import ResolvedDataset
from ..evaluation.protocols import PROTOCOLS
from .artifacts import Artifact, Catalogue, Outside, Row, encodes, key_in, pattern
from .config import Experiment, Model
from .jobs import Job, make_job, make_jobs
from .keys import key_of
from .plan import Plan


@dataclass(frozen=True)
class Trial:
    """A row that a setting is tried by: a model under a name of its own, a dataset, a split."""

    model: Model
    dataset: ResolvedDataset
    split: str


def wider_catalogue(catalogue: Catalogue, trials: Sequence[Trial]) -> Catalogue:
    """The same artifacts, of an experiment that has the models and datasets of trials as well."""
    if not trials:
        return catalogue
    own = catalogue.experiment
    datasets = {id(d): d for d in [*own.datasets, *(trial.dataset for trial in trials)]}
    experiment = replace(
        own,
        models=(*own.models, *(trial.model for trial in trials)),
        datasets=tuple(datasets.values()),
        protocols=tuple(dict.fromkeys([*own.protocols, *PROTOCOLS])),
    )
    return replace(catalogue, experiment=experiment)


def compile_plan(
    experiment: Experiment,
    outside: Outside,
    command: str,
    without: frozenset[str] = frozenset(),
    trials: Sequence[Trial] = (),
) -> Plan:
    """Every artifact and job of `experiment`; pure. `command` repeats it, for its report.

    `without`: rows to leave out, since something that they need can't be made (`row_name`s).
    `trials`: further rows, which no report has, scored under every protocol.

    Raises `UserError` where a row can't be: a prompt with {task} on a dataset without instruction.
    """
    catalogue = Catalogue(experiment, outside, without)
    rows = list(catalogue.rows())
    wider = wider_catalogue(catalogue, trials)
    tried = [wider.row(trial.model, trial.dataset, trial.split) for trial in trials]
    jobs = make_jobs(wider, [*rows, *tried])
    references = reference_artifacts(catalogue, rows)
    jobs += reference_jobs(catalogue, rows, references)
    report = report_artifact(catalogue, rows, outside.published, command, None)
    jobs.append(make_job(experiment.name, "report", [report], experiment.name))
    with_parity = None
    if references:
        parity = parity_artifact(catalogue, rows, references)
        jobs.append(make_job(experiment.name, "parity", [parity], experiment.name))
        with_parity = report_artifact(catalogue, rows, outside.published, command, parity)
        jobs.append(make_job(experiment.name, "report_with_reference", [with_parity]))
    return Plan(
        experiment=experiment.name,
        store=experiment.store,
        results=f"results/{experiment.name}",
        artifacts=catalogue.artifacts,
        jobs=tuple(jobs),
        report=report.path,
        report_with_reference=with_parity.path if with_parity else None,
        repeat=command,
    )


def report_artifact(
    catalogue: Catalogue,
    rows: Sequence[Row],
    published: Mapping[str, str],
    command: str,
    parity: Artifact | None,
) -> Artifact:
    """The report of all rows: a folder, whose provenance.json is written last."""
    experiment = catalogue.experiment
    encoded = [row for row in rows if encodes(row.model)]
    datasets = list({row.dataset.name: row.dataset for row in rows}.values())
    vectors: dict[str, dict[str, Any]] = {}
    for row in encoded:
        parts = catalogue.passages(row.model, row.dataset)
        queries = catalogue.queries(row.model, row.dataset, row.split)
        for part, artifact in ((f"{row.split}-queries", queries), ("corpus", parts[0])):
            sidecar = artifact.beside[0]
            vectors[row.model.slug + artifact.path] = {
                "model": row.model.slug,
                "dataset": row.dataset.slug,
                "part": part,
                "of": artifact.spec["of"],
                "sidecar": pattern(sidecar) if part == "corpus" else sidecar,
            }
    stages = {row.model.slug: catalogue.stage(row.model) for row in encoded}
    preflights = {row.model.slug: catalogue.preflight(row.model).path for row in encoded}
    spec = {
        "experiment": experiment.name,
        "command": command,
        "metrics": list(experiment.metrics),
        "models": [
            {"id": m.id, "model": m.slug, "revision": m.revision, "kind": m.kind}
            | ({} if catalogue.pinned(m) else {"pinned": False})
            for m in experiment.models
        ],
        "datasets": [
            {"name": d.name, "slug": d.slug, "split": split} for d in datasets for split in d.splits
        ],
        "rows": [
            {
                "model": row.model.slug,
                "dataset": row.dataset.slug,
                "split": row.split,
                "run": row.run.path,
                "scores": row.scores.path,
                "per_query": row.scores.spec["per_query"],
            }
            for row in rows
        ],
        "stages": {slug: stage.path for slug, stage in stages.items()},
        "preflights": preflights,
        "vectors": list(vectors.values()),
        "corpora": {d.slug: catalogue.corpus(d).path for d in datasets},
        "splits": {
            d.slug: {
                split: dict(
                    zip(("queries", "qrels"), catalogue.split(d, split).beside, strict=True)
                )
                for split in d.splits
            }
            for d in datasets
        },
        "registry": catalogue.outside.registry,
        "published": list(experiment.published),
        "parity": parity.path if parity else None,
    }
    counted = {k: spec[k] for k in ("experiment", "metrics", "models", "datasets")}
    scores = [key_in(row.scores.path) for row in rows]
    vector_keys = sorted({key_in(v["sidecar"]) for v in vectors.values()})
    tables = list(published.values())
    with_parity = parity.path if parity else None
    key = key_of("report", counted, scores, vector_keys, tables, with_parity)
    path = catalogue.path("reports", f"{experiment.name}-{key}", "provenance.json")
    inputs = [row.scores.path for row in rows]
    inputs += [a.path for a in stages.values()] + list(preflights.values())
    inputs += [v["sidecar"].removesuffix("json") + "npy" for v in vectors.values()]
    inputs += [catalogue.corpus(d).path for d in datasets]
    if parity:
        inputs.append(parity.path)
    artifact = Artifact("report", path, spec, tuple(dict.fromkeys(inputs)), label=experiment.name)
    return catalogue.add(artifact)


def reference_artifacts(catalogue: Catalogue, rows: Sequence[Row]) -> list[Artifact]:
    """FlagEmbedding's own evaluation of every row that it can evaluate."""
    settings = catalogue.experiment.reference
    made = []
    for row in rows:
        if not has_reference(row.model):
            continue
        stage, source = catalogue.stage(row.model), catalogue.split(row.dataset, row.split)
        passages = catalogue.passages(row.model, row.dataset)[0]
        corpus = catalogue.corpus(row.dataset)
        spec = {
            "model_id": row.model.id,
            "model": row.model.slug,
            "dataset": row.dataset.name,
            "split": row.split,
            "query_prompt": catalogue.queries(row.model, row.dataset, row.split).spec["prompt"],
            "passage_prompt": passages.spec["prompt"],
            "instruction": row.dataset.instruction,
            "devices": own_devices(settings["devices"]),
            "batch_size": settings["batch_size"],
            "top_k": catalogue.experiment.top_k,
            "ignore_identical_ids": row.dataset.ignore_identical_ids,
        }
        key = key_of(
            "reference", spec, key_in(stage.path), key_in(source.path), passages.spec["dtype"]
        )
        path = catalogue.path(
            "reference", row.dataset.slug, f"{row.model.name}-{key}", f"{row.split}.json"
        )
        files = {
            "staged": stage.spec["folder"],
            "sidecar": passages.beside[0],
            "corpus": corpus.beside[0],
            "queries": source.beside[0],
            "qrels": source.beside[1],
            "title": row.dataset.title,
            "timeout_minutes": settings["timeout_minutes"],
        }
        inputs = (stage.path, source.path, corpus.path, passages.path)
        made.append(
            catalogue.add(Artifact("reference", path, spec | files, inputs, label=row.scores.label))
        )
    return made


def has_reference(model: Model) -> bool:
    """Whether FlagEmbedding evaluates such a row: whole dense vectors of a folder, by the libraries
    that it runs with itself."""
    mine = model.served or model.environment or model.quantized
    return model.kind == "dense" and model.cut is None and not mine


def own_devices(devices: Sequence[str]) -> list[str]:
    """The config's devices, the GPUs counted from 0: a job sees only those that it was given."""
    gpus = sorted({d for d in devices if d != "cpu"})
    return [d if d == "cpu" else f"cuda:{gpus.index(d)}" for d in devices]


def reference_jobs(
    catalogue: Catalogue, rows: Sequence[Row], references: Sequence[Artifact]
) -> list[Job]:
    """A job for each model, with all devices of the config."""
    settings = catalogue.experiment.reference
    devices = settings["devices"]
    asked = {
        "gpu": len({d for d in devices if d != "cpu"}),
        "threads": 2 * len(devices),
        "mem_mb": 8000 * len(devices),
        "minutes": int(settings["timeout_minutes"]) + 10,
    }
    jobs = []
    for model in dict.fromkeys(row.model.slug for row in rows if has_reference(row.model)):
        mine = [a for a in references if a.spec["model"] == model]
        job = make_job(model, "reference", mine)
        jobs.append(Job(**{**vars(job), **asked}))
    return jobs


def parity_artifact(
    catalogue: Catalogue, rows: Sequence[Row], references: Sequence[Artifact]
) -> Artifact:
    """FlagEmbedding's numbers beside ours."""
    dense = [row for row in rows if has_reference(row.model)]
    table = [
        {
            "model_id": row.model.id,
            "model": row.model.slug,
            "dataset": row.dataset.name,
            "split": row.split,
            "ignore_identical_ids": row.dataset.ignore_identical_ids,
            "reference": reference.path,
            "run": row.run.path,
            "qrels": reference.spec["qrels"],
        }
        for row, reference in zip(dense, references, strict=True)
    ]
    places = [[row.model.slug, row.dataset.name, row.split] for row in dense]
    made_from = [[key_in(str(row[part])) for part in ("reference", "run")] for row in table]
    key = key_of("reference", places, made_from)
    path = catalogue.path("reports", f"parity-{key}.json")
    inputs = tuple(p for row in table for p in (str(row["reference"]), str(row["run"])))
    label = catalogue.experiment.name
    return catalogue.add(Artifact("parity", path, {"rows": table}, inputs, label=label))
