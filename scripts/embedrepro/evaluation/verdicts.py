"""Is the published number reproduced? Like with like, and in both directions.

A published row (`published.Published`) belongs to a protocol and to facts about the encoding. What
the row and the run both state and state differently makes the number not comparable, in words. What
the publisher doesn't say is unknown, and the reason says that too. All else is judged:

- reproduced: |measured - published| <= tolerance;
- reproduced within rounding: the published value is that near to the interval in which the run's
  value lies whatever its scores' measured error did (`rounding_low`, `rounding_high`);
- higher, lower: it isn't.

The tolerance is what two computations that are alike may differ by:

    half a unit of the last printed digit, of the published and of the measured value
    + noise x weight / sqrt(queries)

The second term is the publisher's own rounding, which no interval of ours covers. Half precision
moves single queries at random, so a mean over n moves by 1/sqrt(n): nDCG@10 of 300 queries moved by
0.0004 to 0.0017 in bfloat16 and by 0 to 0.0012 in float16, of 1,185 queries by 0.00025. `NOISE` is
what stands for that, a tenth of it where the publisher states float32, whose near ties can still
fall either way on another device. Measures that one passage at the cut turns from 0 to 1 (recall,
precision, reciprocal rank) weigh twice. A row's own `tolerance` replaces the rule.
"""

import csv
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import printable
from . import metrics, protocols
from .published import Published

COMMIT = re.compile(r"[0-9a-f]{40}")  # a package pin or a folder's digest says nothing to compare
REPRODUCED, WITHIN = "reproduced", "reproduced within rounding"
HIGHER, LOWER, NOT_COMPARABLE = "higher", "lower", "not comparable"
NOISE = 0.02
NOISE_FLOAT32 = NOISE / 10
WEIGHTS = {"nDCG": 1.0, "AP": 1.0}  # all other families: 2
SHOWN = 60  # characters of a prompt in a reason
TITLES = {"join": "title joined", "drop": "text only"}
HALF = {"float16", "bfloat16", "fp8"}


@dataclass(frozen=True)
class Verdict:
    """One row of `verdicts.tsv`; `reason` explains "not comparable" or qualifies the rest."""

    model_id: str
    dataset: str
    split: str
    metric: str
    published: float
    measured: float | None
    delta: float | None
    tolerance: float
    verdict: str
    source: str
    protocol: str
    reason: str


VERDICT_COLUMNS = [field.name for field in fields(Verdict)]


@dataclass(frozen=True)
class Run:
    """What a scores file says of how its numbers were made; None or missing: it doesn't say.

    facts: flat, {"max_length.query": 512, "query_prompt": "query: "}.
    """

    revision: str
    queries: int
    facts: Mapping[str, Any]

    @classmethod
    def of(cls, scores: Mapping[str, Any]) -> "Run":
        facts = dict(_flat(scores.get("facts", {})))
        return cls(scores["revision"] or "", int(scores["queries"]), facts)

    @property
    def precision(self) -> str | None:
        """The precision whose ranking was scored."""
        if self.facts.get("precision") == "exact":
            return "float32"
        stated = self.facts.get("dtype") or self.facts.get("precision")
        return None if stated in (None, "fast", "auto") else str(stated)

    def stated(self, fact: str) -> bool:
        """Whether the user's config says so, in place of the model's files or the registry."""
        return fact in (self.facts.get("stated") or ())


def compare(scores: Mapping[str, Any], published: Iterable[Published]) -> Iterator[Verdict]:
    """A verdict for each published row about this model, dataset and split whose metric was asked.

    `scores` is what `scoring.score_run` wrote.
    """
    run = Run.of(scores)
    for row in published:
        place = row.model_id, row.dataset, row.split
        if place != (scores["model_id"], scores["dataset"], scores["split"]):
            continue
        scored = scores["protocols"].get(row.protocol)
        if scored is None:
            yield _verdict(row, run, None)
        elif row.metric in scored:
            yield _verdict(row, run, scored[row.metric])


def _verdict(row: Published, run: Run, scored: Mapping[str, float] | None) -> Verdict:
    rounded = scored is not None and scored.get("rounding_low") is not None
    reasons = list(differences(row, run, rounded))
    if scored is None:
        reasons.append(f"not scored under the {row.protocol} protocol: add it to the protocols")
    measured = None if scored is None else scored["value"]
    allowed = tolerance(row, run.queries)
    if scored is None or reasons:
        word, words = NOT_COMPARABLE, [*reasons, *_unpinned(run)]
    else:
        low, high = scored.get("rounding_low"), scored.get("rounding_high")
        word = judge(row.value, scored["value"], allowed, low, high)
        words = list(_remarks(row, run, word, low, high))
    return Verdict(
        model_id=row.model_id,
        dataset=row.dataset,
        split=row.split,
        metric=row.metric,
        published=row.value,
        measured=measured,
        delta=None if measured is None else round(measured - row.value, 12),
        tolerance=allowed,
        verdict=word,
        source=row.source,
        protocol=row.protocol,
        reason="; ".join(words),
    )


