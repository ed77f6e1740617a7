"""Why isn't a published number reproduced? The usual suspects, as settings to try.

One thing is changed at a time, then all that the publisher states at once. Settings are tried on
the cheapest dataset whose number is off; the one whose number matches names the cause as far as it
can be known. Nothing here runs anything: `plan.trials` makes rows of the settings.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import printable
from ..models import prompts
from .published import Published
from .verdicts import (
    HIGHER,
    LOWER,
    NOT_COMPARABLE,
    REPRODUCED,
    WITHIN,
    Run,
    Verdict,
    compare,
    judge,
    tolerance,
)

LENGTHS = (128, 256, 512, 8192)  # that publishers cut at when the model would read more or less
PRECISIONS = ("float32", "float16", "bfloat16")
BY_ROUNDING = 0.05  # widest half of a rounding interval in bfloat16, MiniLM on XQuAD: 0.036
# Facts besides prompts and lengths that a config may state wrongly.
STATED = (
    *("pooling", "normalize", "attention", "end_token", "padding_side", "include_prompt", "native"),
)
AS_PUBLISHED = "all that the publisher states"
TABLE = "why.tsv"
NOT_TRIED, NOT_MADE = "not tried", "could not be made"


@dataclass(frozen=True)
class Suspect:
    """One setting: keys to lay over the model's and the dataset's entries of the config.

    None takes a key away: then the registry or the model's own files say it.
    """

    name: str
    model: Mapping[str, Any] = field(default_factory=dict)
    dataset: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """A number of the row `model` (its slug) that isn't the published one; `scores` as scored."""

    model: str
    row: Published
    verdict: Verdict
    scores: Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """A line of `why.tsv`: a number under one setting. value, delta: None where it has none.

    verdict: as of a published number, or `NOT_TRIED` or `NOT_MADE`, for the reason `reason`.
    """

    model_id: str
    model: str
    dataset: str
    split: str
    metric: str
    published: float
    measured: float | None
    setting: str
    value: float | None
    delta: float | None
    verdict: str
    reason: str = ""

    @property
    def matches(self) -> bool:
        return self.verdict in (REPRODUCED, WITHIN)

    @property
    def distance(self) -> tuple[bool, float]:
        """What sorts the settings of a number, the likeliest first."""
        far = float("inf") if self.delta is None else abs(self.delta)
        return self.verdict != REPRODUCED, far


ANSWER_COLUMNS = [one.name for one in fields(Answer)]


def questions(
    scored: Iterable[Mapping[str, Any]], published: Sequence[Published]
) -> list[Question]:
    """The numbers of some rows (what their scores files hold) that were not reproduced.

    A number that can't be compared is one of them where no other published number of its place was
    reproduced, and it isn't the published one by itself.
    """
    found = []
    for scores in scored:
        judged = [(row, verdict) for row in published for verdict in compare(scores, [row])]
        fine = {v.metric for _, v in judged if v.verdict in (REPRODUCED, WITHIN)}
        for row, verdict in judged:
            off = verdict.verdict in (HIGHER, LOWER)
            unlike = verdict.verdict == NOT_COMPARABLE and verdict.metric not in fine
            if off or (unlike and not _near(row, verdict)):
                found.append(Question(scores["model"], row, verdict, scores))
    return found


def _near(row: Published, verdict: Verdict) -> bool:
    measured = verdict.measured
    return measured is not None and judge(row.value, measured, verdict.tolerance) == REPRODUCED


def cheapest(asked: Sequence[Question], documents: Mapping[str, int]) -> list[Question]:
    """Of each model's questions those on the dataset of the fewest passages, one split of it.

    `documents`: passages by dataset; one that isn't there counts as the dearest.
    """
    chosen: dict[str, tuple[int, str, str]] = {}
    for question in asked:
        row = question.row
        place = documents.get(row.dataset, 10**12), row.dataset, row.split
        chosen[question.model] = min(place, chosen.get(question.model, place))
    return [q for q in asked if (q.row.dataset, q.row.split) == chosen[q.model][1:]]


