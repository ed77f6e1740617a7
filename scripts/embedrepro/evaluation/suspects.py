"""Why isn't a published number reproduced? The usual suspects, as settings to try.

One thing is changed at a time, then all that the publisher states at once. A setting is tried on
the cheapest dataset whose number is off; the one whose number matches names the cause as far as it
can be known. Nothing here runs anything.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..models import prompts
from .published import Published
from .verdicts import HIGHER, LOWER, REPRODUCED, WITHIN, Run, Verdict, judge, tolerance

LENGTHS = (128, 256, 512, 8192)  # that publishers cut at when the model would read more or less
PRECISIONS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Suspect:
    """One setting: keys to lay over the model's and the dataset's entries of the config."""

    name: str
    model: Mapping[str, Any] = field(default_factory=dict)
    dataset: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Match:
    """A setting whose measured number is the published one."""

    suspect: Suspect
    measured: float
    verdict: str

    def sentence(self, row: Published) -> str:
        return (
            f"{row.model_id} {row.dataset} {row.split} {row.metric}: with {self.suspect.name} "
            f"measured {self.measured:.5f}, published {row.value}: {self.verdict}"
        )


def cheapest(verdicts: Iterable[Verdict], documents: Mapping[str, int]) -> Verdict | None:
    """Of the verdicts higher and lower the one on the fewest passages, the largest gap first.

    `documents`: passages by dataset; one that isn't there counts as the dearest.
    """
    off = [verdict for verdict in verdicts if verdict.verdict in (HIGHER, LOWER)]
    return min(
        off,
        key=lambda v: (documents.get(v.dataset, 10**12), v.dataset, -abs(v.delta or 0.0)),
        default=None,
    )


def suspects(
    row: Published,
    scores: Mapping[str, Any],
    registry: Mapping[str, Any],
    folder: Path = prompts.REGISTRY,
) -> list[Suspect]:
    """Settings to try, the likeliest first, none twice, none that the run had already.

    `scores` is the run's scores file; `registry` the model's entry of `models.yaml` (may be empty);
    `folder` holds MTEB's prompts and tasks.
    """
    run = Run.of(scores)
    found = [
        *_prompts(row, run, registry, folder),
        *_revisions(row, run, registry, folder),
        *_lengths(row, run, registry, folder),
        *_titles(run),
        *_precisions(run),
        *_vectors(run),
        *_as_published(row),
    ]
    seen: list[tuple[Any, Any]] = [({}, {})]
    unique = []
    for suspect in found:
        if (suspect.model, suspect.dataset) not in seen:
            seen.append((suspect.model, suspect.dataset))
            unique.append(suspect)
    return unique


def matches(
    row: Published, measured: Sequence[tuple[Suspect, Mapping[str, float]]], queries: int
) -> list[Match]:
    """The settings that reproduce the row, the nearest first.

    measured: each setting's entry of the scores file for the row's protocol and metric.
    """
    allowed = tolerance(row, queries)
    found = []
    for suspect, entry in measured:
        low, high = entry.get("rounding_low"), entry.get("rounding_high")
        word = judge(row.value, entry["value"], allowed, low, high)
        if word in (REPRODUCED, WITHIN):
            found.append(Match(suspect, entry["value"], word))
    return sorted(found, key=lambda match: abs(match.measured - row.value))


def _prompts(
    row: Published, run: Run, registry: Mapping[str, Any], folder: Path
) -> Iterator[Suspect]:
    have = _put(run)
    task = prompts.task_of(row.dataset, folder)
    options: list[tuple[str, Mapping[str, str | None]]] = [
        ("no prompts", {"query_prompt": "", "passage_prompt": ""})
    ]
    if task:
        roles = prompts.ROLES
        mteb = {f"{r}_prompt": prompts.prompt_of(row.model_id, task, r, folder) for r in roles}
        options.append((f"mteb's prompts for {task}", mteb))
    own = {f"{role}_prompt": registry.get(f"{role}_prompt") for role in prompts.ROLES}
    options.append(("the registry's prompts", own))
    query = have.get("query_prompt") or own["query_prompt"]
    if query:
        both: dict[str, str | None] = {"query_prompt": query, "passage_prompt": query}
        options.append(("the query prompt before passages too", both))
    for name, texts in options:
        known = {key: text for key, text in texts.items() if text is not None}
        if any(have.get(key) != text for key, text in known.items()):
            yield Suspect(name, model=known)


def _put(run: Run) -> dict[str, str]:
    names = ("query_prompt", "passage_prompt")
    return {name: run.facts[name] for name in names if name in run.facts}


def _revisions(
    row: Published, run: Run, registry: Mapping[str, Any], folder: Path
) -> Iterator[Suspect]:
    known = (
        ("the publisher's", row.revision),
        ("the registry's", registry.get("revision")),
        ("mteb's", prompts.model(row.model_id, folder).get("revision")),
    )
    for whose, revision in known:
        if revision and len(revision) == 40 and revision != run.revision:
            yield Suspect(f"{whose} revision {revision[:12]}", model={"revision": revision})


def _lengths(
    row: Published, run: Run, registry: Mapping[str, Any], folder: Path
) -> Iterator[Suspect]:
    have = {role: run.facts.get(f"max_length.{role}") for role in prompts.ROLES}
    entry = prompts.model(row.model_id, folder)
    limit = registry.get("max_tokens") or entry.get("max_tokens")
    stated = [registry.get("max_length"), entry.get("max_length"), limit, *LENGTHS]
    for length in stated:
        if not length:
            continue
        both = length if isinstance(length, dict) else dict.fromkeys(prompts.ROLES, length)
        if both != have and (not limit or max(both.values()) <= limit):
            words = f"{both['query']} tokens per query, {both['passage']} per passage"
            yield Suspect(words, model={"max_length": both})


def _titles(run: Run) -> Iterator[Suspect]:
    other = {"join": ("drop", "text only"), "drop": ("join", "titles joined")}
    if run.facts.get("title") in other:
        rule, words = other[run.facts["title"]]
        yield Suspect(words, dataset={"title": rule})


def _precisions(run: Run) -> Iterator[Suspect]:
    for dtype in PRECISIONS:
        if dtype != run.precision:
            yield Suspect(f"{dtype} alone", model={"dtype": dtype, "precision": "fast"})


def _vectors(run: Run) -> Iterator[Suspect]:
    if run.facts.get("dimensions") is not None:
        yield Suspect("whole vectors", model={"dimensions": None})


def _as_published(row: Published) -> Iterator[Suspect]:
    """All that the publisher states, at once."""
    model: dict[str, Any] = {}
    for role in ("query", "passage"):
        texts = getattr(row, f"{role}_prompt")
        if texts:
            model[f"{role}_prompt"] = texts[0]
    lengths = {"query": row.max_length_query, "passage": row.max_length_passage}
    if None not in lengths.values():
        model["max_length"] = lengths
    if row.revision and len(row.revision) == 40:
        model["revision"] = row.revision
    if row.precision in PRECISIONS:
        model |= {"dtype": row.precision, "precision": "fast"}
    yield Suspect(
        "all that the publisher states",
        model=model,
        dataset={"title": row.title} if row.title else {},
    )
