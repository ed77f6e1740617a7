"""Artifacts: every file that an experiment consists of, with its key, its path and its recipe.

`Catalogue` names them; what each kind of row needs stands in the table `METHODS`, one entry a kind.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ..datasets.registry import Estimate, ResolvedDataset
from ..errors import UserError, printable
from ..models.facts_table import ROLES, Role, known_facts, prompt_for, role_facts
from . import cost
from .config import WAYS, Experiment, Model, measure
from .keys import key_of

Spec = Mapping[str, Any]
FIRST = 10  # ranks of a run that are float32's whatever it costs
PIECE = "{piece}"
# What lies beside the .npy of a piece, by the kind of its vectors; the sidecar first.
BESIDE: dict[str, tuple[str, ...]] = {
    "dense": ("json",),
    "sparse": ("json", "columns.npy", "offsets.npy"),
    "multivector": ("json", "offsets.npy"),
}
BESIDE["late"] = BESIDE["multivector"]
SPARSE, TOKENS = ".sparse", ".tokens"  # what ends the names of BGE-M3's further pieces
BESIDE["m3"] = (
    "json",
    *(
        f"{part[1:]}.{end}"
        for part, kind in ((SPARSE, "sparse"), (TOKENS, "multivector"))
        for end in ("npy", *BESIDE[kind])
    ),
)
# A run is the same however it was cut: these steps put together what the others found.
MERGES = {"merge": "search", "merge_reranked": "rerank"}
MOST_AT_ONCE = 160  # pieces of a corpus that one process searches by itself


@dataclass(frozen=True)
class Artifact:
    """One unit of work that is done or not: the file `path`, and what lies `beside` it.

    `inputs` are paths of other artifacts, all pieces of a corpus as one `pattern`. `spec` is all
    that making it needs besides (JSON), shared between the pieces of one corpus; `piece` tells them
    apart. `seconds` of one device and the bytes of its `download` are estimates.
    """

    step: str
    path: str
    spec: Spec
    inputs: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    piece: int = 0
    label: str = ""
    seconds: float = 0.0
    download: float = 0.0

    @property
    def outputs(self) -> tuple[str, ...]:
        return (self.path, *self.beside)

    @property
    def needs(self) -> Iterator[str]:
        """Paths of the artifacts that it is made from."""
        for path in self.inputs:
            yield from spread(path)


def pattern(path: str) -> str:
    """What stands for all pieces of one corpus, from the path of one of them."""
    return re.sub(r"-\d+-of-", f"-{PIECE}-of-", path)


def spread(path: str) -> list[str]:
    """All paths that a `pattern` stands for; a plain path stands for itself."""
    if PIECE not in path:
        return [path]
    of = int(re.search(r"-of-(\d+)\.", path)[1])  # type: ignore[index]
    return [path.replace(PIECE, str(piece)) for piece in range(of)]


@dataclass(frozen=True)
class Row:
    """One number's place: a model on one split of a dataset, with the files that lead to it."""

    model: Model
    dataset: ResolvedDataset
    split: str
    run: Artifact
    scores: Artifact


@dataclass(frozen=True)
class Outside:
    """What lies outside the store: by dataset name the identity of its corpus, of what each of its
    splits is read from (see `datasets.local`), and its size; by path the digest of all that
    verdicts are given by, the files of the folder `registry` and tables of the user's own; the
    folder of `environments`' pins."""

    corpora: Mapping[str, Spec]
    splits: Mapping[str, Mapping[str, Spec]]
    sizes: Mapping[str, Estimate]
    registry: str = ""
    published: Mapping[str, str] = field(default_factory=dict)
    environments: str = ""