def suspects(
    row: Published,
    scores: Mapping[str, Any],
    registry: Mapping[str, Any],
    stated: Collection[str] = (),
    fetched: Callable[[str], bool] = lambda revision: True,
    folder: Path = prompts.REGISTRY,
) -> list[Suspect]:
    """Settings to try, the likeliest first, none twice, none that the run had already.

    `scores` is the run's scores file; `registry` the model's entry of `models.yaml` (may be empty);
    `stated` are the facts that the config states; `fetched` says whether a revision of the model is
    at hand; `folder` holds MTEB's prompts and tasks.
    """
    run = Run.of(scores)
    found = [
        *_protocol(row, scores),
        *_prompts(row, run, registry, stated, folder),
        *_revisions(row, run, registry, folder),
        *_lengths(row, run, registry, folder),
        *_titles(run),
        *_precisions(row, run, scores),
        *_vectors(run),
        *_stated(stated),
        *_as_published(row, run, fetched),
    ]
    seen: list[tuple[Any, Any]] = []
    unique = []
    for suspect in found:
        if (suspect.model, suspect.dataset) not in seen:
            seen.append((suspect.model, suspect.dataset))
            unique.append(suspect)
    return unique


def answer(question: Question, suspect: Suspect, scores: Mapping[str, Any] | str) -> Answer:
    """What a setting gave: its scores, or the reason why it has none, after `NOT_TRIED: ` or not.

    Raises `KeyError` where the scores lack the protocol or the metric of the published row.
    """
    row, verdict = question.row, question.verdict
    place = row.model_id, question.model, row.dataset, row.split, row.metric, row.value
    so_far = (*place, verdict.measured, suspect.name)
    if isinstance(scores, str):
        word = NOT_TRIED if scores.startswith(NOT_TRIED) else NOT_MADE
        return Answer(*so_far, None, None, word, scores.removeprefix(f"{NOT_TRIED}: "))
    entry = scores["protocols"][row.protocol][row.metric]
    allowed = tolerance(row, int(scores["queries"]))
    low, high = entry.get("rounding_low"), entry.get("rounding_high")
    word = judge(row.value, entry["value"], allowed, low, high)
    return Answer(*so_far, entry["value"], round(entry["value"] - row.value, 12), word)


def table(answers: Iterable[Answer]) -> str:
    """`why.tsv`: the settings of each number, those that match first."""
    lines = ["\t".join(ANSWER_COLUMNS)]
    lines += ["\t".join(map(_cell, astuple(one))) for one in answers]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else printable(value, 1000)


def told(answers: Sequence[Answer]) -> Iterator[str]:
    """In words, for each row whose numbers were asked about, what makes them the published ones."""
    rows = dict.fromkeys((a.model_id, a.model, a.dataset, a.split) for a in answers)
    for place in rows:
        mine = [a for a in answers if (a.model_id, a.model, a.dataset, a.split) == place]
        model_id, slug, dataset, split = place
        yield printable(f"why: {model_id} ({slug}) on {dataset} {split}", 400)
        for metric, published in dict.fromkeys((a.metric, a.published) for a in mine):
            of_metric = [a for a in mine if (a.metric, a.published) == (metric, published)]
            yield f"  {_told(of_metric)}"


def _told(answers: Sequence[Answer]) -> str:
    first, tried = answers[0], [a for a in answers if a.value is not None]
    measured = "not scored" if first.measured is None else f"measured {first.measured:.5f}"
    head = f"{first.metric} published {first.published:.5f}, {measured}: "
    matching = sorted((a for a in tried if a.matches), key=lambda a: a.distance)
    if matching:
        exact = [a for a in matching if a.verdict == matching[0].verdict]
        found = " or ".join(f"{a.setting} ({a.value:.5f})" for a in exact)
        return f"{head}{matching[0].verdict} with {found}"
    if not tried:
        return f"{head}no setting could be tried"
    near = min(tried, key=lambda a: a.distance)
    return (
        f"{head}none of {len(tried)} settings gives it; nearest: {near.setting} ({near.value:.5f})"
    )


def _protocol(row: Published, scores: Mapping[str, Any]) -> Iterator[Suspect]:
    if row.protocol not in scores["protocols"]:
        yield Suspect(f"the {row.protocol} protocol")


