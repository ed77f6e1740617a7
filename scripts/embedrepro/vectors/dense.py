"""Dense vectors: `.npy` files, each with a sidecar that says what is in it and what made it."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ..files import atomic, damaged, piece_digests, read_json, sha256, store, write_record


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
    with ThreadPoolExecutor(2) as pool:
        stored, whole = pool.submit(store, temporary), pool.submit(sha256, temporary)
        facts |= {"pieces": piece_digests(temporary), "sha256": whole.result()}
        stored.result()
    write_record(sidecar(path), facts | meta)


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
    if not sidecar(path).exists():
        raise damaged(path, "without its sidecar")
    meta = read_json(sidecar(path))
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise damaged(path, f"not a whole .npy file ({error})") from None
    if list(array.shape) != meta.get("shape") or str(array.dtype) != meta.get("dtype"):
        stated = f"{meta.get('dtype')}{meta.get('shape')}"
        raise damaged(path, f"holds {array.dtype}{list(array.shape)}, its sidecar says {stated}")
    if verify:
        verify_array(path, meta)
    return array, meta


def verify_array(path: Path | str, meta: dict[str, Any]) -> None:
    """Hold a file's bytes against its sidecar `meta`; raises `UserError` on a mismatch."""
    pieces = meta.get("pieces")
    whole = sha256(path) == meta.get("sha256") if pieces is None else piece_digests(path) == pieces
    if not whole:
        raise damaged(path, "its sha256 is not the one in its sidecar")


class ArrayWriter:
    """A `.npy` file of `shape` and `dtype`, written row by row in any order.

    Written with plain writes, not through a memory map: the pages are the kernel's, so memory
    doesn't grow with the file. On leaving, raises RuntimeError if rows are missing.
    """

    def __init__(self, path: Path, shape: tuple[int, int], dtype: np.dtype) -> None:
        self.dtype = np.dtype(dtype)
        self.width = shape[1] * self.dtype.itemsize
        self.written = np.zeros(shape[0], bool)
        self.file = open(path, "wb")  # noqa: SIM115
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.file, header)
        self.file.flush()
        self.begin = self.file.tell()

    def put(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Write `vectors` (n, width) at `rows` (n,), runs of neighbours at once."""
        order = np.argsort(rows)
        rows = rows[order]
        vectors = np.ascontiguousarray(vectors[order], self.dtype)
        starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
        for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
            place = self.begin + int(rows[start]) * self.width
            _write_all(self.file.fileno(), vectors[start:stop].data.cast("B"), place)
        self.written[rows] = True

    def __enter__(self) -> "ArrayWriter":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        with self.file:
            if kind is not None:
                return
            if not self.written.all():
                raise RuntimeError(f"row {int(np.argmin(self.written))} was never written")


def _write_all(descriptor: int, data: memoryview, place: int) -> None:
    while data:
        done = os.pwrite(descriptor, data, place)
        data, place = data[done:], place + done
