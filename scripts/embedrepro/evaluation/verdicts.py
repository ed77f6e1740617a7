"""Is the published number reproduced? Like with like, and in both directions.

A published row belongs to a protocol (who scored, and how) and to facts about the encoding. A row
whose facts differ from the run's is not comparable, and the verdict says why in words; otherwise it
is reproduced (|measured - published| <= tolerance), higher or lower.

`published.tsv` has the columns of `COLUMNS`. Its `note` is words and `key=value` pairs, joined by
"; "; a pair is a fact that the run must share where the run states it: `queries` (how many),
`dataset_revision`, `title`, `max_length.query`, `query_prompt`, … with `|` between equally good
values. Tolerances: half a unit of the last printed digit, plus what the same model and data move by
under another arithmetic. fp16 against fp32 moved nDCG@10 of all-MiniLM-L6-v2 on XQuAD by 0.00025,
so rows of small fp32 models get 0.0005 (recall 0.001: one document at the cut), rows of models
published in half precision and rows copied from model cards get twice that.
"""

import csv
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import read_json, sealed
from . import protocols

COMMIT = re.compile(r"[0-9a-f]{40}")  # a package pin or a folder's digest says nothing to compare
UNKNOWN = {"external", "unknown"}  # revisions of numbers that a publisher gave without one
REPRODUCED, HIGHER, LOWER, NOT_COMPARABLE = "reproduced", "higher", "lower", "not comparable"


@dataclass(frozen=True)
class Published:
    """One row of `published.tsv`."""

    model_id: str
    revision: str
    dataset: str
    split: str
    metric: str
    value: float
    tolerance: float
    protocol: str
    source: str
    note: str

    @property
    def requires(self) -> dict[str, str]:
        """The `key=value` facts of the note, over what the protocol's tool feeds a model."""
        facts = _flat(protocols.named(self.protocol).encoding)
        pairs = (part.partition("=") for part in self.note.split("; "))
        return facts | {key.strip(): value for key, equals, value in pairs if equals}


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


COLUMNS = [field.name for field in fields(Published)]
VERDICT_COLUMNS = [field.name for field in fields(Verdict)]


def read_published(path: Path | str) -> list[Published]:
    """All rows; a wrong header, number or protocol is named by line."""
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        if reader.fieldnames != COLUMNS:
            raise UserError(f"{path}: wants the columns {' '.join(COLUMNS)}, tab-separated")
        return [_published(path, number, row) for number, row in enumerate(reader, 2)]


def _published(path: Path | str, line: int, row: Mapping[str, str]) -> Published:
    try:
        value, tolerance = float(row["value"]), float(row["tolerance"])
        sound = math.isfinite(value) and 0 < tolerance < 1
    except (TypeError, ValueError):
        sound = False
    if not sound or None in row.values() or None in row:
        raise UserError(f"{path}:{line}: wants {len(COLUMNS)} fields, 0 < tolerance < 1")
    if row["protocol"] not in protocols.PROTOCOLS:
        raise UserError(f"{path}:{line}: unknown protocol {row['protocol']!r}")
    return Published(**row | {"value": value, "tolerance": tolerance})


def compare(scores: Mapping[str, Any], published: Iterable[Published]) -> Iterator[Verdict]:
    """A verdict for each published row about this model, dataset and split whose metric was asked.

    `scores` is what `scoring.score_run` wrote.
    """
    place = ("model_id", "dataset", "split")
    for row in published:
        if any(getattr(row, key) != scores[key] for key in place):
            continue
        scored = scores["protocols"].get(row.protocol)
        if scored is None or row.metric in scored:
            yield _verdict(row, scores, scored[row.metric]["value"] if scored else None)


def _verdict(row: Published, scores: Mapping[str, Any], measured: float | None) -> Verdict:
    reasons = list(_differences(row, scores))
    if measured is None:
        reasons.append(f"not scored under the {row.protocol} protocol: add it to the protocols")
    delta = None if measured is None else round(measured - row.value, 12)
    if reasons:
        word, words = NOT_COMPARABLE, "; ".join(reasons)
    else:
        word = judge(delta, row.tolerance)
        words = "; ".join(_remarks(row, scores, word))
    return Verdict(
        **{key: getattr(row, key) for key in ("model_id", "dataset", "split", "metric")},
        published=row.value,
        measured=measured,
        delta=delta,
        tolerance=row.tolerance,
        verdict=word,
        source=row.source,
        protocol=row.protocol,
        reason=words,
    )


