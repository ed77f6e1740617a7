"""The plan of a config as it lies on disk: registries read, local data digested, then compiled."""

import json
import os
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from ..datasets.local import corpus_identity, split_identity
from ..datasets.registry import estimate, read_registry
from ..errors import UserError, printable
from ..files import digest, sha256
from ..models.facts_table import schema_properties
from ..models.known import read_models
from ..sources import snapshot
from ..sources.environments import pins_digest, pins_file
from .artifacts import Outside
from .compile import compile_plan
from .config import (
    Digests,
    Experiment,
    Model,
    Part,
    absolute_paths,
    entries,
    read_experiment,
    read_model,
)
from .plan import Plan, read_plan

Config = dict[str, Any]
# Rows that a workflow leaves out which another one starts to finish what it could not.
WITHOUT = "EMBED_REPRO_WITHOUT"
GIVEN = "EMBED_REPRO_PLAN"  # a plan's file


def read_config(repository: Path, files: Iterable[Path | str], overrides: Config) -> Config:
    """The user's config files, in order, each with paths made absolute, then `--config`.

    Without a file it is the repository's own config.yaml: a user's file is complete by itself.
    """
    merged: Config = {}
    for file in list(files) or [repository / "config.yaml"]:
        path = Path(file).resolve()
        update(merged, absolute_paths(load(path), path.parent))
    update(merged, overrides)
    return merged


def load(path: Path) -> Config:
    try:
        value = yaml.load(path.read_text("utf-8"), yaml.CSafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: can't be read as YAML ({printable(error, 300)})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds no mapping; see config.yaml for its keys")
    return value


def update(config: Config, more: Config) -> None:
    """Lay `more` over `config`, mapping by mapping, as Snakemake does."""
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(config.get(key), dict):
            update(config[key], value)
        else:
            config[key] = value


def build_plan(
    config: Config, repository: Path, files: Iterable[Path | str], overrides: Config
) -> Plan:
    """Compile the plan of `config`; `UserError` for all that can be known to be wrong.

    In a workflow that another one starts with a plan of its own (`GIVEN`), that one.
    """
    if given := os.environ.get(GIVEN):
        return read_plan(given)
    scope = read_scope(config, repository)
    without = frozenset(json.loads(os.environ.get(WITHOUT, "[]")))
    command = command_line(repository, files, overrides)
    plan = compile_plan(scope.experiment, scope.outside, command, without)
    return replace(plan, config=scope.config)


@dataclass(frozen=True)
class Scope:
    """A config that was read, with all that lies outside the store."""

    config: Config  # complete, its paths absolute
    experiment: Experiment
    outside: Outside
    read: Callable[..., Model]  # `read_model` of an entry of a model

    def variant(self, model: Model, changed: Mapping[str, Any], alias: str) -> Model:
        """A row's model with keys of its entry replaced, those that are None taken away."""
        known = read_models(Path(self.outside.registry))
        rows = zip(self.experiment.models, entries(self.config["models"], known), strict=True)
        entry, part = next(found for one, found in rows if one is model)
        kept = {k: v for k, v in entry.items() if k not in changed}
        new = {k: v for k, v in changed.items() if v is not None}
        entry = {**kept, **new, "alias": alias}
        return self.read(entry, part._replace(cut=None) if "dimensions" in changed else part)


def read_scope(config: Config, repository: Path) -> Scope:
    """Read the registries and digest local data; `UserError` for all that is wrong."""
    rules = repository / "rules"
    models = read_models(rules / "registry")
    datasets = read_registry(rules / "registry" / "datasets.yaml")
    config = absolute_paths(config, Path.cwd())
    known = config_schema(repository), models, datasets
    # Once without digests: a mistake is told before any file is read.
    read_experiment(
        config,
        *known,
        path_digest=str,
        file_digest=str,
        pins_digest=lambda name: str(pins_file(repository / "envs", name)),
    )
    cache = Path(config["store"]) / "models" / ".cache"

    def path_digest(source: str) -> str:
        """Of a folder's files, or of what the demonstration model is built from."""
        if source.isdigit():
            parts = ["scripts/embedrepro/sources/demo_model.py", "data/demo/corpus.jsonl"]
            return digest([int(source), *(sha256(repository / part) for part in parts)])
        return snapshot.path_digest(source, cache)

    def server_identity(source: Mapping[str, Any]) -> Mapping[str, Any]:
        from ..sources.server import server_identity

        return server_identity(source, cache)

    pins = partial(pins_digest, repository / "envs")
    digests = Digests(path_digest, file_digest, server_identity, pins)
    experiment = read_experiment(
        config,
        *known,
        path_digest=digests.path,
        file_digest=digests.file,
        server_identity=digests.server,
        pins_digest=digests.pins,
    )
    tables = [*sorted((rules / "registry").iterdir()), *map(Path, experiment.published)]
    outside = Outside(
        corpora={d.name: corpus_identity(d.source, cache) for d in experiment.datasets},
        splits={
            d.name: {s: split_identity(d.source, theirs, cache) for s, theirs in d.splits.items()}
            for d in experiment.datasets
        },
        sizes={d.name: estimate(d, cache) for d in experiment.datasets},
        registry=str(rules / "registry"),
        environments=str(repository / "envs"),
        published={path.name: file_digest(str(path)) for path in tables},
    )

    def read(entry: Config, part: Part) -> Model:
        return read_model(entry, models, digests, part)

    return Scope(config, experiment, outside, read)


def config_schema(repository: Path) -> Config:
    """The schema of a config, with the facts that a user may state of a model."""
    schema: Config = read_yaml(repository / "rules" / "schemas" / "config.schema.yaml")
    schema["$defs"]["model"]["properties"] |= schema_properties("user")
    return schema


def read_yaml(path: Path) -> Any:
    # The C loader: every job of a cluster reads this anew, and the other one takes a second.
    return yaml.load(path.read_text("utf-8"), yaml.CSafeLoader)


def file_digest(path: str) -> str:
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    return sha256(path)[:12]


def command_line(repository: Path, files: Iterable[Path | str], overrides: Config) -> str:
    """The command that repeats the experiment."""
    given = [f"--configfile {shlex.quote(str(file))}" for file in files]
    if overrides:
        words = (shlex.quote(f"{k}={json.dumps(v)}") for k, v in overrides.items())
        given += ["--config", *words]
    snakefile = shlex.quote(str(repository / "Snakefile"))
    return " ".join(["snakemake", "-s", snakefile, *given, "--cores all"])
