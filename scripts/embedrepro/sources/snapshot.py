"""A model's files as they were downloaded: which are taken, whether they are whole, their digests.

Every source (hub, wheel, folder) goes through the same choice and the same checks.
"""

import json
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import UserError, printable
from ..files import damaged, digest, free_cores, read_json, sha256, write_record
from .adapter import ADAPTER

MANIFEST = "manifest.json"
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
TEXTS = (".json", ".txt", ".model", ".py", ".jinja", ".spm", ".tiktoken", ".bpe", ".vocab")
NOTICES = re.compile(r"(README|LICEN[CS]E|NOTICE)[^/]*", re.IGNORECASE)
# What transformers loads by itself; other .safetensors beside it are exports in other precisions.
STANDARD = re.compile(r"(model|adapter_model)(-\d+-of-\d+)?\.safetensors")
PICKLES = re.compile(r"(pytorch_model(-\d+-of-\d+)?|adapter_model)\.bin")
MODULE_FOLDER = re.compile(r"\d+_\w+")  # sentence-transformers' own names: 1_Pooling, 2_Dense
ROUTE_FOLDER = re.compile(r"\w+_\d+_\w+")  # and within a Router: query_0_SparseStaticEmbedding
# Settings of Stanford's ColBERT; heads of BGE-M3, which are read as tensors only.
OTHERS = ("artifact.metadata", "sparse_linear.pt", "colbert_linear.pt")


class Unreachable(Exception):
    """A source that can't be reached now; the next mirror may be. Its text says why."""


def check_file_name(name: str, where: str) -> str:
    """Refuse a file name that could lead outside the folder it is written to, or hide in a log."""
    parts = name.split("/")
    bad = {"", ".", "..", ".git"}
    if bad & set(parts) or "\\" in name or not name.isprintable() or len(name.encode()) > 1000:
        raise UserError(f"{where}: holds the file name '{printable(name)}', which is refused")
    return name


def module_folders(modules: object) -> list[str]:
    """Folders that a parsed `modules.json` of sentence-transformers points to."""
    entries = modules if isinstance(modules, list) else []
    paths = (entry.get("path") for entry in entries if isinstance(entry, dict))
    return [path.rstrip("/") for path in paths if isinstance(path, str) and path]


def choose(names: Iterable[str], modules: list[str] | None = None) -> list[str]:
    """The files a model needs, of all that its source holds.

    Configuration, tokenizer, code and notices, in the root and in the folders of
    sentence-transformers' modules: those that modules.json declares (`modules`), by the form of
    their names where there is none (`None`); weights as safetensors, as `pytorch_model*.bin` only
    where a folder has no safetensors. Exports (onnx, tf, …), checkpoints and images are left.
    """
    folders: dict[str, list[str]] = {}
    for name in names:
        parent = str(PurePosixPath(name).parent)
        if parent == "." or _is_module(parent, modules):
            folders.setdefault(parent, []).append(name)
    chosen = [name for group in folders.values() for name in _choose_in_folder(group)]
    return sorted(chosen)


def _is_module(folder: str, declared: list[str] | None) -> bool:
    if declared is None:
        return MODULE_FOLDER.fullmatch(folder) is not None
    above, _, name = folder.rpartition("/")
    nested = ROUTE_FOLDER.fullmatch(name) is not None and (not above or above in declared)
    return folder in declared or nested


def _choose_in_folder(names: list[str]) -> list[str]:
    base = {name: name.rsplit("/", 1)[-1] for name in names}
    tensors = [name for name in names if base[name].endswith(".safetensors")]
    standard = [name for name in tensors if STANDARD.fullmatch(base[name])]
    weights = standard or tensors
    weights = weights or [name for name in names if PICKLES.fullmatch(base[name])]
    texts = [
        name
        for name in names
        if (base[name].endswith((*TEXTS, *OTHERS)) or NOTICES.fullmatch(base[name]))
        and base[name] != MANIFEST
        and not (tensors and base[name].endswith(".bin.index.json"))
    ]
    return weights + texts


