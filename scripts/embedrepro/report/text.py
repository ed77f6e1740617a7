"""Text from outside, made fit to print: bounded, on one line, without control characters."""

import json
import re
from urllib.parse import urlsplit

# C0 and C1 controls, and the marks that could turn the rest of a line around.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]+")


def one_line(text: object, limit: int | None = None) -> str:
    """`text` on one line; longer than `limit` characters, it is cut with an ellipsis."""
    line = " ".join(CONTROL.sub(" ", str(text)).split())
    return line if limit is None or len(line) <= limit else line[: limit - 1].rstrip() + "…"


# "owner/repository@commit path", as published.tsv names a file, then perhaps words
FILE_IN_REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+)@([0-9a-f]{7,40}) ([\w./+-]+)(?: .*)?")


def web_address(source: str) -> str | None:
    """The page that `source` names, when a reader may safely follow it, else None."""
    if match := FILE_IN_REPOSITORY.fullmatch(source):
        repository, commit, path = match.groups()
        return f"https://github.com/{repository}/blob/{commit}/{path}"
    if CONTROL.search(source) or " " in source:
        return None
    try:
        parts = urlsplit(source)
    except ValueError:
        return None
    return source if parts.scheme in ("http", "https") and parts.netloc else None


def source_label(source: str) -> str:
    """A short name of a source: repository or host, and the file."""
    if match := FILE_IN_REPOSITORY.fullmatch(source):
        return one_line(f"{match[1].partition('/')[2]}: {match[3].rsplit('/', 1)[-1]}", 60)
    if web_address(source):
        parts = urlsplit(source)
        return one_line(f"{parts.netloc}{parts.path}", 60)
    return one_line(source, 120)


def literal(value: object) -> str:
    """A setting's value: a plain word as it is, all else as JSON, so that no blank is lost."""
    if isinstance(value, str) and re.fullmatch(r"\S+", value):
        return value
    return json.dumps(value, ensure_ascii=False)


def number(value: float | None, digits: int = 4) -> str:
    """A score as printed in every table; "–" when there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def decimals(text: str) -> str:
    """A number from a table, in at most six decimals and never as 4e-06; other text as it is."""
    try:
        return text if re.fullmatch(r"-?\d+(\.\d{1,6})?", text) else f"{float(text):.6f}"
    except ValueError:
        return text


def quantity(value: float | None) -> str:
    """A rate, a count or seconds, to about three figures: 0.42, 7.1, 38, 1,204."""
    if value is None:
        return "–"
    digits = 0 if value >= 99.5 or value == int(value) else 1 if value >= 9.95 else 2
    return f"{value:,.{digits}f}"
