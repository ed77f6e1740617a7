"""A config becomes an experiment: models and datasets, typed, with all that can be wrong refused.

Nothing here knows of files to be made; `artifacts` does.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from .. import names
from ..datasets.registry import Registry, ResolvedDataset, resolve
from ..errors import UserError, printable
from ..models.facts_table import AUTO, Vectors
from ..schema import nearest, validate
from ..sources.address import check_url
from .keys import key_of

if TYPE_CHECKING:
    from ..evaluation.metrics import Measure

Way = Literal["dense", "sparse", "multivector", "weighted"]
WAYS: tuple[Way, ...] = get_args(Way)
WEIGHTS = (0.4, 0.2, 0.4)  # of the first three ways, as BGE-M3's authors recommend them
Stored = Literal["float", "int8", "binary"]
QUANTIZED: tuple[Stored, ...] = ("int8", "binary")
RESCORE = 2  # hits scored again for each that is kept, as sentence-transformers does
CALIBRATION = 10_000  # rows of a corpus that the ranges of int8 are taken from
Kind = Literal[Vectors, "bm25", "fuse", "rerank", "late", "run"]
ROWS: tuple[Kind, ...] = ("bm25", "fuse", "rerank", "run")  # rows that are no embedding model
LOCAL = ("path", "demo")  # sources that count by their files' digest, wherever they lie
# Of a model on a server: what is ours to say. All else its server decides.
SERVED_KEYS = {"id", "alias", "source", "revision", "rerank", "kind", "engine", "normalize"}
SERVED_KEYS |= {"query_prompt", "passage_prompt", "dimensions", "precision"}
SERVED_KEYS |= {"stored", "rescore", "calibration"}
COMMIT = re.compile(r"[0-9a-f]{40}")
# Entry keys that say where bytes come from or what the row is; the others are facts of the model.
NO_FACTS = {
    "weights",
    "id",
    "alias",
    "source",
    "revision",
    "mirrors",
    "sha256",
    "allow_pickle",
    "precision",
    "environment",
    "code_revision",
    "base",
    "stored",
    "rescore",
    "calibration",
}


@dataclass(frozen=True)
class Model:
    """A row of the report: an embedding model, or a BM25, fusion, reranking or foreign run.

    A reranking by a multi-vector model's own vectors is called `late`.

    `source` is what its bytes are: a pin, or the digest of a local folder. `facts` are those that
    the user states, `known` is the registry's entry. `cut`: how many numbers of each vector count
    in this row, where the config asks for several lengths of one encoding. `way`: of a model with
    several kinds of vectors, by which this row searches; `weights` are those of their sum.
    `stored`: what a corpus' vectors are searched as, where the config says it; for each hit that is
    kept `rescore` are scored again, `calibration` rows give the ranges of int8.
    """

    id: str
    slug: str
    kind: Kind
    options: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    mirrors: tuple[Mapping[str, Any], ...] = ()
    identity: Mapping[str, Any] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)
    allow_pickle: bool = False
    trust_remote_code: bool = False
    precision: Literal["exact", "full", "fast"] = "exact"
    facts: Mapping[str, Any] = field(default_factory=dict)
    known: Mapping[str, Any] = field(default_factory=dict)
    cut: int | None = None
    way: Way | None = None
    weights: tuple[float, ...] = WEIGHTS
    stored: Stored | None = None
    rescore: int = RESCORE
    calibration: int = CALIBRATION
    weight_bytes: int | None = None  # of a local folder
    environment: str = ""  # of its own, in which it is staged and run; "" is the workflow's
    pins: str = ""  # the digest of that environment's pins
    code_revision: str = ""  # the commit of another repository that its code lies in
    base: "Model | None" = None  # of an adapter the model that it changes

    @property
    def name(self) -> str:
        """Its name in the store, shared by all rows of one id, whatever their aliases."""
        return names.slug(self.id)

    @property
    def revision(self) -> str:
        """Commit, package pin or digest of a folder; "" for a row without weights."""
        return str(self.identity.get("revision") or next(iter(self.identity.values()), ""))

    @property
    def weights_key(self) -> str:
        elsewhere = [self.code_revision] if self.code_revision else []
        pins = self.sha256, self.allow_pickle, *elsewhere
        return key_of("download", self.identity, pins) if self.identity else ""

    @property
    def served(self) -> bool:
        """Whether a server computes it."""
        return "server" in self.source

    @property
    def quantized(self) -> bool:
        """Whether this row searches codes in place of vectors."""
        return self.stored in QUANTIZED

    @property
    def builds_on(self) -> tuple[str, ...]:
        """Ids of the rows whose runs this row is made from."""
        if self.kind == "fuse":
            return tuple(self.options["runs"])
        return (self.options["run"],) if self.kind in ("rerank", "late") else ()


@dataclass(frozen=True)
class Experiment:
    """What one config asks for."""

    name: str
    store: str
    models: tuple[Model, ...]
    datasets: tuple[ResolvedDataset, ...]
    top_k: int
    metrics: tuple[str, ...]
    protocols: tuple[str, ...]
    protocol: str
    tflops: float
    reference: Mapping[str, Any]
    published: tuple[str, ...]  # tables of the user's own published numbers

    def __post_init__(self) -> None:
        check_rows(self.models)

    def model(self, name: str) -> Model:
        """The row of an id, or of a row's own name where an id has several."""
        return rows_by_name(self.models)[name]