def check_choice(names: Iterable[str], where: str, allow_pickle: bool) -> None:
    """Refuse a model without configuration or weights, or with pickles that nobody asked for."""
    names = list(names)
    if not {"config.json", "modules.json", ADAPTER} & set(names):
        raise UserError(f"{where}: holds no config.json, so it is not a model's folder")
    pickles = [name for name in names if name.endswith(".bin")]
    if pickles and not allow_pickle:
        raise UserError(
            f"{where}: '{pickles[0]}' is a pickle, which can run code when it is loaded, and there "
            f"are no safetensors; set `allow_pickle: true` if you trust it"
        )
    if not pickles and not any(name.endswith(".safetensors") for name in names):
        raise UserError(f"{where}: holds no weights (*.safetensors)")


def check_whole(folder: Path, names: Iterable[str], where: str) -> None:
    """Refuse, by name, files that are not what they should be: pointers, cut or corrupt weights."""
    names = list(names)
    check_no_pointers({name: folder / name for name in names}, where)
    for name in names:
        if name in ("config.json", "modules.json"):
            parsed_json(folder / name, where, dict if name == "config.json" else list)
    tensors = [name for name in names if name.endswith(".safetensors")]
    held = {name: _tensor_names(folder / name, f"{where}: '{name}'") for name in tensors}
    for name in names:
        single = str(PurePosixPath(name).parent / "model.safetensors")  # is loaded before shards
        if name.endswith((".safetensors.index.json", ".bin.index.json")) and single not in names:
            _check_index(folder, name, names, held, where)


def check_no_pointers(paths: Mapping[str, Path], where: str) -> None:
    pointers = [name for name, path in paths.items() if is_lfs_pointer(path)]
    if pointers:
        raise UserError(
            f"{where}: {len(pointers)} file(s) are git-lfs pointers, not contents, the first is "
            f"'{pointers[0]}'; run `git lfs pull` in that folder"
        )


