"""Hold every file of a store or of results against what was recorded when it was written."""

from collections.abc import Callable, Iterator
from pathlib import Path

from .errors import UserError
from .files import read_json, whole
from .models.laying import listed_files
from .models.staged import verify_staged
from .sources.environments import RECORD as ENVIRONMENT
from .sources.snapshot import check_digests
from .vectors.dense import load_array


def damage(root: Path | str) -> Iterator[str]:
    """One line for each damaged file below `root`: what is wrong and what to delete.

    Reads everything once: about a second for a gigabyte. Files without a record (reports, logs,
    packages in an environment) are not looked at.
    """
    environments = {path.parent for path in Path(root).rglob("pyvenv.cfg")}
    for path in sorted(Path(root).rglob("*")):
        if environments.intersection(path.parents) and path.name != ENVIRONMENT:
            continue
        check = check_of(path)
        try:
            if check and path.is_file():
                check(path)
        except UserError as error:
            yield str(error)


def check_of(path: Path) -> Callable[[Path], object] | None:
    """What proves a file, by its name; the files that it lists are proven with it."""
    by_name: dict[str, Callable[[Path], object]] = {
        "corpus.json": _dataset,
        "split.json": _dataset,
        "stage.json": _staged,
        "manifest.json": _snapshot,
    }
    by_suffix: dict[str, Callable[[Path], object]] = {
        ".sha256": _sealed,
        ".npy": load_array,
        ".json": read_json,
    }
    if path.name in by_name:
        return by_name[path.name]
    return by_suffix.get(path.suffix)


def _dataset(record: Path) -> None:
    for name in read_json(record)["files"]:
        whole(record.parent / name)


def _staged(record: Path) -> None:
    verify_staged(record.parent)


def _snapshot(record: Path) -> None:
    check_digests(record.parent, listed_files(record.parent), record.name)


def _sealed(digest: Path) -> None:
    if digest.with_suffix("").is_file():
        whole(digest.with_suffix(""))
