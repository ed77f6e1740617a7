"""What a source of a dataset yields, and the checks that hold for every source."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from ..errors import UserError, printable

FORBIDDEN_IN_ID = re.compile(r"[\s\x00-\x1f\x7f-\x9f]")  # a TREC run is split at white space
NUMBER = re.compile(r"[+-]?[0-9]{1,15}(\.[0-9]{0,15})?([eE][+-]?[0-9]{1,3})?")


class Text(NamedTuple):
    """A passage or a query. `line` counts from 1 in its file or stream."""

    line: int
    id: str
    title: str
    text: str


class Judgement(NamedTuple):
    line: int
    query: str
    doc: str
    relevance: int


class Source(Protocol):
    """A dataset somewhere. Each method streams in the source's own order; `split` is its own name.

    `tolerant`: the user can't mend it (a public benchmark), so the flaws that every evaluation tool
    lives with (`Flaws`) are counted and said instead of refused.
    """

    tolerant: bool

    def corpus(self) -> Iterator[Text]: ...
    def queries(self, split: str) -> Iterator[Text]: ...
    def qrels(self, split: str) -> Iterator[Judgement]: ...
    def where(self, part: str, split: str, line: int) -> str:
        """`part`: corpus, queries or qrels. Names a line for a message: `folder/corpus.jsonl:3`."""


@dataclass
class Flaws:
    """Counts the flaws of tolerant sources by kind; refuses the first one of any other source."""

    counts: dict[str, int] = field(default_factory=dict)

    def found(
        self, source: Source, kind: str, part: str, split: str, line: int, message: str
    ) -> None:
        if not source.tolerant:
            raise UserError(f"{source.where(part, split, line)}: {message}")
        self.counts[kind] = self.counts.get(kind, 0) + 1


def identifier(value: Any, where: str, name: str) -> str:
    """An id as a string; numbers are taken as their digits, as every evaluation tool does."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise UserError(f"{where}: {name} is {kind(value)}, expected a string")
    if not value or FORBIDDEN_IN_ID.search(value):
        raise UserError(
            f'{where}: {name} "{printable(value)}" is empty or holds white space, which a TREC run '
            "file can't; replace it"
        )
    return value


def string(value: Any, where: str, name: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: {name} is {kind(value)}, expected a string")
    return value


def grade(value: Any, where: str) -> int:
    """A relevance grade: an integer, also as 2.0 or 2e0 and as text, as pandas writes a column."""
    number = float(value) if isinstance(value, str) and NUMBER.fullmatch(value) else value
    whole = isinstance(number, int | float) and not isinstance(number, bool) and number % 1 == 0
    if not whole or abs(number) >= 2**31:
        raise UserError(f'{where}: relevance "{printable(value)}" is not a whole number')
    return int(number)


def passage(title: str, text: str, mode: str = "join") -> str:
    """The text that is encoded for a passage: what MTEB, BEIR and FlagEmbedding make of it.

    `mode`: `join` puts a non-empty title and a space before the text, `drop` leaves the title out.
    """
    return f"{title} {text}".strip() if title and mode == "join" else text.strip()


def kind(value: Any) -> str:
    """A JSON value's type in words."""
    names = {type(None): "missing", bool: "true or false", list: "a list", dict: "an object"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else "a string")