def is_lfs_pointer(path: Path) -> bool:
    if path.stat().st_size > 1024:
        return False
    with open(path, "rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


def parsed_json(path: Path, where: str, kind: type) -> Any:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: '{path.name}' is not JSON ({error})") from None
    if not isinstance(value, kind):
        raise UserError(f"{where}: '{path.name}' does not hold a JSON {kind.__name__}")
    return value


def _tensor_names(path: Path, where: str) -> set[str]:
    """Names in a safetensors header; opening it checks that offsets and file size agree."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return set(file.keys())
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{where}: not a whole safetensors file ({printable(error)}); fetch it again"
        ) from None


def _check_index(
    folder: Path, index: str, names: list[str], held: Mapping[str, set[str]], where: str
) -> None:
    """Every shard of the index is there and holds the tensors that the index says.

    `metadata.total_size` is not held against the shards: published indexes often have it wrong,
    and each shard's own header already fixes its size.
    """
    weight_map = parsed_json(folder / index, where, dict).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{where}: '{index}' has no weight_map")
    parent = PurePosixPath(index).parent
    for tensor, file in weight_map.items():
        shard = str(parent / str(file))
        if shard not in names:
            raise UserError(f"{where}: '{index}' names the shard '{shard}', which is missing")
        if shard in held and tensor not in held[shard]:
            raise UserError(f"{where}: '{shard}' lacks the tensor '{tensor}' that '{index}' names")


def local_files(folder: Path) -> dict[str, Path]:
    """Relative name → real path of a local model's files, chosen as `choose` does.

    Links are followed only within the folder, or from a snapshot of the hub's cache into that
    cache; any other link is refused by name. `.git` is not looked at.
    """
    root = folder.resolve()
    found: dict[str, Path] = {}
    linked = []
    for parent, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name != ".git"]
        inside = Path(parent).relative_to(root)
        found |= {(inside / name).as_posix(): Path(parent) / name for name in files}
        linked += [(inside / f).as_posix() for f in folders if (Path(parent) / f).is_symlink()]
    declared = None
    if "modules.json" in found:
        path = _real_file(found["modules.json"], root, "modules.json")
        check_no_pointers({"modules.json": path}, str(folder))
        declared = module_folders(parsed_json(path, str(folder), list))
    for name in linked:
        if _is_module(name, declared):
            raise UserError(
                f"{folder}: '{name}' is a link to a folder; put the folder itself there"
            )
    chosen = choose(found, declared)
    return {check_file_name(n, str(folder)): _real_file(found[n], root, n) for n in chosen}


def _real_file(path: Path, root: Path, name: str) -> Path:
    """The regular file behind `path`; `UserError` if there is none or it lies elsewhere."""
    allowed = [root]
    if root.parent.name == "snapshots" and root.parents[1].name.startswith("models--"):
        allowed.append(root.parents[2])  # the hub's cache: blobs, and the store that models share
    try:
        real = path.resolve()
    except (OSError, RuntimeError):  # RuntimeError: how Python 3.11 reports a loop
        raise UserError(f"{root}: '{name}' is a link that leads nowhere") from None
    if not any(real.is_relative_to(place) for place in allowed):
        raise UserError(
            f"{root}: '{name}' is a link to {real}, outside the folder; put the file itself there"
        )
    if not real.exists():
        raise UserError(f"{root}: '{name}' is a link to {real}, which is missing")
    if not stat.S_ISREG(real.stat().st_mode):
        raise UserError(f"{root}: '{name}' is not a regular file")
    return real


def hash_files(paths: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """name → {"size": bytes, "sha256": hex}, hashed with all cores (hashlib lets go of the GIL)."""
    with ThreadPoolExecutor(free_cores()) as pool:
        digests = pool.map(sha256, paths.values())
        return {
            name: {"size": path.stat().st_size, "sha256": value}
            for (name, path), value in zip(paths.items(), digests, strict=True)
        }


def differing(folder: Path, files: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    """Which files have other digests than listed; about a second for a gigabyte."""
    found = hash_files({name: folder / name for name in files})
    return (name for name in files if found[name]["sha256"] != files[name].get("sha256"))


def check_digests(folder: Path, files: Mapping[str, dict[str, Any]], listed: str) -> None:
    """Refuse a folder whose files have other digests than listed."""
    for name in differing(folder, files):
        raise damaged(folder / name, f"its sha256 is not the one in {listed}", folder)


def remembered_hashes(
    folder: Path, paths: Mapping[str, Path], cache: Path
) -> dict[str, dict[str, Any]]:
    """`hash_files`, but a file whose size, time and inode are as last time is not read again."""
    memory = cache / "digests" / f"{digest(str(folder.resolve()))}.json"
    return remembered(paths, memory, hash_files)


def remembered(
    paths: Mapping[str, Path],
    memory: Path,
    measure: Callable[[Mapping[str, Path]], dict[str, dict[str, Any]]],
) -> dict[str, dict[str, Any]]:
    """name → what `measure` says of each file; one that did not change is not read again.

    `memory` keeps what was measured with each file's size, time and inode, also of files that are
    not asked for this time. A file changed less than two seconds ago is not remembered: it could
    change once more within the clock's tick.
    """
    try:
        known = read_json(memory)
    except UserError:  # nothing remembered, or what was is damaged
        known = {}
    marks, old = {}, {}
    for name, path in paths.items():
        info = path.stat()
        marks[name] = [info.st_size, info.st_mtime_ns, info.st_ino]
        if known.get(name, {}).get("mark") == marks[name]:
            old[name] = {k: v for k, v in known[name].items() if k != "mark"}
    found = old | measure({name: path for name, path in paths.items() if name not in old})
    settled = time.time_ns() - 2_000_000_000
    memo = {name: entry for name, entry in known.items() if name not in paths}
    memo |= {n: found[n] | {"mark": marks[n]} for n in paths if marks[n][1] < settled}
    if memo != known:
        write_record(memory, memo)
    return dict(sorted(found.items()))


def path_digest(folder: Path | str, cache: Path | str) -> str:
    """Digest of a local model's files: 12 hex digits, the same wherever the folder lies.

    `cache` is a folder that remembers the digests of files that did not change, so that calling
    this again costs one `stat` per file. Raises `UserError` when the folder is missing or holds
    something that is refused.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    return digest(remembered_hashes(folder, local_files(folder), Path(cache)))


def check_space(folder: Path, needed: int) -> None:
    """Refuse to start what can't end: `needed` bytes into the disk that holds `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder}: {needed / 2**30:.1f} GiB are needed, {free / 2**30:.1f} GiB are free"
        )