@dataclass
class Catalogue:
    """All artifacts of an experiment by path, made as they are asked for.

    `outside` tells of what lies outside the store: digests and sizes of the datasets.
    """

    experiment: Experiment
    outside: Outside
    without: frozenset[str] = frozenset()  # rows left out, as `row_name` names them
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    known: dict[tuple[str, ...], list[Artifact]] = field(default_factory=dict)

    def add(self, artifact: Artifact) -> Artifact:
        return self.artifacts.setdefault(artifact.path, artifact)

    def path(self, *parts: str) -> str:
        return "/".join([self.experiment.store, *parts])

    # Models

    def download(self, model: Model) -> Artifact:
        folder = self.path("models", "hub", f"{model.name}-{model.weights_key}")
        spec = {
            "id": model.id,
            "model": model.name,
            "source": model.source,
            "mirrors": list(model.mirrors),
            "sha256": model.sha256,
            "allow_pickle": model.allow_pickle,
            "code_revision": model.code_revision,
            "base": model.base is not None,
            "folder": folder,
        }
        path, size = f"{folder}/manifest.json", cost.download_bytes(model)
        return self.add(Artifact("download", path, spec, label=model.id, download=size))

    def environment(self, model: Model) -> Artifact | None:
        """The environment that a model is staged and run in, where it has one of its own."""
        if not model.environment:
            return None
        name, key = model.environment, key_of("environment", model.pins)
        folder = self.path("environments", f"{name}-{key}")
        spec = {"pins": f"{self.outside.environments}/{name}.txt", "folder": folder}
        label = f"environment {name}"
        return self.add(Artifact("environment", f"{folder}/environment.json", spec, label=label))

    def stage(self, model: Model) -> Artifact:
        snapshot, base = self.download(model), model.base and self.download(model.base)
        spec = {
            "id": model.id,
            "model": model.name,
            "kind": {"rerank": "reranker", "late": "multivector"}.get(model.kind, model.kind),
            "source": model.source,
            "allow_pickle": model.allow_pickle,
            "trust_remote_code": model.trust_remote_code,
            "environment": model.environment,
            "facts": stated_facts(model),
            "registry": model.known,
        }
        stated = known_facts(model.known)
        how = [model.kind == "rerank", model.trust_remote_code, stated_facts(model), stated]
        how += [model.pins] if model.pins else []
        how += base_key(model)
        key = key_of("stage", model.id, model.weights_key, how)
        folder = self.path("models", "staged", f"{model.name}-{key}")
        places = {"snapshot": snapshot.spec["folder"], "folder": folder}
        if base:
            places["base"] = {k: base.spec[k] for k in ("id", "source", "folder")}
        path = f"{folder}/stage.json"
        environment = self.environment(model)
        inputs = tuple(made.path for made in (snapshot, base, environment) if made)
        return self.add(Artifact("stage", path, spec | places, inputs, label=model.id))

    def preflight(self, model: Model) -> Artifact:
        stage, put = self.stage(model), self.prompts(model)
        key = key_of("preflight", stage.path.split("/")[-2], put)
        path = self.path("models", "preflight", f"{model.name}-{key}.json")
        spec = {"staged": stage.spec["folder"], "put": put, "address": address(model)}
        return self.add(Artifact("preflight", path, spec, (stage.path,), label=model.id))

    def prompts(self, model: Model) -> dict[str, list[str | None]]:
        """By role the texts that this experiment puts; None for what the model's files say."""
        if not encodes(model):
            return {}
        put = {
            role: {
                prompt_of(model, dataset, role, split)["prompt"]
                for dataset in self.experiment.datasets
                for split in (dataset.splits if role == "query" else [None])
            }
            for role in ROLES
        }
        return {role: sorted(texts, key=lambda t: (t is None, t)) for role, texts in put.items()}

    # Datasets

    def corpus(self, dataset: ResolvedDataset) -> Artifact:
        identity = self.outside.corpora[dataset.name]
        spec = {
            "name": dataset.name,
            "source": dataset.source,
            "title": dataset.title,
            "identity": identity,
        }
        key = key_of("corpus", dataset.name, identity, dataset.title)
        folder = self.path("datasets", f"{dataset.slug}-{key}")
        path, beside = f"{folder}/corpus.json", (f"{folder}/corpus.parquet",)
        label, size = dataset.name, (dataset.size_mb or 0) * 1e6
        return self.add(Artifact("corpus", path, spec, (), beside, label=label, download=size))

    def split(self, dataset: ResolvedDataset, split: str) -> Artifact:
        corpus = self.corpus(dataset)
        identity = self.outside.splits[dataset.name][split]
        spec = {
            "name": dataset.name,
            "split": split,
            "source": dataset.source,
            "theirs": dataset.splits[split],
            "identity": identity,
        }
        key = key_of("split", key_in(corpus.path), identity)
        folder = f"{corpus.path.rpartition('/')[0]}/{split}-{key}"
        beside = (f"{folder}/queries.parquet", f"{folder}/qrels.parquet")
        path, label = f"{folder}/split.json", f"{dataset.name} {split}"
        return self.add(Artifact("split", path, spec, (corpus.path,), beside, label=label))

    # Vectors

    def passages(self, model: Model, dataset: ResolvedDataset) -> list[Artifact]:
        """The vectors of a corpus, piece by piece."""
        place = (model.slug, dataset.name)
        if place not in self.known:
            self.known[place] = self.pieces(model, dataset)
        return self.known[place]

    def pieces(self, model: Model, dataset: ResolvedDataset) -> list[Artifact]:
        corpus, stage = self.corpus(dataset), self.stage(model)
        size, tflops = self.outside.sizes[dataset.name], self.experiment.tflops
        settings, identity = self.passage_settings(model, dataset)
        key = key_of("encode", identity(settings), key_in(corpus.path))
        folder = self.path("vectors", dataset.slug, f"{model.name}-{key}")
        of = dataset.shards or cost.pieces(model, size, tflops)
        spec = settings | {
            "staged": stage.spec["folder"],
            "texts": corpus.beside[0],
            "of": of,
            "dataset": dataset.name,
            "address": address(model),
        }
        inputs = (stage.path, corpus.path)
        seconds = cost.encode_seconds(model, size.characters // of, tflops)
        label = f"{model.id} on {dataset.name}"
        return [
            self.add(
                Artifact(
                    "encode",
                    f"{folder}/corpus-{piece}-of-{of}.npy",
                    spec,
                    inputs,
                    beside(model, f"{folder}/corpus-{piece}-of-{of}"),
                    piece,
                    label,
                    seconds,
                )
            )
            for piece in range(of)
        ]

    def passage_settings(
        self, model: Model, dataset: ResolvedDataset
    ) -> tuple[dict[str, Any], Callable[[dict[str, Any]], list[Any]]]:
        """How a corpus is encoded, and what makes such settings part of a key."""
        size = self.outside.sizes[dataset.name]
        settings = {
            "role": "passage",
            **prompt_of(model, dataset, "passage"),
            **corpus_precision(model, size, self.experiment.tflops),
            "title": dataset.title,
        }
        return settings, partial(encode_identity, model, "passage")

    def queries(self, model: Model, dataset: ResolvedDataset, split: str) -> Artifact:
        """The vectors of a split's queries: always float32, since there are few."""
        source, stage = self.split(dataset, split), self.stage(model)
        settings = {
            "role": "query",
            **prompt_of(model, dataset, "query", split),
            "dtype": "float32",
            "compiled": False,
            "title": dataset.title,
        }
        facts = encode_identity(model, "query", settings)
        key = key_of("encode", facts, key_in(source.path))
        folder = self.path("vectors", dataset.slug, f"{model.name}-{key}")
        spec = settings | {
            "staged": stage.spec["folder"],
            "texts": source.beside[0],
            "of": 1,
            "dataset": dataset.name,
            "address": address(model),
        }
        return self.add(
            Artifact(
                "encode",
                f"{folder}/{split}-queries.npy",
                spec,
                (stage.path, source.path),
                beside(model, f"{folder}/{split}-queries"),
                label=f"{model.id} on {dataset.name} {split}",
            )
        )

    def searched(self, model: Model, dataset: ResolvedDataset) -> list[Artifact]:
        """A corpus' vectors as a row searches them."""
        cut = self.cut(model, dataset)
        return self.codes(model, dataset, cut) if model.quantized else cut

    def cut(self, model: Model, dataset: ResolvedDataset) -> list[Artifact]:
        """A corpus' vectors, as long as a row has them."""
        return [self.cut_of(model, dataset, piece) for piece in self.passages(model, dataset)]

    def codes(
        self, model: Model, dataset: ResolvedDataset, vectors: list[Artifact]
    ) -> list[Artifact]:
        """The vectors of a corpus as whole numbers of 8 bits, or as one bit each."""
        ranges, how = None, [key_in(vectors[0].path), str(model.stored)]
        if model.stored == "int8":
            ranges = self.ranges(model, dataset, vectors).path
            how.append(key_in(ranges))
        folder = self.path("vectors", dataset.slug, f"{model.name}-{key_of('quantize', *how)}")
        spec = {"whole": pattern(vectors[0].path), "stored": model.stored, "ranges": ranges} | {
            name: vectors[0].spec[name] for name in ("dtype", "of", "dataset")
        }
        found = []
        for piece in vectors:
            path = f"{folder}/{piece.path.rpartition('/')[2]}"
            files, label = (
                beside(model, path.removesuffix(".npy")),
                f"{piece.label}, {model.stored}",
            )
            needed = (piece.path, ranges) if ranges else (piece.path,)
            found.append(
                self.add(Artifact("quantize", path, spec, needed, files, piece.piece, label))
            )
        return found

    def ranges(self, model: Model, dataset: ResolvedDataset, vectors: list[Artifact]) -> Artifact:
        """The smallest and the largest number of each dimension, for int8."""
        key = key_of("calibrate", key_in(vectors[0].path), model.calibration)
        path = self.path("vectors", dataset.slug, f"{model.name}-{key}", "ranges.json")
        whole = pattern(vectors[0].path)
        spec = {"whole": whole, "calibration": model.calibration}
        return self.add(Artifact("calibrate", path, spec, (whole,), label=vectors[0].label))

    def asked(self, model: Model, dataset: ResolvedDataset, split: str) -> Artifact:
        """A split's queries as a row asks them."""
        return self.cut_of(model, dataset, self.queries(model, dataset, split))

    def cut_of(self, model: Model, dataset: ResolvedDataset, whole: Artifact) -> Artifact:
        """The first numbers of vectors, where a row has only some."""
        if model.cut is None:
            return whole
        key = key_of("cut", key_in(whole.path), model.cut)
        folder = self.path("vectors", dataset.slug, f"{model.name}-{key}")
        path = f"{folder}/{whole.path.rpartition('/')[2]}"
        spec = {"whole": pattern(whole.path), "dimensions": model.cut} | {
            name: whole.spec[name] for name in ("dtype", "of", "dataset")
        }
        files, inputs = beside(model, path.removesuffix(".npy")), (whole.path,)
        label = f"{whole.label}, {model.cut} dimensions"
        return self.add(Artifact("cut", path, spec, inputs, files, whole.piece, label))

    # Runs

    def run(self, model: Model, dataset: ResolvedDataset, split: str) -> Artifact:
        return METHODS[model.kind].run(self, model, dataset, split)

    def hits(
        self,
        model: Model,
        dataset: ResolvedDataset,
        split: str,
        passages: list[Artifact],
        queries: Artifact,
    ) -> list[Artifact]:
        """The best hits of each piece of a large corpus."""
        depth = self.experiment.top_k + 1  # one more: a protocol may drop the query's own passage
        way = [model.way] if model.way else []
        key = key_of("search", key_in(passages[0].path), key_in(queries.path), depth, *way)
        folder = self.path("hits", dataset.slug, f"{model.name}-{key}")
        corpus = self.corpus(dataset)
        of, label = len(passages), f"{model.id} on {dataset.name} {split}"
        spec = {
            "vectors": searched_file(model, queries.path),
            "corpus": corpus.beside[0],
            "top_k": depth,
            "pieces": searched_file(model, pattern(passages[0].path)),
        }
        inputs = (queries.path, corpus.path)
        seconds = cost.search_seconds(self.outside.sizes[dataset.name].documents // of)
        found = []
        for piece, vectors in enumerate(passages):
            path = f"{folder}/{split}-{piece}-of-{of}.parquet"
            beside, needed = (f"{path}.sha256",), (*inputs, vectors.path)
            hit = Artifact("hits", path, spec, needed, beside, piece, label, seconds)
            found.append(self.add(hit))
        return found

    def refined_run(
        self,
        model: Model,
        dataset: ResolvedDataset,
        split: str,
        parts: list[Any],
        spec: dict[str, Any],
    ) -> Artifact:
        """The run of a corpus that is stored in a fast precision: searched, and what can still
        change the first ranks encoded again in float32; with `precision: fast` only measured."""
        settings, facts = self.passage_settings(model, dataset)
        exact = settings | {"dtype": "float32", "compiled": False}
        exact |= {"dimensions": model.cut} if model.cut else {}
        key = key_of("encode", facts(exact), key_in(self.corpus(dataset).path))
        depths = refined_depths(self.experiment.metrics) if model.precision != "fast" else []
        again = {
            "depths": depths,
            "share": cost.again_share(model),
            "staged": self.stage(model).spec["folder"],
            "prompt": settings["prompt"],
            "title": dataset.title,
            "dimensions": model.cut,
            "refined": self.path("refined", dataset.slug, f"{model.name}-{key}"),
        }
        stage, corpus = self.stage(model).path, self.corpus(dataset).path
        inputs = (spec["vectors"], spec["pieces"], stage, corpus)
        return self.run_artifact(
            "refine", model, dataset, split, [*parts, depths, again["share"]], spec | again, inputs
        )

    def run_artifact(
        self,
        step: str,
        model: Model,
        dataset: ResolvedDataset,
        split: str,
        parts: list[Any],
        spec: Spec,
        inputs: tuple[str, ...],
    ) -> Artifact:
        """The artifact of a run that is made from `parts` (for its key) and `inputs`."""
        key = key_of(MERGES.get(step, step), parts, self.experiment.top_k)
        path = self.path("runs", dataset.slug, split, f"{model.slug}-{key}.trec")
        source = self.split(dataset, split)
        common = {
            "top_k": self.experiment.top_k,
            "tag": model.slug,
            "dataset": dataset.name,
            "split": split,
            "corpus": self.corpus(dataset).beside[0],
            "queries": source.beside[0],
        }
        label = f"{model.id} on {dataset.name} {split}"
        measured = [f"{path}.refined.json"] if step == "refine" else []
        beside = (f"{path}.sha256", *measured)
        return self.add(Artifact(step, path, {**spec, **common}, inputs, beside, label=label))

    def scores(self, model: Model, dataset: ResolvedDataset, split: str) -> Artifact:
        run, source = self.run(model, dataset, split), self.split(dataset, split)
        experiment = self.experiment
        spec = {
            "model_id": model.id,
            "model": model.slug,
            "revision": model.revision,
            "dataset": dataset.name,
            "split": split,
            "metrics": list(experiment.metrics),
            "protocols": list(experiment.protocols),
            "default_protocol": experiment.protocol,
            "top_k": experiment.top_k,
            "ignore_identical_ids": dataset.ignore_identical_ids,
            "relevance_threshold": dataset.thresholds.get(split, 1),
            "facts": {
                "title": dataset.title,
                "dataset_revision": dataset.source.get("revision"),
                "stated": own_prompts(model, dataset, split),
                **({"way": model.way} if model.way else {}),
                **({} if self.pinned(model) else {"pinned": False}),
                **({"otherwise": changed} if (changed := otherwise(model)) else {}),
                **({"stored": model.stored} if model.quantized else {}),
            },
        }
        key = key_of("score", spec, key_in(run.path), key_in(source.path))
        base = self.path("scores", dataset.slug, split, f"{model.slug}-{key}")
        encoded = self.encoded(model, dataset, split)
        sidecars = [re.sub(r"npy$", "json", path) for path in encoded]
        per_query = f"{base}.per_query.tsv"
        files = {
            "run": run.path,
            "qrels": source.beside[1],
            "queries": source.beside[0],
            "encoded": sidecars,
            "refined": f"{run.path}.refined.json" if run.step == "refine" else None,
            "per_query": per_query,
        }
        beside = (per_query, f"{per_query}.sha256")
        inputs = (run.path, source.path, *encoded)
        label = f"{model.id} on {dataset.name} {split}"
        return self.add(
            Artifact("score", f"{base}.json", spec | files, inputs, beside, label=label)
        )

    def pinned(self, model: Model) -> bool:
        """Whether what a row is made by can't change: no server, also not of the rows below it."""
        below = (self.experiment.model(name) for name in model.builds_on)
        return not model.served and all(map(self.pinned, below))

    def encoded(self, model: Model, dataset: ResolvedDataset, split: str) -> list[str]:
        """Queries and corpus: their vectors' sidecars say how both were encoded."""
        if not encodes(model):
            return []
        passages = self.searched(model, dataset)[0].path
        return [self.asked(model, dataset, split).path, pattern(passages)]

    def rows(self) -> Iterator[Row]:
        """Every row of the report: a model, a dataset and a split."""
        for model in self.experiment.models:
            for dataset in self.experiment.datasets:
                for split in dataset.splits:
                    if row_name(model.slug, dataset.slug, split) in self.without:
                        continue
                    yield self.row(model, dataset, split)

    def row(self, model: Model, dataset: ResolvedDataset, split: str) -> Row:
        run = self.run(model, dataset, split)
        return Row(model, dataset, split, run, self.scores(model, dataset, split))


def encodes(model: Model) -> bool:
    """Whether a row is made from vectors of its own."""
    return METHODS[model.kind].encodes


def beside(model: Model, stem: str) -> tuple[str, ...]:
    """The files beside the vectors `stem`.npy."""
    return tuple(f"{stem}.{end}" for end in BESIDE[model.kind])


def address(model: Model) -> str | None:
    """Where a server is: no part of what its model is, so of no key."""
    return model.source["server"] if model.served else None


def stated_facts(model: Model) -> dict[str, Any]:
    """What the user states of a model; of a reranker also by which recipe it scores."""
    recipe = model.options.get("engine", "auto") if model.kind == "rerank" else "auto"
    return {**model.facts, **({} if recipe == "auto" else {"recipe": recipe})}


def row_name(model: str, dataset: str, split: str) -> str:
    return f"{model} {dataset} {split}"


def refined_depths(asked: Sequence[str]) -> list[int]:
    """To what depths a run is made exact: the first always, the others where it costs little."""
    cutoffs = {measure(name).cutoff or FIRST for name in asked}
    return sorted({FIRST, *(depth for depth in cutoffs if depth > FIRST)})


def encode_identity(model: Model, role: Role, settings: Mapping[str, Any]) -> list[Any]:
    """All that changes a role's vectors, besides the texts."""
    stated = role_facts(known_facts(model.known), role) | role_facts(model.facts, role)
    # Precision and prompt stand in `settings`, as they will be.
    reaching = {k: v for k, v in stated.items() if k not in ("dtype", f"{role}_prompt")}
    weights = [key_of("stage", model.id), model.weights_key, model.trust_remote_code]
    weights += [model.pins] if model.pins else []
    weights += base_key(model)
    return [weights, reaching, dict(settings)]


def base_key(model: Model) -> list[Spec]:
    """What in a key stands for the model that an adapter changes."""
    return [{"base": model.base.weights_key}] if model.base else []


def task_names(dataset: ResolvedDataset, split: str | None) -> list[str]:
    """The names under which a prompt's table may have a dataset: ours and MTEB's."""
    parts = [split] if split else list(dataset.splits)
    tasks = [dataset.mteb[part]["task"] for part in parts if part in dataset.mteb]
    return [dataset.name, *tasks]


def prompt_of(
    model: Model, dataset: ResolvedDataset, role: Role, split: str | None = None
) -> dict[str, Any]:
    """The text put before each text of a role, where the config or the registry states it.

    None leaves it to the model's own files, which may fill the instruction in before a query.
    """
    name, tasks = f"{role}_prompt", task_names(dataset, split)
    text = prompt_for(model.facts.get(name), tasks)
    if text is None:
        text = prompt_for(model.known.get(name), tasks)
    if text is None and {"query_prompt", "passage_prompt"} & model.known.keys():
        text = ""  # the registry states one prompt, so it states both
    if text is None:
        return {"prompt": None, "instruction": dataset.instruction if role == "query" else None}
    if "{task}" in text:
        if dataset.instruction is None:
            raise UserError(
                f"config.models: '{printable(model.id, 80)}': its {role} prompt has {{task}} but "
                f"the dataset {printable(dataset.name, 80)} has no instruction; give the dataset "
                "instruction: or the model a prompt without {task}"
            )
        text = text.replace("{task}", dataset.instruction)
    return {"prompt": text, "instruction": None}


def otherwise(model: Model) -> dict[str, list[Any]]:
    """What of a model the config says otherwise than the registry: [the registry's, the config's].

    Prompts, lengths, dimensions and precision are told apart as they were in the end, by vectors.
    """
    stated, own = model.facts, model.known
    return {
        name: [own[name], stated[name]]
        for name in ("pooling", "normalize", "attention", "end_token", "include_prompt")
        if name in stated and name in own and stated[name] != own[name]
    }


def own_prompts(model: Model, dataset: ResolvedDataset, split: str) -> list[str]:
    """The prompts that the config states and the model itself has otherwise: verdicts tell them
    from the model's own."""
    found = []
    for role in ROLES:
        name, of = f"{role}_prompt", split if role == "query" else None
        without = {k: v for k, v in model.facts.items() if k != name}
        if name in model.facts:
            put, own = prompt_of(model, dataset, role, of), None
            with suppress(UserError):  # the model's own has {task}, the dataset no instruction
                own = prompt_of(replace(model, facts=without), dataset, role, of)
            found += [name] if put != own else []
    return found


def corpus_precision(model: Model, size: Estimate, tflops: float) -> dict[str, Any]:
    """What a corpus is computed in, and whether its layers are compiled: by the amount of work."""
    stated = model.facts.get("dtype", model.known.get("dtype", "auto"))
    little = cost.encode_work(model, size.characters) < cost.LITTLE
    little = little or model.served or not METHODS[model.kind].refines
    if stated != "auto":
        dtype = str(stated)
    else:
        dtype = "float32" if little else "fast"
    compiled = dtype != "float32" and cost.compiling_pays(model, size.characters, tflops)
    return {"dtype": dtype, "compiled": compiled}


# What makes a row's run: one entry for each kind of row


def key_in(path: str) -> str:
    """The key that an artifact's path holds, at the end of its file's name or its folder's."""
    found = re.search(r"-([0-9a-f]{12})(?:\.[^/]*)?(?:/[^/]*)?$", path)
    if found is None:
        raise ValueError(f"no key in {path}")
    return found[1]


def searched_run(c: Catalogue, model: Model, dataset: ResolvedDataset, split: str) -> Artifact:
    passages, queries = c.searched(model, dataset), c.asked(model, dataset, split)
    parts = [key_in(passages[0].path), key_in(queries.path), *([model.way] if model.way else [])]
    needed = (queries.path, pattern(passages[0].path))
    vectors, pieces = (searched_file(model, path) for path in needed)
    spec: dict[str, Any] = {"vectors": vectors, "pieces": pieces}
    if model.quantized:
        how = {"rescore": model.rescore}
        return c.run_artifact("stored", model, dataset, split, [parts, how], spec | how, needed)
    if METHODS[model.kind].refines and passages[0].spec["dtype"] != "float32":
        return c.refined_run(model, dataset, split, parts, spec)
    if len(passages) <= MOST_AT_ONCE:
        return c.run_artifact("search", model, dataset, split, parts, spec, needed)
    hits = c.hits(model, dataset, split, passages, queries)
    spec = {"hits": pattern(hits[0].path)}
    return c.run_artifact("merge", model, dataset, split, parts, spec, (spec["hits"],))


def searched_file(model: Model, path: str) -> str:
    """The piece that a row's way searches, of those that are named after `path`."""
    ends = {"sparse": SPARSE, "multivector": TOKENS}
    return path.removesuffix(".npy") + ends.get(model.way or "", "") + ".npy"


def m3_run(c: Catalogue, model: Model, dataset: ResolvedDataset, split: str) -> Artifact:
    """One of BGE-M3's ways, or the weighted sum of all for what any of them finds."""
    if model.way != "weighted":
        return searched_run(c, model, dataset, split)
    base = model.slug.removesuffix(f"-{model.way}")
    ways = [replace(model, way=way, slug=f"{base}-{way}") for way in WAYS if way != model.way]
    runs = [c.run(way, dataset, split).path for way in ways]
    vectors = c.queries(model, dataset, split).path
    pieces = pattern(c.passages(model, dataset)[0].path)
    spec = {"runs": runs, "vectors": vectors, "pieces": pieces, "weights": list(model.weights)}
    parts = [[key_in(run) for run in runs], list(model.weights)]
    inputs = (*runs, vectors, pieces)
    return c.run_artifact("weighted", model, dataset, split, parts, spec, inputs)


def bm25_run(c: Catalogue, model: Model, dataset: ResolvedDataset, split: str) -> Artifact:
    source = c.split(dataset, split)
    spec = {"options": model.options, "title": dataset.title}
    inputs = (c.corpus(dataset).path, source.path)
    parts = [model.options, key_in(source.path)]
    return c.run_artifact("bm25", model, dataset, split, parts, spec, inputs)


def fused_run(c: Catalogue, model: Model, dataset: ResolvedDataset, split: str) -> Artifact:
    runs = [c.run(c.experiment.model(i), dataset, split).path for i in model.builds_on]
    options = {k: v for k, v in model.options.items() if k != "runs"}
    spec = {"options": options, "runs": runs}
    parts = [options, [key_in(run) for run in runs]]
    return c.run_artifact("fuse", model, dataset, split, parts, spec, tuple(runs))


def reranked_run(c: Catalogue, model: Model, dataset: ResolvedDataset, split: str) -> Artifact:
    base = c.run(c.experiment.model(model.options["run"]), dataset, split)
    stage, source, corpus = c.stage(model), c.split(dataset, split), c.corpus(dataset)
    options = {k: v for k, v in model.options.items() if k not in ("run", "shards")}
    parts = [options, key_in(base.path), key_in(stage.path), key_in(source.path)]
    key, of = key_of("rerank", parts), model.options.get("shards", 1)
    spec = {
        "options": options,
        "base": base.path,
        "staged": stage.spec["folder"],
        "corpus": corpus.beside[0],
        "queries": source.beside[0],
        "title": dataset.title,
        "of": of,
        "address": address(model),
    }
    inputs = (base.path, stage.path, source.path, corpus.path)
    folder = c.path("reranked", dataset.slug, f"{model.name}-{key}")
    label = f"{model.id} on {dataset.name} {split}"
    pieces = []
    for piece in range(of):
        path = f"{folder}/{split}-{piece}-of-{of}.parquet"
        beside = (f"{path}.sha256",)
        pieces.append(c.add(Artifact("rerank", path, spec, inputs, beside, piece, label)))
    spec = {"scores": pattern(pieces[0].path)}
    return c.run_artifact("merge_reranked", model, dataset, split, parts, spec, (spec["scores"],))


def late_run(c: Catalogue, model: Model, dataset: ResolvedDataset, split: str) -> Artifact:
    """Another row's best hits, scored again by the vectors of their tokens."""
    base = c.run(c.experiment.model(model.options["run"]), dataset, split)
    vectors = c.queries(model, dataset, split).path
    pieces = pattern(c.passages(model, dataset)[0].path)
    depth = model.options["depth"]
    spec = {"base": base.path, "vectors": vectors, "pieces": pieces, "depth": depth}
    parts = [depth, key_in(base.path), key_in(pieces), key_in(vectors)]
    inputs = (base.path, vectors, pieces)
    return c.run_artifact("maxsim", model, dataset, split, parts, spec, inputs)


def foreign_run(c: Catalogue, model: Model, dataset: ResolvedDataset, split: str) -> Artifact:
    """A run that was made elsewhere: checked, put into our order, and scored like any other."""
    found = model.options.get(f"{dataset.name}/{split}") or model.options.get("")
    if found is None:
        raise UserError(
            f"config.models: '{printable(model.id, 80)}' has no run for {dataset.name} {split}; "
            "give run: {" + f"{dataset.name}/{split}: file" + "}"
        )
    spec = {"file": found["file"]}
    source = c.split(dataset, split)
    parts = [found["digest"], key_in(source.path)]
    return c.run_artifact("run", model, dataset, split, parts, spec, (source.path,))


@dataclass(frozen=True)
class Method:
    """How rows of one kind are made.

    `encodes`: from vectors of their own. `refines`: a corpus may be stored in a fast precision, of
    which the first ranks are encoded again in float32.
    """

    run: Callable[[Catalogue, Model, ResolvedDataset, str], Artifact]
    encodes: bool = False
    refines: bool = False


METHODS: dict[str, Method] = {
    "dense": Method(searched_run, encodes=True, refines=True),
    "sparse": Method(searched_run, encodes=True),
    "multivector": Method(searched_run, encodes=True),
    "m3": Method(m3_run, encodes=True),
    "bm25": Method(bm25_run),
    "fuse": Method(fused_run),
    "rerank": Method(reranked_run),
    "late": Method(late_run, encodes=True),
    "run": Method(foreign_run),
}