def absolute_paths(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make the paths in one config file absolute; they are relative to its folder."""

    def locate(mapping: Any, *keys: str) -> None:
        for key in keys:
            if isinstance(mapping, dict) and isinstance(mapping.get(key), str):
                mapping[key] = str((folder / Path(mapping[key]).expanduser()).resolve())

    for entry in _mappings(config.get("models")):
        locate(entry, "run")
        if isinstance(entry.get("run"), dict):
            locate(entry["run"], *entry["run"])
        locate(entry.get("source"), "path")
        locate(entry.get("base"), "path")
        for mirror in entry["mirrors"] if isinstance(entry.get("mirrors"), list) else []:
            locate(mirror, "path")
    for entry in _mappings(config.get("datasets")):
        locate(entry.get("source"), "beir", "flagembedding")
    if isinstance(config.get("published"), str):
        locate(config, "published")
    elif isinstance(config.get("published"), list):
        holder = {str(i): path for i, path in enumerate(config["published"])}
        locate(holder, *holder)
        config["published"] = list(holder.values())
    return config


def _mappings(entries: Any) -> list[dict[str, Any]]:
    return [e for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []


def read_experiment(
    config: dict[str, Any],
    schema: dict[str, Any],
    models: Mapping[str, Any],
    datasets: Registry,
    path_digest: Callable[[str], str],
    file_digest: Callable[[str], str],
    server_identity: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
    pins_digest: Callable[[str], str] = str,
) -> Experiment:
    """The experiment that `config` asks for; `UserError` for all that can be known to be wrong.

    `models` and `datasets` are the registries; `path_digest` gives the digest of a local model's
    files (of the demonstration model's recipe where it is asked for a seed), `file_digest` that of
    one file, `server_identity` what a server says of itself, `pins_digest` that of an environment's
    pins. Fills the schema's defaults into `config`.
    """
    validate(config, schema, "config")
    evaluate = config["evaluate"]
    for metric in evaluate["metrics"]:
        measure(metric)
    check_depth(evaluate["metrics"], config["retrieve"]["top_k"])
    names.check_entries(config["models"])
    names.check_entries([entry for entry, _ in entries(config["models"], models)])
    resolved = resolve(config["datasets"], datasets)
    published = config.get("published") or []
    digests = Digests(path_digest, file_digest, server_identity, pins_digest)
    return Experiment(
        name=config["experiment"],
        store=config["store"],
        models=tuple(
            read_model(entry, models, digests, part)
            for entry, part in entries(config["models"], models)
        ),
        datasets=tuple(resolved),
        top_k=config["retrieve"]["top_k"],
        metrics=tuple(evaluate["metrics"]),
        protocols=tuple(dict.fromkeys([evaluate["protocol"], *evaluate["protocols"]])),
        protocol=evaluate["protocol"],
        tflops=config["plan"]["tflops"],
        reference=config["reference"],
        published=(published,) if isinstance(published, str) else tuple(published),
    )


def measure(name: str) -> "Measure":
    """What a metric's name means; `UserError` if nothing.

    Imported here: every job reads a plan, few score, and numpy and pyarrow take 0.4 s.
    """
    from ..evaluation.metrics import parse

    return parse(name)


def check_depth(asked: Sequence[str], top_k: int) -> None:
    """A measure that reads deeper than the runs go would be a smaller number without a word."""
    for name in asked:
        cutoff = measure(name).cutoff
        if cutoff is not None and cutoff > top_k:
            raise UserError(
                f"config.retrieve.top_k: {top_k} hits are kept, but {name} reads {cutoff}; "
                f"set top_k to {cutoff} or more"
            )


class Part(NamedTuple):
    """What of an encoding one row searches, as `Model` has it."""

    cut: int | None = None
    way: Way | None = None
    stored: Stored | None = None


def entries(
    models: Sequence[Mapping[str, Any]], known: Mapping[str, Any]
) -> Iterator[tuple[Mapping[str, Any], Part]]:
    """The config's entries, one for each of several `dimensions`, each of several forms in which
    vectors are stored and each way of an m3 model."""
    for entry in models:
        slug = names.entry_slug(entry)
        if row_kind(entry, known.get(entry["id"], {})) == "m3":
            for way in WAYS:
                yield {**entry, "alias": f"{slug}-{way}"}, Part(way=way)
            continue
        cuts, forms = entry.get("dimensions"), entry.get("stored")
        shared = {k: v for k, v in entry.items() if k != "dimensions" or not isinstance(v, list)}
        for cut in cuts if isinstance(cuts, list) else (None,):
            for form in forms if isinstance(forms, list) else (forms,):
                ends = [f"__d{cut}"] if cut else []
                ends += [f"__{form}"] if isinstance(forms, list) else []
                alias = {"alias": slug + "".join(ends)} if ends else {}
                yield shared | alias, Part(cut=cut, stored=form)


@dataclass(frozen=True)
class Digests:
    """What lies outside the config: digests of a folder, of a file and of an environment's pins,
    and a server's identity."""

    path: Callable[[str], str]
    file: Callable[[str], str]
    server: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    pins: Callable[[str], str]


def read_model(
    entry: Mapping[str, Any],
    models: Mapping[str, Any],
    digests: Digests,
    part: Part = Part(),  # noqa: B008
) -> Model:
    """The row of one entry; `models` is the registry."""
    slug, known = names.entry_slug(entry), models.get(entry["id"], {})
    kind = row_kind(entry, known)
    check_stored(entry, kind)
    if kind == "run":
        stated = entry["run"]
        files = stated if isinstance(stated, Mapping) else {"": stated}
        runs = {row: {"file": file, "digest": digests.file(file)} for row, file in files.items()}
        return Model(entry["id"], slug, kind, runs)
    if part.cut is not None and kind != "dense":
        raise UserError(
            f"config.models: '{printable(entry['id'], 80)}': dimensions cut dense vectors; "
            f"this row's kind is {kind}"
        )
    if "weights" in entry and kind != "m3":
        raise UserError(
            f"config.models: '{printable(entry['id'], 80)}': weights are those of kind: m3; "
            f"this row's kind is {kind}"
        )
    options = dict(entry.get("rerank" if kind == "late" else kind, {}))
    if kind in ("bm25", "fuse"):
        return Model(entry["id"], slug, kind, options)
    given = entry.get("source", "hub")
    # Which revision a server has is not for the registry to say.
    pinned = None if "server" in given else known.get("revision")
    revision = entry.get("revision", pinned)
    source = model_source(entry["id"], given, revision)
    mirrors = tuple(model_source(entry["id"], m, revision) for m in entry.get("mirrors", []))
    if mirrors and not entry.get("sha256"):
        raise UserError(
            f"config.models: '{printable(entry['id'], 80)}' has mirrors but no sha256: a mirror "
            "could send any bytes under this revision; pin the weights with sha256: {file: digest}"
        )
    if "server" in source:
        check_served(entry, kind)
    elif known.get("unsupported"):
        raise UserError(f"{printable(entry['id'], 80)}: not supported: {known['unsupported']}")
    environment, code_revision = entry.get("environment", ""), entry.get("code_revision", "")
    if code_revision and not COMMIT.fullmatch(code_revision):
        raise UserError(
            f"config.models: '{printable(entry['id'], 80)}': code_revision "
            f"'{printable(code_revision, 60)}' can move; set it to the full commit hash, 40 "
            "lowercase hex digits, of the repository that its code lies in"
        )
    facts = {k: v for k, v in entry.items() if k not in NO_FACTS | {*ROWS, "trust_remote_code"}}
    return Model(
        id=entry["id"],
        slug=slug,
        kind=kind,
        options=options,
        source=source,
        mirrors=mirrors,
        identity=identity(source, digests),
        sha256=entry.get("sha256", {}),
        allow_pickle=entry.get("allow_pickle", False),
        trust_remote_code=entry.get("trust_remote_code", False),
        precision=entry.get("precision", "exact"),
        facts={k: v for k, v in facts.items() if (k, v) != ("kind", AUTO)},
        known=known,
        cut=part.cut,
        way=part.way,
        weights=tuple(entry.get("weights", WEIGHTS)),
        stored=part.stored,
        rescore=entry.get("rescore", RESCORE),
        calibration=entry.get("calibration", CALIBRATION),
        weight_bytes=weight_bytes(source),
        environment=environment,
        pins=digests.pins(environment) if environment else "",
        code_revision=code_revision,
        base=base_model(entry, models, digests),
    )


def base_model(
    entry: Mapping[str, Any], models: Mapping[str, Any], digests: Digests
) -> Model | None:
    """The model that an adapter changes: files, and no row."""
    given = entry.get("base")
    if not given:
        return None
    model_id = given.get("hub", f"{entry['id']}-base")
    names.check_id(model_id)
    known = models.get(given.get("hub"), {})
    source = model_source(entry["id"], given, known.get("revision"), "base")
    return Model(
        id=model_id,
        slug=names.slug(model_id),
        kind="dense",
        source=source,
        identity=identity(source, digests),
        allow_pickle=entry.get("allow_pickle", False),
        known=known,
        weight_bytes=weight_bytes(source),
    )


def check_served(entry: Mapping[str, Any], kind: Kind) -> None:
    """Refuse what can't be said of a model on a server: it encodes as it was started."""
    where = f"config.models: '{printable(entry['id'], 80)}'"
    if kind not in ("dense", "rerank"):
        raise UserError(
            f"{where}: a server gives dense vectors, this row's kind is {kind}; set kind: dense"
        )
    others = entry.keys() - SERVED_KEYS
    if engine := {entry.get("engine", AUTO)} - {AUTO, "http"}:
        others |= {f"engine: {engine.pop()}"}
    if kind == "rerank":
        # The schema has filled its defaults in, so what differs from them was stated.
        plain: dict[str, Any] = {"engine": AUTO, "max_length": 512, "batch_size": 32}
        plain |= {"dtype": "float32", "instruction": None, "options": {}}
        options = entry["rerank"]
        others |= {f"rerank.{k}" for k, v in plain.items() if options.get(k, v) != v}
    if others:
        raise UserError(
            f"{where}: {', '.join(sorted(others))}: its server decides that, not this config; "
            "leave it out"
        )


def check_stored(entry: Mapping[str, Any], kind: Kind) -> None:
    """`stored` is of dense vectors, and what says how they are searched then stands beside it."""
    where = f"config.models: '{printable(entry['id'], 80)}'"
    stated = entry.get("stored", [])
    forms = stated if isinstance(stated, list) else [stated]
    if forms and kind != "dense":
        raise UserError(f"{where}: stored is of dense vectors; this row's kind is {kind}")
    for name, of in (("rescore", QUANTIZED), ("calibration", ("int8",))):
        if name in entry and not set(of) & set(forms):
            raise UserError(
                f"{where}: {name} is of stored: {' or '.join(of)}; it does nothing here"
            )


def row_kind(entry: Mapping[str, Any], known: Mapping[str, Any]) -> Kind:
    """What a row is made from. Of a model it is known before its files are there, since what its
    vectors' files are called depends on it."""
    stated = entry.get("kind", AUTO)
    kind: Vectors = known.get("kind", "dense") if stated == AUTO else stated
    named = next((k for k in ROWS if k in entry), None)
    if named == "rerank" and kind == "multivector":
        return "late"
    return named or kind


def weight_bytes(source: Mapping[str, Any]) -> int | None:
    """Size of a local folder's weights: what tells how large a model is that nobody knows."""
    if "path" not in source:
        return None
    files = Path(source["path"]).glob("*.safetensors")
    return sum(file.stat().st_size for file in files) or None


def identity(source: Mapping[str, Any], digests: Digests) -> Mapping[str, Any]:
    """What decides a source's bytes: its pin, or the digest of its files wherever they lie; of a
    server what it says of itself."""
    if "server" in source:
        return digests.server(source)
    local = next((kind for kind in LOCAL if kind in source), None)
    return {local: digests.path(str(source[local]))} if local else source


def model_source(model_id: str, source: Any, revision: str | None, key: str = "") -> dict[str, Any]:
    """A source as the plan has it, pinned; `key`: under which one of the entry it stands."""
    where = f"config.models: '{printable(model_id, 80)}'" + (f": {key}" if key else "")
    given: dict[str, Any] = {"hub": model_id} if source == "hub" else dict(source)
    if "server" in given:
        check_url(given["server"], where)
        return {"model": model_id, **given, **({"revision": revision} if revision else {})}
    if len(given.keys() - {"revision"}) != 1:
        raise UserError(f"{where}: a source is one of hub, wheel, wheels, path, demo and server")
    if "hub" in given:
        given.setdefault("revision", revision)
        if not COMMIT.fullmatch(given["revision"] or ""):
            raise UserError(f"{where}: {moving(given['hub'], given['revision'])}")
    return given


def moving(repository: str, revision: str | None) -> str:
    wanted = "set revision: to the full commit hash, 40 lowercase hex digits"
    if not revision:
        return f"no revision is known for {printable(repository, 80)}; {wanted}"
    return f"revision '{printable(revision, 60)}' can move; {wanted}"


def check_rows(models: Sequence[Model]) -> None:
    """Fusions and rerankings name rows that exist, and never themselves in a circle."""
    known = rows_by_name(models)
    for model in models:
        for other in model.builds_on:
            if other not in known:
                raise UserError(
                    f"config.models: '{printable(model.id, 80)}' builds on "
                    f"'{printable(other, 80)}', which is no row here{nearest(other, known)}"
                )
    list(in_order(models))


def rows_by_name(models: Sequence[Model]) -> dict[str, Model]:
    """Rows by what others call them: an id stands for its first row, a slug for itself."""
    known: dict[str, Model] = {}
    for name, model in [(m.id, m) for m in models] + [(m.slug, m) for m in models]:
        known.setdefault(name, model)
    return known


def in_order(models: Sequence[Model]) -> Iterator[Model]:
    """The rows, each after those that it builds on; refuses a circle."""
    done: set[str] = set()
    waiting = list(models)
    while waiting:
        ready = [m for m in waiting if done.issuperset(m.builds_on)]
        if not ready:
            raise UserError(
                "config.models: these rows build on each other in a circle: "
                + ", ".join(printable(m.id, 80) for m in waiting)
            )
        yield from ready
        done.update(name for m in ready for name in (m.id, m.slug))
        waiting = [m for m in waiting if not any(m is other for other in ready)]
