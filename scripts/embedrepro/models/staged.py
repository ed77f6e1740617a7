"""A staged folder, checked against what its stage.json says."""

import os
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import atomic, damaged, sha256
from ..sources.snapshot import MANIFEST, differing
from .st_files import json_object

CONFIGS = ("config.json", "modules.json")  # what names the classes that are loaded


def verify_staged(staged: Path) -> None:
    """Check every staged file, weights too, against stage.json, before vectors are made of them.

    A folder made by hand, whose stage.json lists no files, is taken as it is.
    """
    if "files" not in json_object(staged / "stage.json"):
        return
    files = verify_code(staged)["files"]
    for name in files:
        if not (staged / name).is_file():
            raise damaged(staged / name, "is missing", staged)
    for name in differing(staged, files):
        wanted = files[name].get("sha256", "")
        where = " ".join(map(str, [staged, *damaged_sources(staged, name, wanted)]))
        raise damaged(staged / name, "its sha256 is not the one in stage.json", where)


def damaged_sources(staged: Path, name: str, wanted: str) -> list[Path]:
    """Folders that were downloaded and have the same damage: weights are links to theirs."""
    found = []
    for manifest in sorted((staged.parent.parent / "hub").glob(f"*/{MANIFEST}")):
        with suppress(UserError):  # another model's, damaged itself
            if json_object(manifest).get("files", {}).get(name, {}).get("sha256") != wanted:
                continue  # other weights: nothing of them is read
            place = manifest.parent / name
            if not place.is_file() or sha256(place) != wanted:
                found.append(manifest.parent)
    return found


def verify_code(staged: Path) -> dict[str, Any]:
    """Read stage.json; check that the code, and the config that names it, are as staged."""
    staged = Path(staged)
    record = json_object(staged / "stage.json")
    named = {name: record["files"][name]["sha256"] for name in CONFIGS if name in record["files"]}
    expected = record["code"] | named
    present = {path.relative_to(staged).as_posix() for path in staged.rglob("*.py")}
    for name in sorted(present | set(expected)):
        path = staged / name
        if not path.is_file() or sha256(path) != expected.get(name):
            raise damaged(path, "not what was staged", staged)
    return record


def lay_out_code(staged: Path, record: dict[str, Any]) -> None:
    """Copy a folder's own code to where transformers runs it from, which it does itself since 5.

    Before, it copies of a local folder what the first file imports, but not what that imports.
    """
    if not record["code"] or int(version("transformers").partition(".")[0]) >= 5:
        return
    from transformers import dynamic_module_utils as modules

    clean = getattr(modules, "_sanitize_module_name", str)
    package = f"{modules.TRANSFORMERS_DYNAMIC_MODULE_NAME}{os.sep}{clean(staged.name)}"
    modules.create_dynamic_module(package)
    for name in record["code"]:
        target = Path(modules.HF_MODULES_CACHE) / package / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic(target) as copy:
            copy.write_bytes((staged / name).read_bytes())
