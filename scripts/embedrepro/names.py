"""Names of models and datasets: from the id that a user writes to a name without dots.

FlagEmbedding pickles a model's class to its worker processes. The class of a model with custom code
lives in `transformers_modules.<its path>`, where Python reads a `.` as a package boundary: such a
model can't be found again in the worker. `slug` gives the name that is safe everywhere; it is not
injective, so `collisions` finds the ids of one list that would meet at the same name.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import NamedTuple

from .errors import UserError, printable

MAX_SLUG = 180  # leaves 75 of a file name's 255 bytes for the key and the suffix
MAX_NAME_BYTES = 255
INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, format, surrogate, line and paragraph ends


def slug(name: str) -> str:
    """The name under which `name` is stored: `/` → `__`, all outside `[A-Za-z0-9_-]` → `_`.

    At most `MAX_SLUG` ASCII characters: what is longer is cut and ends in 12 hex digits of its
    sha256. `slug(slug(x)) == slug(x)`.
    """
    safe = re.sub(r"[^A-Za-z0-9_-]", "_", name.replace("/", "__"))
    if len(safe) <= MAX_SLUG:
        return safe
    tail = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:12]
    return f"{safe[: MAX_SLUG - 13]}_{tail}"


def check_id(name: object, most_parts: int | None = 2) -> str:
    """Return `name` if it can be staged; else raise `UserError` with the reason.

    A model's id is `name` or `org/name`; a dataset's may have any number of parts
    (`most_parts=None`). Unicode, spaces, `+ @ ~` and dots are fine.
    """
    if not isinstance(name, str) or not name:
        raise UserError(f"id {name!r}: must be text that is not empty; quote it in the config")
    shown = f"id '{printable(name)}'"
    hidden = next((c for c in name if unicodedata.category(c) in INVISIBLE), None)
    if hidden is not None:
        raise UserError(f"{shown}: holds the invisible character U+{ord(hidden):04X}; remove it")
    if name != name.strip():
        raise UserError(f"{shown}: begins or ends with a space; remove it")
    local = "a local folder goes under `source: {path: …}`"
    if name.startswith(("/", "~/")):
        raise UserError(f"{shown}: is a path, not an id; {local}")
    parts = name.split("/")
    if "" in parts:
        raise UserError(f"{shown}: has an empty part; write `name` or `org/name`")
    if "." in parts or ".." in parts:
        raise UserError(f"{shown}: '.' and '..' are no names; {local}")
    if most_parts is not None and len(parts) > most_parts:
        raise UserError(f"{shown}: has {len(parts)} parts; write `name` or `org/name`, {local}")
    return name


def entry_id(entry: str | Mapping) -> str:
    """The id of a config entry, which is text or a mapping with `id` (models) or `name`."""
    return entry if isinstance(entry, str) else entry.get("id") or entry["name"]


def entry_slug(entry: str | Mapping) -> str:
    """Slug of a config entry: of its `alias` where it has one, else of its id."""
    alias = None if isinstance(entry, str) else entry.get("alias")
    return slug(alias or entry_id(entry))


def collisions(entries: Iterable[str | Mapping]) -> list[str]:
    """One line for each entry whose slug an earlier one already has, naming both and the remedy.

    Slugs that differ only in case count as equal: some file systems can't tell them apart.
    """
    first: dict[str, str] = {}
    lines = []
    for entry in entries:
        name, place = entry_id(entry), entry_slug(entry)
        if place.lower() not in first:
            first[place.lower()] = name
            continue
        other = first[place.lower()]
        pair = f"'{printable(other)}' and '{printable(name)}'"
        if other == name:
            pair = f"two entries '{printable(name)}'"
        lines.append(f"{pair} would share the name '{place}'; give one of them an `alias:`")
    return lines


def check_entries(entries: Iterable[str | Mapping], most_parts: int | None = 2) -> list[str]:
    """Slugs of all entries of a config, in order; `UserError` where an id or a pair is refused."""
    entries = list(entries)
    for entry in entries:
        check_id(entry_id(entry), most_parts)
        if not isinstance(entry, str) and entry.get("alias") is not None:
            check_id(entry["alias"], most_parts)
    for line in collisions(entries):
        raise UserError(line)
    return [entry_slug(entry) for entry in entries]


def link_path(name: str) -> PurePosixPath:
    """Where `by_id/` links the original name: the id itself, a part over 255 bytes as its slug."""
    parts = name.split("/")
    return PurePosixPath(*(p if len(p.encode()) <= MAX_NAME_BYTES else slug(p) for p in parts))


class Breakage(NamedTuple):
    """How a model with custom code fails on several devices when it is used under its own name."""

    used_as: str  # "hub id" | "local folder"
    transformers: str  # range of versions
    error: str


def what_would_break(name: str) -> list[Breakage]:
    """What staging saves the user from; measured with FlagEmbedding's process pool on two devices.

    Only a dot breaks: a dot anywhere in a hub id, a dot in the basename of a local folder.
    """
    versions = "4.44.2 … 4.56.2"
    error = "No module named 'transformers_modules.{}'"
    found = []
    if "." in name:
        cut = name.split(".")[0].replace("/", ".")
        found.append(Breakage("hub id", versions, error.format(cut)))
    basename = name.split("/")[-1]
    if "." in basename:
        found.append(Breakage("local folder", versions, error.format(basename.split(".")[0])))
    return found


def sanitised(name: str) -> str:
    """Module name that transformers 4.57.1 and later makes of a folder's basename."""
    return name.split("/")[-1].replace(".", "_dot_").replace("-", "_hyphen_")


def mistaken_code(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of ids for which transformers 4.57.1 … < 5.23 can run one model's code as the other's.

    Its sanitised names are not injective (`p.q`, `p_dot_q`), and folders with equal basenames meet
    too. Staged under their slugs they are apart.
    """
    first: dict[str, str] = {}
    pairs = []
    for name in names:
        other = first.setdefault(sanitised(name), name)
        if other != name:
            pairs.append((other, name))
    return pairs


class Examined(NamedTuple):
    """What `check_names` says of one id; `refused` is empty when it can be staged."""

    name: str
    staged: str
    has_dot: bool
    breaks: list[Breakage]
    refused: str


def examine(entries: Iterable[str | Mapping]) -> list[Examined]:
    """Check every entry and every pair, without stopping at the first that is refused."""
    entries = list(entries)
    rows = []
    good: list[str | Mapping] = []
    for entry in entries:
        name = entry_id(entry)
        try:
            check_entries([entry])
            clash = collisions([*good, entry])
            good += [] if clash else [entry]
            refused = clash[0] if clash else ""
        except UserError as error:
            refused = str(error)
        text = str(name)
        staged = "" if refused else entry_slug(entry)
        rows.append(Examined(text, staged, "." in text, what_would_break(text), refused))
    return rows


def names_table(rows: Iterable[tuple[str, str, str, str]]) -> str:
    """Text of `names.tsv` from (id, revision, model, path) rows; `model` is the slug."""
    lines = ["id\trevision\tmodel\tpath\thas_dot"]
    for name, revision, model, path in rows:
        dot = "yes" if "." in name else "no"
        lines.append("\t".join((name, revision, model, path, dot)))
    return "\n".join(lines) + "\n"
