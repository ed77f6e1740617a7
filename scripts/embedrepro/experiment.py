"""A validated config becomes an experiment: its models, datasets, keys and spec files.

Everything here is known before anything runs, so that a dry run shows the whole plan.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import keys
from .errors import UserError, printable
from .evaluation import metrics
from . import names
from .schema import nearest, validate

KINDS = ("bm25", "fuse", "rerank")  # rows of the report that are not an embedding model by itself
LOCAL = ("path", "demo", "beir", "flagembedding")  # sources that count by their files' digest
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, eq=False)  # each is itself, so that it can be a cache's key
class Model:
    """A row of the report: an embedding model, or a BM25, fusion or reranking of runs."""

    id: str
    slug: str
    kind: str  # dense, bm25, fuse or rerank
    options: dict[str, Any]  # what bm25, fuse or rerank were given; empty for dense
    source_spec: dict[str, Any] = field(default_factory=dict)
    stage_spec: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)  # the config's encode facts
    source_key: str = ""
    stage_key: str = ""
    revision: str = ""  # commit, package pin or digest of a folder; empty without weights


@dataclass(frozen=True, eq=False)
class Dataset:
    """A corpus with the splits that are evaluated on it."""

    name: str
    slug: str
    spec: dict[str, Any]
    key: str
    splits: tuple[str, ...]
    shards: int
    instruction: str | None
    ignore_identical_ids: bool
    thresholds: dict[str, int]  # by split: the lowest grade that binary measures count
    documents: int | None  # as the registry has it
    size_mb: float | None  # of the download


def absolute_paths(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make the source paths of one config file absolute; they are relative to its folder."""

    def locate(source: Any, *kinds: str) -> None:
        for kind in kinds:
            if isinstance(source, dict) and isinstance(source.get(kind), str):
                source[kind] = str((folder / Path(source[kind]).expanduser()).resolve())

    for entry in _mappings(config.get("models")):
        locate(entry.get("source"), "path")
        for mirror in entry["mirrors"] if isinstance(entry.get("mirrors"), list) else []:
            locate(mirror, "path")
    for entry in _mappings(config.get("datasets")):
        locate(entry.get("source"), "beir", "flagembedding")
    return config


