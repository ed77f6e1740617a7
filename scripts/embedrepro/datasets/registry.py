"""The registry of public benchmarks, and what the `datasets` of a config mean.

Pure: nothing is read but the registry's file, so that a dry run is quick and can be tested.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from .. import names
from ..errors import UserError, printable
from ..schema import nearest
from .local import corpus_digest, local_kind, source_kind
from .remote import REVISION
from .spec import check_shards

FAMILY_ONLY = "datasets"
CHARS_A_PASSAGE = 500  # where nothing is known of a corpus
DOCUMENTS = 100_000  # the same
Entry = dict[str, Any]  # of the registry or of a config
Theirs = str | Mapping[str, Any]  # the source's name of a split, or {source, split} of another one


class Registry(Mapping[str, Entry]):
    """Every dataset of the registry by name, `msmarco-passage` or `beir/scifact`.

    An entry has `name`, `source`, `splits` (our name: the source's) and the facts that
    `rules/schemas/datasets.schema.json` describes. `benchmarks` has, by name, what the name of a
    group stands for.
    """

    def __init__(
        self, datasets: Mapping[str, Entry], benchmarks: Mapping[str, list[Any]] | None = None
    ) -> None:
        self.datasets = dict(datasets)
        self.benchmarks: dict[str, list[Any]] = {}
        for name in self.datasets:
            family, slash, _ = name.partition("/")
            if slash:
                self.benchmarks.setdefault(family, []).append(name)
        self.benchmarks |= benchmarks or {}
        self.tasks: dict[str, list[str]] = {}  # MTEB's name: our names of its parts
        for name, entry in self.datasets.items():
            for split, task in entry.get("mteb", {}).items():
                called = [task["task"]]
                called += [f"{task['task']}/{task['subset']}"] if "subset" in task else []
                for mteb_name in called:
                    self.tasks.setdefault(mteb_name, []).append(f"{name}/{split}")

    def __getitem__(self, name: str) -> Entry:
        return self.datasets[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.datasets)

    def __len__(self) -> int:
        return len(self.datasets)


def read_registry(path: Path | str) -> Registry:
    """The registry in a file such as `rules/registry/datasets.yaml`.

    In the file a family (`beir`) holds what its datasets share; each dataset adds to that or
    replaces it, mapping by mapping, and "{subset}" stands for its name within the family.
    """
    # The C loader: every job of a cluster reads this anew, and the other one takes a second.
    families = yaml.load(Path(path).read_text(encoding="utf-8"), yaml.CSafeLoader)
    benchmarks = families.pop("benchmarks", {})
    entries = {}
    for family, shared in families.items():
        common = {key: value for key, value in shared.items() if key != FAMILY_ONLY}
        for subset, own in shared.get(FAMILY_ONLY, {"": {}}).items():
            name = f"{family}/{subset}" if subset else family
            entries[name] = {"name": name} | merged(common, own, subset)
    return Registry(entries, benchmarks)


def merged(common: Any, own: Any, subset: str) -> Any:
    """`own` laid over `common`, with "{subset}" replaced."""
    if isinstance(common, dict) and isinstance(own, dict):
        keys = [*common, *(key for key in own if key not in common)]
        return {k: merged(common.get(k), own.get(k, common.get(k)), subset) for k in keys}
    return own.replace("{subset}", subset) if isinstance(own, str) else own


@dataclass(frozen=True)
class ResolvedDataset:
    """A corpus with the splits to evaluate, all that a config and the registry say of it."""

    name: str
    source: Mapping[str, Any]  # of the corpus
    title: str  # join or drop
    splits: Mapping[str, Theirs]  # by our name
    thresholds: Mapping[str, int]  # by our name: the lowest grade that binary measures count
    instruction: str | None
    ignore_identical_ids: bool
    shards: int | None  # as the config asks for
    mteb: Mapping[str, Mapping[str, str]]  # by our name of a split: {task, split, subset}
    documents: int | None  # of a public corpus
    characters: int | None  # the same
    queries: Mapping[str, int]  # judged ones of its splits, by our name
    size_mb: float | None  # of its download

    @property
    def slug(self) -> str:
        return names.slug(self.name)


@dataclass(frozen=True)
class Estimate:
    """How large a corpus is, for what a plan reckons with."""

    documents: int
    characters: int
    known: bool  # whether that was counted; else a guess


def resolve(entries: Iterable[Any], registry: Registry) -> list[ResolvedDataset]:
    """The datasets that a config's list means, in its order; whole benchmarks are written out.

    Raises `UserError` for a name that nobody knows, a setting that doesn't fit and entries that
    contradict each other.
    """
    expanded = [one for entry in entries for one in expand_group(entry, registry)]
    return merge_entries([resolve_entry(entry, registry) for entry in expanded])


def expand_group(entry: Any, registry: Registry) -> list[Any]:
    """The entries that one entry stands for: those of a benchmark, or itself."""
    if isinstance(entry, dict) and entry.get("source"):
        return [entry]
    name = entry if isinstance(entry, str) else entry["name"]
    if name in registry:
        return [entry]
    members = registry.benchmarks.get(name) or registry.tasks.get(name)
    if not members:
        return [entry]
    own = {} if isinstance(entry, str) else {k: v for k, v in entry.items() if k != "name"}
    found: list[Any] = []
    for member in members:
        for one in expand_group(member, registry):
            facts = {"name": one} if isinstance(one, str) else one
            found.append(facts | own)
    return found


def resolve_entry(entry: Any, registry: Registry) -> ResolvedDataset:
    """What one entry of a config means: a name, or a mapping with `name` and what differs.

    Splits in a list are those of the registry, with all that it says of each; in a mapping {our
    name: theirs} a value may be the registry's name of a split or the source's. Raises `UserError`.
    """
    own: Entry = {"name": entry} if isinstance(entry, str) else dict(entry)
    where = f"config.datasets: '{printable(own['name'], 80)}'"
    known: Entry
    wanted: list[str] = []
    if own.get("source"):
        known = registry.get(own["name"], {})
    else:
        known, wanted = expand(own["name"], registry)
        own |= {"name": known["name"], "source": None}
    names.check_id(own["name"], most_parts=None)
    source = own["source"] or known["source"]
    check_source(source, where)
    splits = wanted_splits(own, known, wanted, where)
    stated = {**known, **own}
    counted = {} if own["source"] else known
    dataset = ResolvedDataset(
        name=own["name"],
        source=source,
        title=stated.get("title", "join"),
        splits=splits,
        thresholds=wanted_thresholds(own, known, splits, where),
        instruction=stated.get("instruction"),
        ignore_identical_ids=stated.get("ignore_identical_ids", False),
        shards=own.get("shards"),
        mteb={s: task for s, task in stated.get("mteb", {}).items() if s in splits},
        documents=counted.get("documents"),
        characters=counted.get("characters"),
        queries={s: n["queries"] for s, n in counted.get("counts", {}).items() if s in splits},
        size_mb=counted.get("size_mb"),
    )
    if dataset.shards and dataset.documents:
        check_shards(dataset.shards, dataset.documents, f"{where}: ")
    return dataset


def check_source(source: Mapping[str, Any], where: str) -> None:
    """Refuse what is no source, and one of the hub that can move."""
    if source_kind(source, where) != "hub" or REVISION.fullmatch(str(source.get("revision"))):
        return
    given, repository = source.get("revision"), printable(source["hub"], 80)
    fault = f"revision '{printable(given, 60)}' can move"
    raise UserError(
        f"{where}: {fault if given else f'no revision is known for {repository}'}; "
        "set revision: to the full commit hash, 40 lowercase hex digits"
    )


def wanted_splits(own: Entry, known: Entry, wanted: list[str], where: str) -> dict[str, Theirs]:
    """{our name: theirs} of the splits to evaluate."""
    listed: dict[str, Theirs] = known.get("splits", {})
    asked = own.get("splits")
    if not asked:
        return {ours: listed.get(ours, ours) for ours in wanted or listed or ["test"]}
    if isinstance(asked, list):
        asked = {split: split for split in asked}
        for split in asked if not own["source"] else ():
            if split not in listed:
                raise UserError(
                    f"{where} has no split '{printable(split, 60)}'{nearest(split, listed)}; "
                    f"it has {', '.join(listed)}"
                )
    if own["source"]:  # the registry's names are those of its own source
        return dict(asked)
    return {ours: listed.get(theirs, theirs) for ours, theirs in asked.items()}


def wanted_thresholds(
    own: Entry, known: Entry, splits: Mapping[str, Theirs], where: str
) -> dict[str, int]:
    """The lowest grade that counts, by our name of each split; 1 where nobody says one."""
    given: Any = own.get("relevance_threshold", {})
    stated: Any = known.get("relevance_threshold", 1)
    if not isinstance(given, dict):
        return dict.fromkeys(splits, given)
    for split in given:
        if split not in splits:
            raise UserError(
                f"{where}: relevance_threshold names the split '{printable(split, 60)}'"
                f"{nearest(split, splits)}; it has {', '.join(splits)}"
            )
    listed = {} if own["source"] else known.get("splits", {})
    thresholds: dict[str, int] = {}
    for ours, theirs in splits.items():
        # A split may go by another name here than in the registry.
        same = next((s for s in listed if listed[s] == theirs), ours)
        thresholds[ours] = stated.get(same, 1) if isinstance(stated, dict) else stated
    return thresholds | given


def merge_entries(datasets: Iterable[ResolvedDataset]) -> list[ResolvedDataset]:
    """Splits of one corpus become one dataset; `UserError` where two entries contradict."""
    merged: dict[str, ResolvedDataset] = {}
    for dataset in datasets:
        place = dataset.slug.lower()  # some file systems can't tell cases apart
        other = merged.setdefault(place, dataset)
        if other is not dataset:
            merged[place] = joined(other, dataset)
    return list(merged.values())


def joined(first: ResolvedDataset, second: ResolvedDataset) -> ResolvedDataset:
    """One dataset with the splits of both."""
    if first.name != second.name:
        raise UserError(
            f"config.datasets: '{printable(first.name, 80)}' and '{printable(second.name, 80)}' "
            f"differ but share the name {second.slug}; rename one"
        )
    for fact in ("source", "title", "instruction", "ignore_identical_ids", "shards"):
        a, b = getattr(first, fact), getattr(second, fact)
        if a != b:
            raise contradiction(first.name, fact, a, b)
    for split in first.splits.keys() & second.splits.keys():
        for fact in ("splits", "thresholds", "mteb"):
            a, b = getattr(first, fact).get(split), getattr(second, fact).get(split)
            if a != b:
                raise contradiction(first.name, f"{fact}.{split}", a, b)
    return replace(
        first,
        splits={**first.splits, **second.splits},
        thresholds={**first.thresholds, **second.thresholds},
        mteb={**first.mteb, **second.mteb},
        queries={**first.queries, **second.queries},
    )


def contradiction(name: str, fact: str, first: Any, second: Any) -> UserError:
    shown = [printable("nothing" if value is None else value, 60) for value in (first, second)]
    return UserError(
        f"config.datasets: '{printable(name, 80)}' stands there twice, with {fact}: {shown[0]} and "
        f"{fact}: {shown[1]}; leave one, or give one of them another name"
    )


def estimate(dataset: ResolvedDataset, cache: Path | None = None) -> Estimate:
    """The size of a corpus: the registry's, or a local file's lines and bytes.

    `cache`: see `local.corpus_digest`. Raises `UserError` for more shards than passages.
    """
    if local_kind(dataset.source):
        found = corpus_digest(dataset.source, cache)
        if found.lines is None:  # gzipped: text shrinks to a third or so
            return Estimate(max(1, 3 * found.bytes // CHARS_A_PASSAGE), 3 * found.bytes, False)
        if dataset.shards:
            where = f"config.datasets: '{printable(dataset.name, 80)}': "
            check_shards(dataset.shards, found.lines, where)
        return Estimate(found.lines, found.bytes, True)
    documents = dataset.documents or DOCUMENTS
    known = dataset.documents is not None
    return Estimate(documents, dataset.characters or documents * CHARS_A_PASSAGE, known)


def expand(name: str, known: Mapping[str, Entry]) -> tuple[Entry, list[str]]:
    """The entry that `name` means and the splits to evaluate.

    `beir/scifact` means all of its splits, `msmarco-passage/dl19` one of them. Raises `UserError`
    with the nearest known names for any other.
    """
    if name in known:
        return known[name], list(known[name]["splits"])
    dataset, _, split = name.rpartition("/")
    if dataset in known:
        splits = known[dataset]["splits"]
        if split in splits:
            return known[dataset], [split]
        raise UserError(
            f"dataset {dataset} has no split '{printable(split, 60)}'; it has {', '.join(splits)}"
        )
    groups = [*known.benchmarks, *known.tasks] if isinstance(known, Registry) else []
    raise UserError(
        f"config.datasets: the registry knows no dataset '{printable(name, 80)}'"
        f"{nearest(name, [*known, *groups])}; one of your own needs a source: {{beir: folder}}, "
        "for one"
    )
