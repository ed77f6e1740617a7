"""Read the result files of one experiment into one `Report`, which every output is written from."""

import csv
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from ..files import read_json


class Key(NamedTuple):
    """What one number belongs to; three slugs, as in the files' paths."""

    model: str
    dataset: str
    split: str


class Score(NamedTuple):
    """A mean over judged queries and its 95% interval (None where it can't be told)."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Column:
    """One dataset and split."""

    name: str
    slug: str
    split: str
    label: str  # the name, with the split where one name has several

    def key(self, model: str) -> Key:
        return Key(model, self.slug, self.split)


@dataclass(frozen=True)
class Model:
    id: str
    slug: str
    revision: str
    label: str  # the id, with the slug where one id stands in several rows
    pinned: bool = True  # False: a server's, or made from one's, and can change

    @property
    def short(self) -> str:
        """The label without the organisation."""
        return self.label.rsplit("/", 1)[-1]


@dataclass
class Report:
    """All that is told about one experiment. `scores` and the like may lack keys: not every
    model need have run on every dataset."""

    spec: dict[str, Any]
    models: list[Model]
    columns: list[Column]
    metrics: list[str]
    scores: dict[Key, dict[str, Any]]
    verdicts: list[dict[str, str]]
    comparisons: list[dict[str, Any]]
    stages: dict[str, dict[str, Any]]
    embeddings: list[dict[str, Any]]
    datasets: dict[str, dict[str, Any]]
    texts: dict[str, Path]  # corpus.parquet by dataset
    parity: list[dict[str, Any]]
    runs: dict[Key, Path]
    per_query: dict[Key, Path]

    @property
    def holes(self) -> list[dict[str, str]]:
        """Rows that couldn't be made: model, dataset and split, and the reason."""
        found: list[dict[str, str]] = self.spec.get("holes", [])
        return found

    @property
    def main_metric(self) -> str:
        return self.metrics[0]

    def metric_name(self, key: Key, metric: str) -> str:
        """The name `metric` goes by on this dataset: `R@100` is `R(rel=2)@100` on TREC DL."""
        protocol = self.protocol(key)
        if metric in protocol:
            return metric
        return next((name for name in protocol if plain(name) == plain(metric)), metric)

    def protocol(self, key: Key) -> dict[str, dict[str, Any]]:
        """Metric → value and interval under the dataset's default protocol; {} when not scored."""
        scores = self.scores.get(key)
        return scores["protocols"][scores["default_protocol"]] if scores else {}

    def score(self, key: Key, metric: str) -> Score | None:
        entry = self.protocol(key).get(self.metric_name(key, metric))
        if entry is None or entry["value"] is None:
            return None
        return Score(entry["value"], entry.get("ci_low"), entry.get("ci_high"))

    def average(self, model: str, metric: str) -> Score | None:
        """Mean over all datasets; None unless the model was scored on each (like with like).

        Its interval joins those of the datasets, whose queries are drawn independently: half the
        width is sqrt(sum of squared half widths) / number of datasets.
        """
        scores = [self.score(column.key(model), metric) for column in self.columns]
        known = [score for score in scores if score is not None]
        if not known or len(known) < len(scores):
            return None
        mean = sum(score.value for score in known) / len(known)
        widths = [s.high - s.low for s in known if s.low is not None and s.high is not None]
        if len(widths) < len(known):
            return Score(mean, None, None)
        half = math.hypot(*(width / 2 for width in widths)) / len(widths)
        return Score(mean, mean - half, mean + half)

    def best(self, column: Column, metric: str) -> float | None:
        """The highest value of a column."""
        found = (self.score(column.key(model.slug), metric) for model in self.models)
        return max((score.value for score in found if score), default=None)

    def ranked(self, metric: str) -> list[Model]:
        """Models by average, best first; those without one come last, in their own order."""
        averages = {model.slug: self.average(model.slug, metric) for model in self.models}
        return sorted(self.models, key=lambda m: -(averages[m.slug] or (-1.0,))[0])

    def comparison(self, key: Key, metric: str) -> dict[str, Any] | None:
        """The entry of `comparisons.json` that this cell is part of, if models were tested."""
        wanted = key.dataset, key.split, self.metric_name(key, metric)
        for entry in self.comparisons:
            if (entry["dataset"], entry["split"], entry["metric"]) == wanted:
                return entry
        return None

    def letters(self, key: Key, metric: str) -> str:
        """The significance letters of one cell; "" where nothing was tested."""
        tested = self.comparison(key, metric)
        return tested["letters"].get(key.model, "") if tested else ""

    def worst_first(self) -> list[dict[str, str]]:
        """All verdicts, those that need a look before the others."""
        order = {verdict: rank for rank, verdict in enumerate(WORST_FIRST)}
        return sorted(self.verdicts, key=lambda row: order.get(row["verdict"], len(order)))

    def cell_verdicts(self, key: Key) -> list[dict[str, str]]:
        """The rows of `verdicts.tsv` about one cell.

        Rows name the model by id; where aliases share one, the measured value tells them apart.
        """
        names = {column.slug: column.name for column in self.columns}
        scores = self.scores.get(key)
        if scores is None:
            return []
        place = (scores["model_id"], names[key.dataset], key.split)
        return [row for row in self._verdicts_at.get(place, []) if measured_here(row, scores)]

    @cached_property
    def _verdicts_at(self) -> dict[tuple[str, str, str], list[dict[str, str]]]:
        places = defaultdict(list)
        for row in self.verdicts:
            places[row["model_id"], row["dataset"], row["split"]].append(row)
        return places

    def verdict_counts(self) -> dict[str, int]:
        """Verdict → how many, in a fixed order, then any other name the registry brings."""
        counts = dict.fromkeys(VERDICTS, 0)
        for row in self.verdicts:
            counts[row["verdict"]] = counts.get(row["verdict"], 0) + 1
        return counts

    def command(self, key: Key) -> str | None:
        """The shell command that makes this cell's numbers, with all that they need."""
        return f"{self.spec['command']} {self.target(key)}" if key in self.runs else None

    def target(self, key: Key) -> str:
        """What to add to the experiment's command so that it makes this model's scores, no more."""
        return f"-- score__{key.model}"