def _mappings(entries: Any) -> list[dict[str, Any]]:
    return [e for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []


class Experiment:
    """What one config asks for. Raises `UserError` for all that can be known to be wrong."""

    def __init__(
        self,
        config: dict[str, Any],
        schema: dict[str, Any],
        models: dict[str, Any],
        datasets: dict[str, Any],
        expand: Callable[[str, dict[str, Any]], tuple[dict[str, Any], list[str]]],
        folder_digest: Callable[[str], str],
    ) -> None:
        """`models` and `datasets` are the registries, `expand` looks a dataset name up in one,
        `folder_digest` gives the digest of a local folder's files, or of a demo model's seed."""
        validate(config, schema, "config")
        self.config = config
        self.name = config["experiment"]
        self.store = config["store"]
        self.results = f"results/{self.name}"
        self.top_k = config["retrieve"]["top_k"]
        for metric in config["evaluate"]["metrics"]:
            metrics.parse(metric)
        self._folder_digest = folder_digest
        self.datasets = {d.slug: d for d in self._datasets(config["datasets"], datasets, expand)}
        self.models = {m.slug: m for m in self._models(config["models"], models)}
        self._check_rows()

    # Models

    def _models(self, entries: list[dict[str, Any]], registry: dict[str, Any]) -> list[Model]:
        names.check_entries(entries)
        return [self._model(entry, registry.get(entry["id"], {})) for entry in entries]

    def _model(self, entry: dict[str, Any], known: dict[str, Any]) -> Model:
        slug = names.entry_slug(entry)
        kind = next((k for k in KINDS if k in entry), "dense")
        options = entry.get(kind, {})
        if kind in ("bm25", "fuse"):
            return Model(entry["id"], slug, kind, options)
        source_spec = self._source_spec(entry, slug, known)
        identity = self._identity(source_spec["source"])
        pins = source_spec["sha256"], source_spec["allow_pickle"]
        source_key = keys.of("download", identity, pins)
        revision = str(identity.get("revision") or next(iter(identity.values())))
        trust = entry.get("trust_remote_code", False)
        if kind == "rerank":
            options = options | {"trust_remote_code": trust}
            return Model(
                entry["id"], slug, kind, options, source_spec, {}, {}, source_key, "", revision
            )
        given = {k: v for k, v in entry.items() if k in keys.STAGE_FACTS + keys.ENCODE_FACTS}
        if isinstance(given.get("max_length"), int):
            given["max_length"] = dict.fromkeys(("query", "passage"), given["max_length"])
        stage_spec = source_spec | {
            "trust_remote_code": trust,
            "facts": {k: v for k, v in given.items() if k in keys.STAGE_FACTS},
            "registry": known,
        }
        stated = {k: v for k, v in known.items() if k in keys.REGISTRY_FACTS}
        how = [stage_spec["trust_remote_code"], stage_spec["facts"], stated]
        return Model(
            id=entry["id"],
            slug=slug,
            kind=kind,
            options=options,
            source_spec=source_spec,
            stage_spec=stage_spec,
            facts={k: v for k, v in given.items() if k in keys.ENCODE_FACTS},
            source_key=source_key,
            stage_key=keys.of("stage", entry["id"], source_key, how),
            revision=revision,
        )

    def _source_spec(
        self, entry: dict[str, Any], slug: str, known: dict[str, Any]
    ) -> dict[str, Any]:
        """What downloading needs. The mirrors change nothing: the pins hold them to the source."""
        revision = entry.get("revision", known.get("revision"))
        mirrors = entry.get("mirrors", [])
        return {
            "id": entry["id"],
            "model": slug,
            "source": _model_source(entry["id"], entry.get("source", "hub"), revision),
            "mirrors": [_model_source(entry["id"], m, revision) for m in mirrors],
            "sha256": entry.get("sha256", {}),
            "allow_pickle": entry.get("allow_pickle", False),
        }

    def _identity(self, source: dict[str, Any]) -> dict[str, Any]:
        """What decides a source's bytes: a pin, or the digest of a folder wherever it lies."""
        local = next((k for k in LOCAL if k in source), None)
        if local is None:
            return source
        return {local: self._folder_digest(str(source[local]))}

    # Datasets

    def _datasets(
        self, entries: list[Any], registry: dict[str, Any], expand: Callable[..., Any]
    ) -> list[Dataset]:
        merged: dict[str, Dataset] = {}
        for entry in entries:
            dataset = self._dataset(entry, registry, expand)
            other = merged.get(dataset.slug)
            if other and (other.name, other.key) != (dataset.name, dataset.key):
                raise UserError(
                    f"config.datasets: '{other.name}' and '{dataset.name}' differ but share the "
                    f"name {dataset.slug}; rename one"
                )
            if other:  # msmarco-passage/dl19 and msmarco-passage/dl20 are splits of one corpus
                splits = tuple(dict.fromkeys(other.splits + dataset.splits))
                dataset = Dataset(**{**vars(dataset), "splits": splits})
            merged[dataset.slug] = dataset
        return list(merged.values())

    def _dataset(self, entry: Any, registry: dict[str, Any], expand: Callable[..., Any]) -> Dataset:
        if isinstance(entry, str):
            known, wanted = expand(entry, registry)
            entry = {"name": known["name"]}
        else:
            known, wanted = registry.get(entry["name"], {}), None
        names.check_id(entry["name"], most_parts=None)
        facts = {**known, **entry}
        where = f"config.datasets: '{printable(entry['name'], 80)}'"
        source = dict(facts.get("source") or {})
        if not source:
            raise UserError(
                f"{where}: the registry doesn't know it{nearest(entry['name'], registry)} and no "
                "source is given; set source: {beir: folder}, for one"
            )
        if "hub" in source and not COMMIT.fullmatch(str(source.get("revision"))):
            raise UserError(f"{where}: {_moving(source['hub'], source.get('revision'))}")
        threshold = facts.get("relevance_threshold", 1)
        splits = facts.get("splits") or ["test"]
        splits = splits if isinstance(splits, dict) else {s: s for s in splits}
        spec = {
            "name": entry["name"],
            "source": source,
            "splits": splits,
            "title": facts.get("title", "join"),
        }
        return Dataset(
            name=entry["name"],
            slug=names.slug(entry["name"]),
            spec=spec,
            key=keys.of("dataset", spec | {"source": self._identity(source)}),
            splits=tuple(wanted or splits),
            shards=facts.get("shards", 1),
            instruction=facts.get("instruction"),
            documents=known.get("documents"),
            size_mb=known.get("size_mb"),
            ignore_identical_ids=facts.get("ignore_identical_ids", False),
            thresholds=threshold
            if isinstance(threshold, dict)
            else dict.fromkeys(splits, threshold),
        )

    def _check_rows(self) -> None:
        """Fusions and rerankings name rows that exist, and never themselves in a circle."""
        by_id = {m.id: m for m in self.models.values()}
        done: set[str] = {m.id for m in self.models.values() if m.kind in ("dense", "bm25")}
        waiting = [m for m in self.models.values() if m.id not in done]
        for model in waiting:
            for other in self.ingredients(model):
                if other not in by_id:
                    raise UserError(
                        f"config.models: '{printable(model.id, 80)}' builds on "
                        f"'{printable(other, 80)}', which is no row here{nearest(other, by_id)}"
                    )
        while waiting:
            ready = [m for m in waiting if done.issuperset(self.ingredients(m))]
            if not ready:
                raise UserError(
                    "config.models: these rows build on each other in a circle: "
                    + ", ".join(printable(m.id, 80) for m in waiting)
                )
            done.update(m.id for m in ready)
            waiting = [m for m in waiting if m.id not in done]

    @staticmethod
    def ingredients(model: Model) -> list[str]:
        """Ids of the rows whose runs this row is made from."""
        if model.kind == "fuse":
            return model.options["runs"]
        return [model.options["run"]] if model.kind == "rerank" else []

    # Keys and specs of one model on one dataset

    def corpus_key(self, model: Model, dataset: Dataset) -> str:
        facts = keys.role_facts(model.facts, "passage")
        return keys.of("encode", "passage", model.stage_key, dataset.key, facts)

    def query_key(self, model: Model, dataset: Dataset) -> str:
        facts = keys.role_facts(model.facts, "query")
        instruction = dataset.instruction
        return keys.of("encode", "query", model.stage_key, dataset.key, facts, instruction)

    def hits_key(self, model: Model, dataset: Dataset) -> str:
        both = self.corpus_key(model, dataset), self.query_key(model, dataset)
        return keys.of("search", *both, self.top_k)

    def run_key(self, model: Model, dataset: Dataset) -> str:
        """The key of a row's run; it holds the keys of the runs that it is made from."""
        if model.kind == "dense":
            return self.hits_key(model, dataset)
        by_id = {m.id: m for m in self.models.values()}
        parts = [self.run_key(by_id[i], dataset) for i in self.ingredients(model)]
        weights = model.source_key
        options = {k: v for k, v in model.options.items() if k != "shards"}
        return keys.of(model.kind, dataset.key, self.top_k, options, weights, parts)

    def encode_spec(self, model: Model, dataset: Dataset, role: str) -> dict[str, Any]:
        facts = keys.role_facts(model.facts, role)
        text = {"title": dataset.spec["title"]} if role == "passage" else {}
        return {"facts": facts, "instruction": dataset.instruction} | text

    def score_spec(self, model: Model, dataset: Dataset, split: str) -> dict[str, Any]:
        evaluate = self.config["evaluate"]
        return {
            "model_id": model.id,
            "model": model.slug,
            "revision": model.revision,
            "dataset": dataset.name,
            "split": split,
            "metrics": evaluate["metrics"],
            "protocols": list(dict.fromkeys([evaluate["protocol"], *evaluate["protocols"]])),
            "default_protocol": evaluate["protocol"],
            "top_k": self.top_k,
            "ignore_identical_ids": dataset.ignore_identical_ids,
            "relevance_threshold": dataset.thresholds.get(split, 1),
        }


def _model_source(model_id: str, source: Any, revision: str | None) -> dict[str, Any]:
    where = f"config.models: '{printable(model_id, 80)}'"
    source = {"hub": model_id} if source == "hub" else dict(source)
    if len(source.keys() - {"revision"}) != 1:
        raise UserError(f"{where}: a source is one of hub, wheel, wheels, path and demo")
    if "hub" in source:
        source.setdefault("revision", revision)
        if not COMMIT.fullmatch(source["revision"] or ""):
            raise UserError(f"{where}: {_moving(source['hub'], source['revision'])}")
    return source


def _moving(repository: str, revision: str | None) -> str:
    wanted = "set revision: to the full commit hash, 40 lowercase hex digits"
    if not revision:
        return f"no revision is known for {printable(repository, 80)}; {wanted}"
    return f"revision '{printable(revision, 60)}' can move; {wanted}"
