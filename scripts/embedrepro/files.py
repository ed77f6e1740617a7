"""Files that exist are whole: written under a temporary name, renamed, and checked when read."""

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .errors import UserError

PIECE = 2**26  # bytes of an array file that one digest in its sidecar's `pieces` covers
TEMPORARY = ".tmp-"  # every unfinished file's or folder's name starts with this


@contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path (nothing there yet) beside `path`; rename it to `path` on success.

    Works for files and for folders; a folder that is there already is replaced whole. On an error
    nothing is left behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, replaced = (
        path.parent / f"{TEMPORARY}{secrets.token_hex(4)}-{path.name[:100]}" for _ in range(2)
    )
    try:
        yield temporary
        if temporary.is_file():
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            os.replace(path, replaced)
        os.replace(temporary, path)
        remove(replaced)
    except BaseException:
        remove(temporary)
        raise


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder; nothing there is fine."""
    import shutil

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True) + "\n")


def read_json(path: Path | str) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not whole JSON ({error}); delete it and run again") from None


def sha256(path: Path | str) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def piece_digests(path: Path | str) -> list[str]:
    """Hex sha256 of each 64 MiB of a file, hashed in parallel: one thread is slower than a disk."""
    path = Path(path)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return list(pool.map(partial(_piece_digest, path), range(0, path.stat().st_size, PIECE)))


def _piece_digest(path: Path, start: int) -> str:
    found, buffer = hashlib.sha256(), memoryview(bytearray(2**20))
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        left = PIECE
        while left and (count := file.readinto(buffer[:left])):
            found.update(buffer[:count])
            left -= count
    return found.hexdigest()


def digest(value: Any, length: int = 12) -> str:
    """Short hex digest of a JSON value, independent of key order."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def sidecar(path: Path | str) -> Path:
    return Path(path).with_suffix(".json")


def seal_array(temporary: Path, path: Path | str, **meta: Any) -> None:
    """Give a finished `.npy` (still under its temporary name) its sidecar, then its final name.

    The sidecar holds shape, dtype, sha256 and piece digests of the file, and `meta`. It is written
    first, so an array under its final name always has one.
    """
    _write_sidecar(temporary, path, meta)
    os.replace(temporary, path)


def _write_sidecar(temporary: Path, path: Path | str, meta: dict[str, Any]) -> None:
    array = np.load(temporary, mmap_mode="r")
    facts = {"shape": list(array.shape), "dtype": str(array.dtype)}
    facts |= {"sha256": sha256(temporary), "pieces": piece_digests(temporary)}
    write_json(sidecar(path), facts | meta)


def save_array(path: Path | str, array: np.ndarray, **meta: Any) -> None:
    """Write `array` as `.npy` with a sidecar `.json` beside it (see `seal_array`)."""
    path = Path(path)
    with atomic(path) as temporary:
        with open(temporary, "wb") as file:
            np.save(file, array)
        _write_sidecar(temporary, path, meta)


def load_array(path: Path | str, verify: bool = True) -> tuple[np.ndarray, dict[str, Any]]:
    """Memory-map an array and read its sidecar; a mismatch is refused by name.

    `verify=False` leaves `verify_array` to the caller, who can read meanwhile.
    """
    path = Path(path)
    meta = read_json(sidecar(path))
    remedy = "delete it and run again"
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a whole .npy file ({error}); {remedy}") from None
    if list(array.shape) != meta.get("shape") or str(array.dtype) != meta.get("dtype"):
        raise UserError(
            f"{path}: holds {array.dtype}{list(array.shape)}, its sidecar says "
            f"{meta.get('dtype')}{meta.get('shape')}; {remedy}"
        )
    if verify:
        verify_array(path, meta)
    return array, meta


def verify_array(path: Path | str, meta: dict[str, Any]) -> None:
    """Hold a file's bytes against its sidecar `meta`; raises `UserError` on a mismatch."""
    pieces = meta.get("pieces")
    whole = sha256(path) == meta.get("sha256") if pieces is None else piece_digests(path) == pieces
    if not whole:
        raise UserError(
            f"{path}: its sha256 is not the one in its sidecar; delete it and run again"
        )
