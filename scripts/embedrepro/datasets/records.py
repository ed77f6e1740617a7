"""What a source of a dataset yields, and the checks that hold for every source."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from ..errors import UserError, printable

FORBIDDEN_IN_ID = re.compile(r"[\s\x00-\x1f\x7f-\x9f]")  # a TREC run is split at white space
INTEGER = re.compile(r"[+-]?[0-9]{1,9}")


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
    """A relevance grade: an integer, also when written as 2.0 or as digits."""
    if isinstance(value, str) and INTEGER.fullmatch(value):
        return int(value)
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
    if not whole or abs(value) >= 2**31:
        raise UserError(f'{where}: relevance "{printable(value)}" is not a whole number')
    return int(value)


def kind(value: Any) -> str:
    """A JSON value's type in words."""
    names = {type(None): "missing", bool: "true or false", list: "a list", dict: "an object"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else "a string")
