"""A world that is edited: config, dataset, model, repository, store; and what must hold after it.

After an edit the results are byte for byte those of the same config on an empty store, or the run
ended non-zero with one line that says what to do.
"""

import copy
import gzip
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from drive import REPOSITORY, Done, Results, snakemake
from stand_ins import Texts, bert

FRESH: dict[str, dict[str, str] | None] = {}  # state of a world → its results on an empty store
NEEDED = ("Snakefile", "config.yaml", "rules", "profiles", "scripts", "data", "envs")
ID = "me/Tiny-1.0"


@dataclass
class World:
    """Everything that a user can change, below one folder."""

    root: Path
    config: dict[str, Any] = field(default_factory=dict)
    repository: Path = REPOSITORY
    python: Path = Path(sys.executable)
    workdir: str = "w"
    dataset: str = "mine"  # folders, by name below root
    model: str = "model"

    @property
    def data(self) -> Path:
        return self.root / self.dataset

    @property
    def weights(self) -> Path:
        return self.root / self.model

    @property
    def store(self) -> Path:
        return self.root / self.workdir / self.config.get("store", "store")

    def whole_config(self) -> dict[str, Any]:
        """The config with the folders where they are now."""
        config = copy.deepcopy(self.config)
        for entry in config["models"]:
            if entry.get("source") == "model":
                entry["source"] = {"path": str(self.weights)}
        for entry in config["datasets"]:
            if entry["source"] == "mine":
                entry["source"] = {"beir": str(self.data)}
        return config

    def run(self, workdir: Path | None = None) -> Done:
        return snakemake(
            workdir or self.root / self.workdir,
            config=self.whole_config(),
            repository=self.repository,
            python=self.python,
        )

    def results(self, workdir: Path | None = None) -> dict[str, str]:
        folder = workdir or self.root / self.workdir
        return Results(folder, self.config["experiment"]).bytes()

    def state(self) -> str:
        """What decides the results: the config, the files, the repository."""
        config = {k: v for k, v in self.config.items() if k != "store"}
        parts: list[Any] = [config]
        trees = [self.data, self.weights]
        if self.repository != REPOSITORY:
            trees += [self.repository / name for name in ("rules", "scripts")]
        for tree in trees:
            for path in sorted(tree.rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts:
                    digest = hashlib.sha256(path.read_bytes()).hexdigest()
                    parts.append([path.relative_to(tree).as_posix(), digest])
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def fresh(self) -> dict[str, str] | None:
        """The results on an empty store; None where such a run is refused."""
        state = self.state()
        if state not in FRESH:
            workdir = self.root / "fresh"
            shutil.rmtree(workdir, ignore_errors=True)
            kept = self.config.pop("store", None)
            done = self.run(workdir)
            FRESH[state] = self.results(workdir) if done.status == 0 else None
            if kept:
                self.config["store"] = kept
        return FRESH[state]

    def copy(self, root: Path) -> "World":
        shutil.copytree(self.root, root, symlinks=True, ignore=shutil.ignore_patterns("fresh"))
        return World(**{**vars(self), "root": root, "config": copy.deepcopy(self.config)})

    def own_repository(self) -> Path:
        """A copy of the repository that may be edited."""
        if self.repository == REPOSITORY:
            self.repository = self.root / "repository"
            for name in NEEDED:
                source, target = REPOSITORY / name, self.repository / name
                if source.is_dir():
                    ignored = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(source, target, ignore=ignored)
                else:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(source, target)
        return self.repository

    def stored(self, pattern: str) -> Path:
        """One file of the store; the first in order, so that each run takes the same."""
        found = sorted(self.store.glob(pattern))
        assert found, f"nothing in the store is {pattern}"
        return found[0]


def new_world(root: Path, light: bool = False) -> World:
    """A small experiment run to its report; `light`: no row of it loads a model."""
    root.mkdir(parents=True, exist_ok=True)
    first: dict[str, Any] = {"id": ID, "bm25": {"b": 0.2}}
    if not light:
        bert(root / "model")
        first = {"id": ID, "source": "model", "query_prompt": "w1 {task} ", "passage_prompt": ""}
    Texts(1, grades=3).beir(root / "mine", "test", "dev")
    config = {
        "experiment": "x",
        "models": [
            first,
            {"id": "bm25", "bm25": {}},
            {"id": "fused", "fuse": {"runs": [ID, "bm25"]}},
        ],
        "datasets": [{"name": "mine", "source": "mine", "instruction": "w2 w3"}],
        "evaluate": {"metrics": ["nDCG@10", "RR@10", "P@10"]},
    }
    world = World(root, config)
    world.run().ok()
    return world


def check(world: World, done: Done) -> bool:
    """Whether the run ended well; then its results are those of an empty store."""
    if done.status:
        done.refused()
        return False
    fresh = world.fresh()
    assert fresh is not None, f"an empty store refuses what this one ran\n{done.told()}"
    assert world.results() == fresh, done.told()
    return True


# Edits: name → (what is done, what becomes of the results)

Edit = Callable[[World], object]
SAME = "same"  # the old results, and no job that computes
NEW = "new"  # other results, those of an empty store
ANY = "any"  # those of an empty store
TOLD = "told"  # refused with one line, or those of an empty store
CONFIG: dict[str, tuple[Edit, str]] = {}
OUTSIDE: dict[str, tuple[Edit, str]] = {}


def model(**keys: Any) -> Edit:
    return lambda w: w.config["models"][0].update(keys)


def row(number: int, kind: str, **keys: Any) -> Edit:
    return lambda w: w.config["models"][number][kind].update(keys)


def data(**keys: Any) -> Edit:
    return lambda w: w.config["datasets"][0].update(keys)


def top(**keys: Any) -> Edit:
    return lambda w: w.config.update(keys)


def evaluate(**keys: Any) -> Edit:
    return lambda w: w.config["evaluate"].update(keys)


def pins(world: World) -> dict[str, str]:
    return pins_of(world.weights)


def pins_of(folder: Path | str) -> dict[str, str]:
    """`sha256:` of a model's folder."""
    weights = Path(folder, "model.safetensors").read_bytes()
    return {"model.safetensors": hashlib.sha256(weights).hexdigest()}


COLUMNS = ("model_id", "dataset", "split", "metric", "value", "protocol", "source", "tolerance")


def published_cells(value: float) -> dict[str, str]:
    cells = {"model_id": ID, "dataset": "mine", "split": "test", "metric": "nDCG@10"}
    cells |= {"value": str(value), "protocol": "trec_eval", "source": "a paper"}
    return cells | {"tolerance": "0.001"}


def published(value: float) -> Edit:
    """A table of the user's own."""

    def write(world: World) -> None:
        path = world.root / "published.tsv"
        rows = [COLUMNS, [published_cells(value)[name] for name in COLUMNS]]
        path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
        world.config["published"] = str(path)

    return write


CONFIG |= {
    "experiment": (top(experiment="y"), SAME),
    "store moved": (lambda w: (w.store.rename(w.root / w.workdir / "kept"), top(store="kept")(w)),
                    SAME),
    "alias": (model(alias="other"), NEW),
    "sha256": (lambda w: model(sha256=pins(w))(w), ANY),
    "sha256 and mirrors": (lambda w: model(sha256=pins(w), mirrors=[{"wheel": "no-such==1.0"}])(w),
                           ANY),
    "trust_remote_code": (model(trust_remote_code=True), ANY),
    "allow_pickle": (model(allow_pickle=True), ANY),
    "engine": (model(engine="flagembedding"), ANY),
    "dtype": (model(dtype="bfloat16", precision="fast"), ANY),
    "precision": (model(precision="fast"), ANY),
    "pooling": (model(pooling="cls"), NEW),
    "normalize": (model(normalize=False), NEW),
    "attention": (model(attention="causal"), TOLD),
    "end_token": (model(end_token="</s>"), TOLD),
    # BERT's positions count from the left, so its vectors would depend on the padding: refused.
    "padding_side": (model(padding_side="left"), TOLD),
    "query_prompt": (model(query_prompt="Find: "), NEW),
    "passage_prompt": (model(passage_prompt="Say: "), NEW),
    "max_length": (model(max_length=14), NEW),
    "max_length.query": (model(max_length={"query": 12}), NEW),
    "max_length.passage": (model(max_length={"passage": 9}), NEW),
    "dimensions": (model(dimensions=8), NEW),
    "stored": (model(stored="binary"), NEW),
    "bm25.k1": (row(1, "bm25", k1=0.3), NEW),
    "bm25.method": (row(1, "bm25", method="bm25+"), NEW),
    "bm25.tokenizer": (row(1, "bm25", tokenizer="characters"), NEW),
    "fuse.k": (row(2, "fuse", k=5), NEW),
    "fuse.method": (row(2, "fuse", method="sum"), NEW),
    "fuse.weights": (row(2, "fuse", method="sum", weights=[0.2, 3]), NEW),
    "dataset's name": (data(name="yours"), NEW),
    "title": (data(title="drop"), NEW),
    "instruction": (data(instruction="w7 w8 w9"), NEW),
    "ignore_identical_ids": (data(ignore_identical_ids=True), ANY),
    "relevance_threshold": (data(relevance_threshold=2), NEW),
    "splits": (data(splits=["test", "dev"]), NEW),
    "splits renamed": (data(splits={"final": "dev"}), NEW),
    "shards": (data(shards=3), SAME),
    "top_k": (lambda w: (top(retrieve={"top_k": 10})(w), evaluate(metrics=["nDCG@10"])(w)), NEW),
    "metrics": (evaluate(metrics=["AP", "R@5"]), NEW),
    "protocols": (evaluate(protocols=["beir", "pyserini"]), ANY),
    "protocol": (evaluate(protocol="mteb"), ANY),
    "tflops": (top(plan={"tflops": 3}), SAME),
    "reference": (top(reference={"batch_size": 4, "devices": ["cpu"]}), SAME),
    "published": (published(0.5), NEW),
    "another row": (lambda w: w.config["models"].append({"id": "b2", "bm25": {"b": 0.1}}), NEW),
    "a row less": (lambda w: w.config["models"].pop(), NEW),
    "rows in another order": (lambda w: w.config["models"].insert(0, w.config["models"].pop(1)),
                              ANY),
}  # fmt: skip


def lines(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    path.write_text("".join(change(path.read_text("utf-8").splitlines(True))), encoding="utf-8")


def first_changed(held: list[str]) -> list[str]:
    return [held[0].replace("w", "ww"), *held[1:]]


def moved(world: World, name: str) -> None:
    old = getattr(world, name)
    (world.root / old).rename(world.root / f"{old}-moved")
    setattr(world, name, f"{old}-moved")


def gzipped(world: World) -> None:
    path = world.data / "corpus.jsonl"
    with gzip.open(f"{path}.gz", "wb") as file:
        file.write(path.read_bytes())
    path.unlink()


def touched(folder: Path, days: int) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            when = path.stat().st_mtime + 86400 * days
            os.utime(path, (when, when))


def other_weights(world: World) -> None:
    bert(world.root / "scratch", seed=9)
    shutil.copy(world.root / "scratch/model.safetensors", world.weights / "model.safetensors")


def in_json(path: Path, **keys: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys), encoding="utf-8")


def pointer(world: World) -> None:
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1\n"
    (world.weights / "model.safetensors").write_text(text)


def registered(world: World) -> None:
    """What the registry says of the model, where the config is silent."""
    path = world.own_repository() / "rules/registry/models.yaml"
    known = yaml.safe_load(path.read_text("utf-8"))
    known["models"][ID] = {"pooling": "cls", "normalize": True, "source": "a test"}
    path.write_text(yaml.safe_dump(known), encoding="utf-8")


def published_row(world: World) -> None:
    """A row more in the registry's table."""
    path = world.own_repository() / "rules/registry/published.tsv"
    held = path.read_text("utf-8").rstrip("\n")
    header = next(line for line in held.splitlines() if line.startswith("model_id"))
    cells = published_cells(0.25)
    row = "\t".join(cells.get(name, "") for name in header.split("\t"))
    path.write_text(f"{held}\n{row}\n", encoding="utf-8")


def raised(step: str) -> Edit:
    """A step's recipe number: its code gives other bytes from now on."""

    def edit(world: World) -> None:
        repository = world.own_repository() / "scripts"
        paths = [p for p in repository.rglob("keys.py") if "RECIPE = {" in p.read_text("utf-8")]
        (path,) = paths
        text = path.read_text("utf-8")
        found, count = re.subn(rf'"{step}": (\d+)', lambda m: f'"{step}": {int(m[1]) + 1}', text)
        assert count == 1
        path.write_text(found, encoding="utf-8")

    return edit


def removed(pattern: str) -> Edit:
    return lambda w: w.stored(pattern).unlink()


def cut(pattern: str) -> Edit:
    def edit(world: World) -> None:
        path = world.stored(pattern)
        content = path.read_bytes()
        path.unlink()  # it may be a link to the user's own file
        path.write_bytes(content[: len(content) // 2])

    return edit


def another_python(world: World) -> None:
    folder = world.root / "python"
    folder.symlink_to(Path(sys.prefix))
    world.python = folder / "bin" / "python"


def moved_repository(world: World) -> None:
    world.own_repository()
    world.run().ok()
    target = world.root / "elsewhere"
    world.repository.rename(target)
    world.repository = target


def second_user(world: World) -> None:
    """Another working directory on the same store, files older than the store's or newer."""
    top(store=str(world.store))(world)
    world.workdir = "theirs"


OUTSIDE |= {
    "a passage": (lambda w: lines(w.data / "corpus.jsonl", first_changed), NEW),
    "a passage more": (lambda w: lines(w.data / "corpus.jsonl", lambda x: [*x, json.dumps(
        {"_id": "new", "title": "", "text": "w1 w2 w3"}) + "\n"]), NEW),
    "passages in another order": (lambda w: lines(w.data / "corpus.jsonl", lambda x: x[::-1]), ANY),
    "a query": (lambda w: lines(w.data / "queries.jsonl", first_changed), NEW),
    "a judgement": (lambda w: lines(w.data / "qrels/test.tsv", lambda x: x[:-1]), NEW),
    "a judgement of another split": (
        lambda w: lines(w.data / "qrels/dev.tsv", lambda x: x[:-1]), SAME),
    "a file that isn't read": (lambda w: (w.data / "README.md").write_text("about"), SAME),
    "a compressed corpus": (gzipped, ANY),
    "a dataset's folder moved": (lambda w: moved(w, "dataset"), SAME),
    "a dataset older": (lambda w: touched(w.data, -30), SAME),
    "a dataset newer": (lambda w: touched(w.data, 30), SAME),
    "a judged passage that isn't there": (
        lambda w: lines(w.data / "qrels/test.tsv", lambda x: [*x, "q0\tnowhere\t1\n"]), TOLD),
    "weights": (other_weights, NEW),
    "pooling's file": (lambda w: in_json(w.weights / "1_Pooling/config.json",
                       pooling_mode_cls_token=True, pooling_mode_mean_tokens=False), NEW),
    "the length's file": (lambda w: in_json(w.weights / "sentence_bert_config.json",
                          max_seq_length=14), NEW),
    "the tokenizer's file": (lambda w: in_json(w.weights / "tokenizer_config.json",
                             model_max_length=33), ANY),
    "a file beside the weights": (lambda w: (w.weights / "notes.log").write_text("x"), SAME),
    "a model's folder moved": (lambda w: moved(w, "model"), SAME),
    "a model older": (lambda w: touched(w.weights, -30), SAME),
    "a model newer": (lambda w: touched(w.weights, 30), SAME),
    "weights that are a pointer": (pointer, TOLD),
    "the registry's model": (registered, NEW),
    "the registry's published number": (published_row, NEW),
    "recipe encode": (raised("encode"), ANY),
    "recipe corpus": (raised("corpus"), ANY),
    "recipe score": (raised("score"), ANY),
    "a run removed": (removed("runs/**/*.trec"), ANY),
    "scores removed": (removed("scores/**/*.json"), ANY),
    "vectors removed": (removed("vectors/**/*.npy"), ANY),
    "a stage removed": (removed("models/staged/*/stage.json"), ANY),
    "a manifest removed": (removed("models/hub/*/manifest.json"), ANY),
    "a corpus removed": (removed("datasets/*/corpus.parquet"), ANY),
    "queries removed": (removed("datasets/*/*/queries.parquet"), ANY),
    "the whole store removed": (lambda w: shutil.rmtree(w.store), ANY),
    "the results removed": (lambda w: shutil.rmtree(w.root / w.workdir / "results"), SAME),
    "a run cut": (cut("runs/**/*.trec"), TOLD),
    "scores cut": (cut("scores/**/*.json"), TOLD),
    "vectors cut": (cut("vectors/**/*.npy"), TOLD),
    "a corpus cut": (cut("datasets/*/corpus.parquet"), TOLD),
    "a stage cut": (cut("models/staged/*/stage.json"), TOLD),
    "weights in the store cut": (cut("models/hub/*/model.safetensors"), TOLD),
    "a store older than its source": (lambda w: touched(w.store, -60), SAME),
    "a store newer": (lambda w: touched(w.store, 60), SAME),
    "another Python": (another_python, SAME),
    "the repository moved": (moved_repository, SAME),
    "a second user": (second_user, SAME),
    "a second experiment of a second user": (
        lambda w: (second_user(w), top(experiment="z")(w), row(1, "bm25", k1=0.2)(w)), NEW),
}  # fmt: skip


# What these change has nothing to do with a model, so that none need be loaded.
LIGHT = {
    *(name for name in CONFIG if name.startswith(("bm25.", "fuse.", "protocol", "splits"))),
    *("dataset's name", "title", "ignore_identical_ids", "relevance_threshold", "top_k"),
    *("metrics", "tflops", "reference", "published", "another row", "a row less"),
    *("a passage more", "passages in another order", "a judgement", "a compressed corpus"),
    *("a judged passage that isn't there", "the registry's published number", "recipe score"),
    *("a run removed", "scores removed", "a corpus removed", "queries removed", "a run cut"),
    *("scores cut", "a corpus cut", "a second experiment of a second user"),
}


class Bases:
    """The worlds that edits start from, each made when it is first asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.made: dict[bool, World] = {}

    def __call__(self, name: str = "") -> World:
        light = name in LIGHT
        if light not in self.made:
            self.made[light] = new_world(self.root / str(light), light)
        return self.made[light]


def journey(bases: Bases, root: Path, name: str, edit: Edit, kind: str) -> None:
    """One edit of a finished experiment, run again."""
    world = bases(name).copy(root)
    before = world.results()
    edit(world)
    done = world.run()
    if kind == TOLD and done.status:
        done.refused()
        return
    if kind == SAME:
        assert done.ok().computing == [], f"{name}: {done.computing}\n{done.told()}"
        assert world.results() == before, name
        return
    done.ok()
    assert check(world, done), name
    if kind == NEW:
        assert world.results() != before, f"{name} changed nothing"