def _prompts(
    row: Published,
    run: Run,
    registry: Mapping[str, Any],
    stated: Collection[str],
    folder: Path,
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
    own = {f"{role}_prompt": _text(registry.get(f"{role}_prompt")) for role in prompts.ROLES}
    query = have.get("query_prompt") or own["query_prompt"]
    if query:
        both: dict[str, str | None] = {"query_prompt": query, "passage_prompt": query}
        options.append(("the query prompt before passages too", both))
    for name, texts in options:
        known = {key: text for key, text in texts.items() if text is not None}
        if any(have.get(key) != text for key, text in known.items()):
            yield Suspect(name, model=known)
    if {"query_prompt", "passage_prompt"} & set(stated):
        yield Suspect("the model's own prompts", model=dict.fromkeys(own))


def _text(prompt: Any) -> str | None:
    """A prompt that is the same for every task."""
    return prompt if isinstance(prompt, str) and "{task}" not in prompt else None


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
            yield Suspect(f"{whose} revision {revision[:12]}", model=of_revision(revision))


def of_revision(revision: str) -> dict[str, Any]:
    """Digests and mirrors are those of the revision in the config."""
    return {"revision": revision, "sha256": None, "mirrors": None}


def _lengths(
    row: Published, run: Run, registry: Mapping[str, Any], folder: Path
) -> Iterator[Suspect]:
    have = {role: run.facts.get(f"max_length.{role}") for role in prompts.ROLES}
    entry = prompts.model(row.model_id, folder)
    limit = registry.get("max_tokens") or entry.get("max_tokens")
    stated = [registry.get("max_length"), entry.get("max_length"), limit, *LENGTHS]
    # Where no text was cut, a longer length is the same.
    cut = any(run.facts.get(f"truncated.{role}") != 0 for role in prompts.ROLES)
    for length in stated:
        if not length:
            continue
        both = length if isinstance(length, dict) else dict.fromkeys(prompts.ROLES, length)
        same = not cut and all(both[role] >= (have[role] or 0) for role in prompts.ROLES)
        if both != have and not same and (not limit or max(both.values()) <= limit):
            words = f"{both['query']} tokens per query, {both['passage']} per passage"
            yield Suspect(words, model={"max_length": both})


def _titles(run: Run) -> Iterator[Suspect]:
    other = {"join": ("drop", "text only"), "drop": ("join", "titles joined")}
    if run.facts.get("title") in other:
        rule, words = other[run.facts["title"]]
        yield Suspect(words, dataset={"title": rule})


def _precisions(row: Published, run: Run, scores: Mapping[str, Any]) -> Iterator[Suspect]:
    """None where the number is further off than rounding moves one: they are slow on a CPU."""
    entry = scores["protocols"].get(row.protocol, {}).get(row.metric)
    if entry and abs(entry["value"] - row.value) > BY_ROUNDING:
        return
    for dtype in PRECISIONS:
        if dtype != run.precision:
            yield Suspect(f"{dtype} alone", model={"dtype": dtype, "precision": "fast"})


def _stated(stated: Collection[str]) -> Iterator[Suspect]:
    """Without what the config says of the model: as the registry or its own files have it."""
    if "max_length" in stated:
        yield Suspect("the model's own lengths", model={"max_length": None})
    for name in STATED:
        if name in stated:
            yield Suspect(f"the model's own {name}", model={name: None})


def _vectors(run: Run) -> Iterator[Suspect]:
    if run.facts.get("dimensions") is not None:
        yield Suspect("whole vectors", model={"dimensions": None})


def _as_published(row: Published, run: Run, fetched: Callable[[str], bool]) -> Iterator[Suspect]:
    """All that the publisher states, at once."""
    model: dict[str, Any] = {}
    for role in ("query", "passage"):
        texts = getattr(row, f"{role}_prompt")
        if texts:
            model[f"{role}_prompt"] = texts[0]
    lengths = {"query": row.max_length_query, "passage": row.max_length_passage}
    if None not in lengths.values():
        model["max_length"] = lengths
    if row.revision and len(row.revision) == 40 and fetched(row.revision):
        model |= of_revision(row.revision)
    if row.precision in PRECISIONS:
        model |= {"dtype": row.precision, "precision": "fast"}
    if row.dimensions != run.facts.get("dimensions"):
        model["dimensions"] = row.dimensions
    dataset = {"title": row.title} if row.title else {}
    if model or dataset:
        yield Suspect(AS_PUBLISHED, model=model, dataset=dataset)