def judge(delta: float, tolerance: float) -> str:
    """Two-sided; the tolerance itself still counts as reproduced."""
    if abs(delta) <= tolerance:
        return REPRODUCED
    return HIGHER if delta > 0 else LOWER


def _differences(row: Published, scores: Mapping[str, Any]) -> Iterator[str]:
    """Why the row and the run aren't alike, in words; nothing where they are."""
    run = scores["revision"] or ""
    known = COMMIT.fullmatch(run) and row.revision not in UNKNOWN
    if known and not same_revision(row.revision, run):
        yield f"other revision of the model: published for {row.revision[:12]}, run with {run[:12]}"
    facts = _flat(scores.get("facts", {})) | {"queries": str(scores["queries"])}
    for key, wanted in row.requires.items():
        have = facts.get(key)
        if have is None or any(_same_fact(key, value, have) for value in wanted.split("|")):
            continue
        yield _words(key, wanted, have)


def _remarks(row: Published, scores: Mapping[str, Any], word: str) -> Iterator[str]:
    """What to know beside the verdict: unknown revisions, and how the other number was made."""
    if row.revision in UNKNOWN:
        yield "the publisher doesn't say which revision of the model"
    elif not COMMIT.fullmatch(scores["revision"] or ""):
        yield f"this run's revision is no commit, published for {row.revision[:12]}"
    if word != REPRODUCED:
        yield from (part for part in row.note.split("; ") if part and "=" not in part)


def same_revision(one: str, other: str) -> bool:
    """Equal, or one is an abbreviation (7 characters and more) of the other."""
    short, long = sorted((one, other), key=len)
    return short == long or (len(short) >= 7 and long.startswith(short))


def _same_fact(key: str, one: str, other: str) -> bool:
    if key.endswith("revision"):
        return same_revision(one, other)
    return one.strip() == other.strip()


def _words(key: str, wanted: str, have: str) -> str:
    wanted = wanted.replace("|", " or ")
    if key == "queries":
        return f"other queries: published over {wanted}, run over {have}"
    if key == "title":
        words = {"join": "title joined", "drop": "text only"}
        return f"published with {words.get(wanted, wanted)}, run with {words.get(have, have)}"
    if key.startswith("max_length."):
        part = key.partition(".")[2]
        return f"published with {wanted} tokens per {part}, run with {have}"
    if key == "dataset_revision":
        return f"other revision of the dataset: published on {wanted}, run on {have}"
    return f"published with {key.replace('_', ' ')} {wanted!r}, run with {have!r}"


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested facts as {"max_length.query": "512"}; facts that are null are unknown, left out."""
    flat = {}
    for key, value in facts.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            flat[prefix + key] = str(value).lower() if isinstance(value, bool) else str(value)
    return flat


def compare_files(
    scores: Iterable[Path | str], published: Path | str, output: Path | str
) -> list[Verdict]:
    """Write `verdicts.tsv` for many scores files, in their order."""
    rows = read_published(published)
    verdicts = [verdict for path in scores for verdict in compare(read_json(path), rows)]
    lines = ["\t".join(VERDICT_COLUMNS)]
    lines += ["\t".join(map(_cell, asdict(verdict).values())) for verdict in verdicts]
    with sealed(output) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return verdicts


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else " ".join(str(value).split())


def failures(path: Path | str) -> list[str]:
    """What keeps the verdicts in `path` from counting as a reproduction, a line each.

    A comparable number that is higher or lower fails; so does a table without one comparable row.
    """
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    if not any(row["verdict"] == REPRODUCED for row in rows):
        lines = ["no published number was reproduced"]
    else:
        lines = []
    for row in rows:
        if row["verdict"] in (HIGHER, LOWER):
            lines.append(
                f"{row['model_id']} {row['dataset']} {row['split']} {row['metric']}: measured "
                f"{row['measured']}, published {row['published']} ± {row['tolerance']}: "
                f"{row['verdict']} ({row['protocol']}, {row['source']})"
            )
    return lines
