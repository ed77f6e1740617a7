"""Rename local model folders that have a dot in their name, leaving a link under the old name.

For each folder: a link `.renaming-<old>` → new is made, the folder gets its new name, the link gets
the old name. The links alone tell how far it went, so any interruption can be finished or undone.
"""

import os
from pathlib import Path

from ..errors import UserError
from ..names import check_id, collisions, slug

MARK = ".renaming-"


def model_folders(folder: Path) -> list[Path]:
    """Folders that hold a model (`config.json` or `modules.json`): `name` or `org/name` in it."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    found = []
    for path in _subfolders(folder):
        found += [path] if _is_model(path) else [p for p in _subfolders(path) if _is_model(p)]
    return found


def _subfolders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.is_symlink())


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or (folder / "modules.json").is_file()


def rename_dotted(folder: Path) -> list[tuple[Path, Path]]:
    """Rename the dotted model folders in `folder`; return (old, new) of each that was renamed.

    All are checked before the first is touched; nothing that exists is overwritten. Doing it again
    changes nothing. Raises `UserError`.
    """
    done = []
    for mark, old, new in _unfinished(folder):
        if os.path.lexists(old):
            mark.unlink()  # the folder itself was not renamed yet
        else:
            mark.rename(old)
            done.append((old, new))
    plan = [(p, p.with_name(slug(p.name))) for p in model_folders(folder) if "." in p.name]
    for old, new in plan:
        check_id(old.name, most_parts=1)
        if os.path.lexists(new):
            raise UserError(f"{old}: can't be renamed, {new} exists; rename one of them first")
        if len(f"{MARK}{old.name}".encode()) > 255:
            raise UserError(f"{old}: its name is too long to be kept beside the new one")
    for line in collisions(str(old.relative_to(folder)) for old, _ in plan):
        raise UserError(f"{folder}: {line.split(';')[0]}; rename one of them first")
    for old, new in plan:
        mark = old.with_name(f"{MARK}{old.name}")
        mark.symlink_to(new.name)
        old.rename(new)
        mark.rename(old)
        done.append((old, new))
    return done


def restore_dotted(folder: Path) -> list[tuple[Path, Path]]:
    """Undo `rename_dotted`, also an interrupted one; return (old, new) of each folder restored."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    for old, _ in _renamed(folder):
        old.rename(old.with_name(f"{MARK}{old.name}"))
    done = []
    for mark, old, new in _unfinished(folder):
        if not os.path.lexists(old):
            new.rename(old)
            done.append((old, new))
        mark.unlink()
    return done


def _links(folder: Path) -> list[Path]:
    """Links in `folder` and in its subfolders that point to a neighbour."""
    places = [folder, *_subfolders(folder)]
    links = (path for place in places for path in sorted(place.iterdir()) if path.is_symlink())
    return [path for path in links if len(path.readlink().parts) == 1]


def _unfinished(folder: Path) -> list[tuple[Path, Path, Path]]:
    """(mark, old, new) of renamings that were interrupted."""
    marks = [path for path in _links(folder) if path.name.startswith(MARK)]
    names = [
        (m, m.with_name(m.name.removeprefix(MARK)), m.with_name(m.readlink().name)) for m in marks
    ]
    return [(m, old, new) for m, old, new in names if new.name == slug(old.name)]


def _renamed(folder: Path) -> list[tuple[Path, Path]]:
    """(old, new) of the links that `rename_dotted` left."""
    pairs = [(path, path.with_name(path.readlink().name)) for path in _links(folder)]
    return [
        (old, new)
        for old, new in pairs
        if "." in old.name
        and new.name == slug(old.name)
        and _is_model(new)
        and not new.is_symlink()
    ]
