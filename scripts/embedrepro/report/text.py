"""Text from outside, made fit to print: bounded, on one line, without control characters."""

import re
from urllib.parse import urlsplit

# C0 and C1 controls, and the marks that could turn the rest of a line around.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]+")


def one_line(text: object, limit: int | None = None) -> str:
    """`text` on one line; longer than `limit` characters, it is cut with an ellipsis."""
    line = " ".join(CONTROL.sub(" ", str(text)).split())
    return line if limit is None or len(line) <= limit else line[: limit - 1].rstrip() + "…"


def web_address(source: str) -> str | None:
    """`source` when it is a link that a reader may safely follow, else None."""
    source = source.strip()
    if CONTROL.search(source) or " " in source:
        return None
    try:
        parts = urlsplit(source)
    except ValueError:
        return None
    return source if parts.scheme in ("http", "https") and parts.netloc else None


def number(value: float | None, digits: int = 4) -> str:
    """A score as printed in every table; "–" when there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def quantity(value: float | None) -> str:
    """A rate, a count or seconds, to about three figures: 0.42, 7.1, 38, 1,204."""
    if value is None:
        return "–"
    digits = 0 if value >= 99.5 or value == int(value) else 1 if value >= 9.95 else 2
    return f"{value:,.{digits}f}"
