"""What staging reads of a snapshot, refusing what no model can be made of, and lays down."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import UserError, printable
from ..files import damaged, sha256
from ..sources.snapshot import check_no_pointers
from .architectures import ENCODERS
from .st_files import json_object


def listed_files(snapshot: Path) -> dict[str, dict[str, Any]]:
    """The manifest's files {name: {size, sha256}}, their sizes checked against the folder."""
    manifest = snapshot / "manifest.json"
    if not manifest.exists():
        return describe(snapshot, skip=())
    files = json_object(manifest).get("files")
    if not isinstance(files, dict):
        raise UserError(f"{manifest}: names no files; delete the folder and download again")
    for name, facts in files.items():
        path = snapshot / name
        size = path.stat().st_size if path.is_file() else None
        if size != facts.get("size"):
            found = "is missing" if size is None else f"has {size} bytes"
            raise damaged(path, f"{found}, the manifest says {facts.get('size')}", snapshot)
    return files


def staged_names(folder: Path) -> set[str]:
    """All files of a staged folder: what may be replaced when it is staged again."""
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def describe(folder: Path, skip: Iterable[str]) -> dict[str, dict[str, Any]]:
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")))
    paths = {name: folder / name for name in names if name not in set(skip)}
    return {
        name: {"size": path.stat().st_size, "sha256": sha256(path)}
        for name, path in paths.items()
        if path.is_file()
    }


def configuration(folder: Path) -> dict[str, Any]:
    """config.json, refused where no model can be made of it."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder}: no config.json; not a transformers model folder")
    check_no_pointers({"config.json": path}, str(folder))
    config = json_object(path)
    if not isinstance(config.get("model_type"), str):
        raise UserError(f"{path}: no model_type; not a transformers model")
    if not isinstance(config.get("auto_map") or {}, dict):
        raise UserError(f"{path}: auto_map is not a table")
    if config.get("is_encoder_decoder") and config["model_type"] not in ENCODERS:
        raise UserError(f"{path}: an encoder-decoder ({config['model_type']}) is not supported")
    return config


def weight_files(folder: Path, allow_pickle: bool) -> list[str]:
    """Names of the weight files, safetensors first; shards are checked against their index."""
    for single in ("model.safetensors", "pytorch_model.bin"):
        index = f"{single}.index.json"
        if (folder / index).is_file():
            names = [*shards(folder, index), index]
        elif (folder / single).is_file():
            names = [single]
        else:
            continue
        check_pickle(folder / single, allow_pickle)
        return names
    raise UserError(f"{folder}: no weights (model.safetensors or its index)")


def check_pickle(path: Path, allowed: bool) -> None:
    if path.suffix == ".bin" and not allowed:
        raise UserError(
            f"{path.parent}: its weights are a pickle ({path.name}), which can run code when "
            "loaded; set allow_pickle: true under the model if you trust its author"
        )


def shards(folder: Path, index: str) -> list[str]:
    """The files that an index names, those that are there; `check_whole` misses the others."""
    table = json_object(folder / index).get("weight_map")
    names = sorted({str(name) for name in table.values()}) if isinstance(table, dict) else []
    for name in names:
        if Path(name).name != name:
            raise UserError(f"{folder / index}: {printable(name)} leads out of the folder")
    return [name for name in names if (folder / name).is_file()]


def link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