def tolerance(row: Published, queries: int) -> float:
    """By the rule above; `queries` are the run's, for a row that doesn't say."""
    if row.tolerance is not None:
        return row.tolerance
    decimals = protocols.PROTOCOLS[row.protocol].decimals
    digits = 0.5 * 10**-row.decimals + (0.5 * 10**-decimals if decimals is not None else 0.0)
    noise = NOISE_FLOAT32 if row.precision == "float32" else NOISE
    weight = WEIGHTS.get(metrics.parse(row.metric).family, 2.0)
    return float(f"{digits + noise * weight / math.sqrt(row.queries or queries):.3g}")


def judge(
    published: float,
    measured: float,
    allowed: float,
    low: float | None = None,
    high: float | None = None,
) -> str:
    """Two-sided; the tolerance itself still counts. low, high: the rounding interval."""
    if _near(published, measured, measured, allowed):
        return REPRODUCED
    if low is None or high is None:
        low = high = measured
    if _near(published, min(low, measured), max(high, measured), allowed):
        return WITHIN
    return HIGHER if measured > published else LOWER


def _near(value: float, low: float, high: float, allowed: float) -> bool:
    return max(low - value, value - high, 0.0) <= allowed + 1e-12


def differences(row: Published, run: Run, rounded: bool = False) -> Iterator[str]:
    """Why the row and the run aren't alike, in words; nothing where they are as far as is known.

    `rounded`: the run has a rounding interval, which answers for its precision.
    """
    for difference in (_model, _dataset, _prompts, _lengths, _vectors, _title, _otherwise):
        yield from difference(row, run)
    if row.precision and run.precision and row.precision != run.precision and not rounded:
        yield (
            f"published in {row.precision}, run in {run.precision} without a rounding interval: "
            "precision: exact has float32's ranking"
        )


def _model(row: Published, run: Run) -> Iterator[str]:
    if row.revision is None or not COMMIT.fullmatch(run.revision):
        return
    if not same_revision(row.revision, run.revision):
        yield (
            f"other revision of the model: published for {row.revision[:12]}, "
            f"run with {run.revision[:12]}"
        )


def _dataset(row: Published, run: Run) -> Iterator[str]:
    have = run.facts.get("dataset_revision")
    wanted = row.dataset_revision
    if have and wanted and not any(same_revision(one, str(have)) for one in wanted):
        names = " or ".join(one[:12] for one in wanted)
        yield f"other revision of the dataset: published on {names}, run on {str(have)[:12]}"
    if row.queries is not None and row.queries != run.queries:
        yield f"other queries: published over {row.queries}, run over {run.queries}"


def _prompts(row: Published, run: Run) -> Iterator[str]:
    for role, wanted in (("query", row.query_prompt), ("passage", row.passage_prompt)):
        fact = f"{role}_prompt"
        have = run.facts.get(fact)
        if have is None:
            continue
        if wanted is None:
            if run.stated(fact):
                yield (
                    f"published with the model's own {role} prompt, run with {_quoted(have)} from "
                    "the config"
                )
        elif have.strip() not in {text.strip() for text in wanted}:
            texts = " or ".join(map(_quoted, wanted))
            yield f"published with {role} prompt {texts}, run with {_quoted(have)}"


def _quoted(text: str) -> str:
    return repr(text) if len(text) <= SHOWN else repr(text[: SHOWN - 1] + "…")


def _lengths(row: Published, run: Run) -> Iterator[str]:
    """A length matters where it cuts: texts that were all read whole are the same under any."""
    for role, wanted in (("query", row.max_length_query), ("passage", row.max_length_passage)):
        have = run.facts.get(f"max_length.{role}")
        if have is None or have == wanted:
            continue
        whole = run.facts.get(f"truncated.{role}") == 0
        if wanted is not None:
            if not (whole and have < wanted):
                yield f"published with {wanted} tokens per {role}, run with {have}"
        elif row.least_length is not None and have < row.least_length and not whole:
            yield (
                f"published with the model's own length, {row.most_length} tokens per {role} by "
                f"its metadata, run with {have}"
            )
        elif row.most_length is not None and have > row.most_length:
            yield (f"published with at most {row.most_length} tokens per {role}, run with {have}")