VERDICTS = ("reproduced", "reproduced within rounding", "higher", "lower", "not comparable")
WORST_FIRST = ("lower", "higher", "reproduced within rounding", "reproduced", "not comparable")


def measured_here(row: dict[str, str], scores: dict[str, Any]) -> bool:
    """Whether a verdict's measured value is one of these scores."""
    entry = scores["protocols"].get(row["protocol"], {}).get(row["metric"])
    if entry is None or not row["measured"]:
        return not row["measured"]
    return math.isclose(float(row["measured"]), entry["value"], rel_tol=1e-5, abs_tol=1e-9)


def plain(metric: str) -> str:
    """A measure's name without its relevance threshold."""
    return re.sub(r"\(rel=\d+\)", "", metric)


def collect(
    spec: dict[str, Any], verdicts: list[dict[str, str]], comparisons: list[dict[str, Any]]
) -> Report:
    """Read the files that a report's spec lists; rows whose scores aren't there are holes.

    `spec`: experiment, command, metrics, git_commit, dirty, versions, models, datasets, rows
    [{model, dataset, split, scores, per_query, run}], stages and preflights {model: path}, vectors
    [{model, dataset, part, of, sidecar}], corpora {dataset: path}, splits {dataset: {split:
    {queries, qrels}}}, parity (a path or None), holes [{model, dataset, split, reason}].
    """
    there = [row for row in spec["rows"] if Path(row["scores"]).exists()]
    keyed = {Key(row["model"], row["dataset"], row["split"]): row for row in there}
    corpora = {slug: Path(path) for slug, path in spec["corpora"].items() if Path(path).exists()}
    return Report(
        spec=spec,
        models=models(spec["models"]),
        columns=columns(spec["datasets"]),
        metrics=list(spec["metrics"]),
        scores={key: read_json(row["scores"]) for key, row in keyed.items()},
        verdicts=verdicts,
        comparisons=comparisons,
        stages={slug: stage for slug, stage in read_stages(spec)},
        embeddings=[made for row in spec["vectors"] for made in read_vectors(row)],
        datasets={slug: read_dataset(spec, slug, path) for slug, path in corpora.items()},
        texts={slug: path.with_name("corpus.parquet") for slug, path in corpora.items()},
        parity=read_json(spec["parity"]) if spec.get("parity") else [],
        runs={key: Path(row["run"]) for key, row in keyed.items()},
        per_query={key: Path(row["per_query"]) for key, row in keyed.items()},
    )


def read_stages(spec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What staging and preflight recorded of each embedding model, by its slug."""
    for slug, path in spec["stages"].items():
        proof = Path(spec["preflights"][slug])
        if Path(path).exists():
            findings = read_json(proof)["findings"] if proof.exists() else []
            yield slug, read_json(path) | {"preflight": findings}


def read_dataset(spec: dict[str, Any], slug: str, corpus: Path) -> dict[str, Any]:
    """What preparing recorded of a corpus and of those of its splits that are there."""
    records = {
        split: Path(files["queries"]).with_name("split.json")
        for split, files in spec["splits"][slug].items()
    }
    splits = {split: read_json(path) for split, path in records.items() if path.exists()}
    key = corpus.parent.name.rpartition("-")[2]
    return read_json(corpus) | {"key": key, "splits": splits}


def models(entries: list[dict[str, Any]]) -> list[Model]:
    seen = Counter(entry["id"] for entry in entries)
    return [
        Model(
            e["id"],
            e["model"],
            e["revision"] or "",
            f"{e['id']} ({e['model']})" if seen[e["id"]] > 1 else e["id"],
            e.get("pinned", True),
        )
        for e in entries
    ]


def columns(entries: list[dict[str, str]]) -> list[Column]:
    seen = Counter(entry["name"] for entry in entries)
    return [
        Column(
            e["name"],
            e["slug"],
            e["split"],
            f"{e['name']}/{e['split']}" if seen[e["name"]] > 1 else e["name"],
        )
        for e in entries
    ]


def read_tsv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))


def read_vectors(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Each piece's sidecar and what the plan says of it: model and dataset slug, part and shard."""
    place = {key: row[key] for key in ("model", "dataset", "part")}
    for piece in range(row["of"]):
        path = row["sidecar"].replace("{piece}", str(piece))
        if Path(path).exists():
            where = {"shard": f"{piece}-of-{row['of']}", "path": path.removesuffix("json") + "npy"}
            yield read_json(path) | place | where
