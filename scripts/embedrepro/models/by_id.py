"""Staged folders under their models' own names, and the table of both."""

import os
from pathlib import Path
from typing import Any

from ..errors import UserError, printable
from ..files import atomic, locked, write_text


def register(record: dict[str, Any], staged: Path, root: Path) -> None:
    """Link `root`/by_id/<org>/<name> to the staged folder and list it in `root`/names.tsv."""
    staged, root = Path(staged), Path(root)
    parts = record["id"].split("/")
    if any(part in ("", ".", "..") or not part.isprintable() for part in parts):
        raise UserError(f"{printable(record['id'])}: not a model id")
    place = root.joinpath("by_id", *parts)
    with locked(root / "names.tsv.lock"):
        try:
            with atomic(place) as temporary:
                temporary.symlink_to(os.path.relpath(staged, place.parent))
        except OSError as error:
            raise UserError(f"{place}: can't be linked ({error.strerror})") from None
        row = [record["id"], record["revision"] or "", record["model"]]
        row += [os.path.relpath(staged, root), str("." in record["id"]).lower()]
        write_text(root / "names.tsv", merged_names(root / "names.tsv", row))


def merged_names(path: Path, row: list[str]) -> str:
    """The table with `row` in it, sorted; a row for the same id and revision is replaced."""
    header = ["id", "revision", "model", "path", "has_dot"]
    lines = path.read_text(encoding="utf-8").splitlines()[1:] if path.exists() else []
    rows = [line.split("\t") for line in lines]
    rows = [old for old in rows if (old[0], old[3]) != (row[0], row[3])]
    return "".join("\t".join(cells) + "\n" for cells in [header, *sorted([*rows, row])])