def _vectors(row: Published, run: Run) -> Iterator[str]:
    have = run.facts.get("dimensions")
    if have is not None and have != row.dimensions and have != run.facts.get("dimension"):
        wanted = "whole vectors" if row.dimensions is None else f"{row.dimensions} dimensions"
        yield f"published with {wanted}, run with {have} dimensions"
    elif have is None and row.dimensions not in (None, run.facts.get("dimension")):
        yield f"published with {row.dimensions} dimensions, run with whole vectors"
    if (way := run.facts.get("way")) not in (None, "dense"):
        yield f"published of the model's dense vectors, run by its way {way}"
    stored = run.facts.get("stored")
    if stored in ("int8", "binary"):
        yield f"published with vectors of floating-point numbers, run with {stored} ones"


def _title(row: Published, run: Run) -> Iterator[str]:
    have = run.facts.get("title")
    if have is not None and row.title is not None and have != row.title:
        yield f"published with {TITLES[row.title]}, run with {TITLES.get(have, have)}"


def _otherwise(row: Published, run: Run) -> Iterator[str]:
    """A publisher takes a model as it is; a config may state it otherwise."""
    for fact, value in run.facts.items():
        if fact.startswith("otherwise."):
            own, stated = value
            name = fact.removeprefix("otherwise.")
            yield f"published with the model's own {name} {own}, run with {stated} from the config"


def _remarks(
    row: Published, run: Run, word: str, low: float | None, high: float | None
) -> Iterator[str]:
    """What to know beside the verdict: what nobody says, and how the other number was made."""
    unpinned = list(_unpinned(run))
    yield from unpinned
    if not unpinned and row.revision is not None and not COMMIT.fullmatch(run.revision):
        yield f"this run's revision is no commit, published for {row.revision[:12]}"
    if word == WITHIN:
        yield f"rounding alone moves this run's value between {low:.5f} and {high:.5f}"
    unknown = [name for name, is_known in UNKNOWN if not is_known(row)]
    if unknown:
        yield f"the publisher doesn't say: {', '.join(unknown)}"
    if word != REPRODUCED:
        if run.precision in HALF and low is None:
            yield f"run in {run.precision}, whose rounding wasn't measured"
        if row.protocol_version:
            yield f"{row.protocol} {row.protocol_version}"
        if row.note:
            yield row.note


def _unpinned(run: Run) -> Iterator[str]:
    if run.facts.get("pinned") is False:
        yield "not pinned: a server's model can change"


UNKNOWN: Sequence[tuple[str, Callable[[Published], bool]]] = (
    ("model revision", lambda row: row.revision is not None),
    ("dataset revision", lambda row: row.dataset_revision is not None),
    ("query prompt", lambda row: row.query_prompt is not None),
    ("passage prompt", lambda row: row.passage_prompt is not None),
    ("lengths", lambda row: None not in (row.max_length_query, row.max_length_passage)),
    ("title rule", lambda row: row.title is not None),
    ("precision", lambda row: row.precision is not None),
)


def same_revision(one: str, other: str) -> bool:
    """Equal, or one is an abbreviation (7 characters and more) of the other."""
    short, long = sorted((one, other), key=len)
    return short == long or (len(short) >= 7 and long.startswith(short))


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested facts as ("max_length.query", 512); facts that are null are unknown, left out."""
    for key, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield prefix + key, value


def table(verdicts: Iterable[Verdict]) -> str:
    """`verdicts.tsv` of all rows, in their order."""
    lines = ["\t".join(VERDICT_COLUMNS)]
    lines += ["\t".join(map(_cell, asdict(verdict).values())) for verdict in verdicts]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else printable(value, 4000)


def failures(path: Path | str) -> list[str]:
    """What keeps the verdicts in `path` from counting as a reproduction, a line each.

    A comparable number that is higher or lower fails; so does a table without one comparable row.
    """
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    lines = []
    if not any(row["verdict"] in (REPRODUCED, WITHIN) for row in rows):
        lines.append("no published number was reproduced")
    for row in rows:
        if row["verdict"] in (HIGHER, LOWER):
            lines.append(
                f"{row['model_id']} {row['dataset']} {row['split']} {row['metric']}: measured "
                f"{row['measured']}, published {row['published']} ± {row['tolerance']}: "
                f"{row['verdict']} ({row['protocol']}, {row['source']})"
            )
    return lines
