"""Rows of different lengths on disk: flat `.npy` files, and where each row begins in them.

A piece named `x.npy` is several files: `x.npy` with the main field of all rows laid end to end in
the order of the rows, `x.<field>.npy` for each further field, `x.offsets.npy` (rows + 1,) int64,
and one sidecar `x.json` with the digests of them all. `x.npy` gets its name last.
"""

import os
import secrets
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ..errors import UserError
from ..files import (
    TEMPORARY,
    damaged,
    digest,
    piece_digests,
    read_json,
    remove,
    store,
    write_record,
)
from .dense import sidecar

HOLD = 2**28  # bytes of rows kept in memory until those before them have come


class Field(NamedTuple):
    """What a row holds many of: `dtype`, and the shape of one item, `()` or `(width,)`."""

    dtype: np.dtype
    item: tuple[int, ...] = ()

    @property
    def bytes(self) -> int:
        """Size of one item."""
        return int(np.prod(self.item, dtype=np.int64)) * self.dtype.itemsize


def file_of(path: Path | str, field: str, main: str) -> Path:
    """The file of one field of a piece."""
    return Path(path) if field == main else Path(path).with_suffix(f".{field}.npy")


class RaggedWriter:
    """Writes a piece of `rows` rows that come in any order; the files' bytes don't depend on it.

    Rows that come before their turn are held in memory, and beyond `HOLD` bytes on disk. `fields`:
    name to `Field`, the main one last. Use it as a context: without `seal` nothing stays behind.
    """

    def __init__(self, path: Path | str, rows: int, fields: dict[str, Field], kind: str) -> None:
        self.path, self.fields, self.kind = Path(path), fields, kind
        self.lengths = np.full(rows, -1, np.int64)
        self.main = list(fields)[-1]
        self._turn = 0
        self._held: dict[int, bytes | int] = {}
        self._held_bytes = self._spilled = 0
        self._spill: BinaryIO | None = None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = {name: self._temporary_name() for name in fields}
        self._files = {name: place.open("wb") for name, place in self._temporary.items()}
        self._write_headers(0)

    def _temporary_name(self) -> Path:
        return self.path.parent / f"{TEMPORARY}{secrets.token_hex(4)}-{self.path.name[:100]}"

    def _write_headers(self, items: int) -> None:
        """The length of a header doesn't depend on the number of items: numpy leaves room."""
        for name, file in self._files.items():
            field = self.fields[name]
            header = {"descr": field.dtype.str, "fortran_order": False}
            file.seek(0)
            np.lib.format.write_array_header_1_0(file, header | {"shape": (items, *field.item)})

    def put(self, rows: np.ndarray, lengths: np.ndarray, *arrays: np.ndarray) -> None:
        """Rows `rows` (n,) of `lengths` (n,) items; `arrays`: each field's items, end to end."""
        if (self.lengths[rows] >= 0).any():
            raise RuntimeError("a row came a second time")
        self.lengths[rows] = lengths
        flat = [
            np.ascontiguousarray(array, field.dtype).reshape(-1).view(np.uint8)
            for array, field in zip(arrays, self.fields.values(), strict=True)
        ]
        sizes = [field.bytes for field in self.fields.values()]
        starts = np.concatenate([[0], np.cumsum(lengths)]).tolist()
        for number, row in enumerate(rows.tolist()):
            start, stop = starts[number : number + 2]
            pieces = [
                array[start * size : stop * size].tobytes()
                for array, size in zip(flat, sizes, strict=True)
            ]
            if row == self._turn:
                self._append(pieces)
            else:
                self._held[row] = record = b"".join(pieces)
                self._held_bytes += len(record)
        self._drain()
        if self._held_bytes > HOLD:
            self._spill_held()

    def _append(self, pieces: list[bytes]) -> None:
        for file, piece in zip(self._files.values(), pieces, strict=True):
            file.write(piece)
        self._turn += 1

    def _drain(self) -> None:
        while (record := self._held.pop(self._turn, None)) is not None:
            length = int(self.lengths[self._turn])
            sizes = [length * field.bytes for field in self.fields.values()]
            if isinstance(record, int):
                record = self._fetch(record, sum(sizes))
            else:
                self._held_bytes -= len(record)
            ends = np.cumsum([0, *sizes]).tolist()
            self._append([record[a:b] for a, b in zip(ends, ends[1:], strict=False)])

    def _spill_held(self) -> None:
        if self._spill is None:
            place = self._temporary_name()
            self._spill = open(place, "w+b")  # noqa: SIM115
            place.unlink()  # goes with the process
        for row, record in self._held.items():
            if isinstance(record, bytes):
                self._spill.write(record)
                self._held[row] = self._spilled
                self._spilled += len(record)
        self._held_bytes = 0
        self._spill.flush()

    def _fetch(self, place: int, size: int) -> bytes:
        assert self._spill is not None
        found = b""
        while len(found) < size:
            more = os.pread(self._spill.fileno(), size - len(found), place + len(found))
            found += more
        return found

    def seal(self, **meta: Any) -> dict[str, Any]:
        """Give the piece its sidecar, then its names. Returns what the sidecar says.

        `meta` goes into the sidecar. Raises RuntimeError if rows are missing.
        """
        if self._turn != len(self.lengths):
            raise RuntimeError(f"row {self._turn} was never written")
        offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        self._write_headers(int(offsets[-1]))
        for file in self._files.values():
            file.close()
        self._temporary = {"offsets": self._temporary_name()} | self._temporary
        with open(self._temporary["offsets"], "wb") as file:
            np.save(file, offsets)
        shapes = {"offsets": (list(offsets.shape), "int64")} | {
            name: ([int(offsets[-1]), *field.item], str(field.dtype))
            for name, field in self.fields.items()
        }
        listed = {}
        for name, place in self._temporary.items():
            store(place)
            shape, dtype = shapes[name]
            listed[name] = {"shape": shape, "dtype": dtype, "pieces": piece_digests(place)}
        facts = {
            "format": self.kind,
            "files": listed,
            "sha256": digest([listed[name]["pieces"] for name in listed], 64),
            "dtype": str(self.fields[self.main].dtype),
        }
        write_record(sidecar(self.path), facts | meta)
        for name in list(self._temporary):
            os.replace(self._temporary.pop(name), file_of(self.path, name, self.main))
        return facts | meta

    def __enter__(self) -> "RaggedWriter":
        return self

    def __exit__(self, *_: object) -> None:
        for file in (*self._files.values(), self._spill):
            if file is not None:
                file.close()
        for place in self._temporary.values():
            remove(place)


class Ragged:
    """A piece on disk. `offsets` (rows + 1,) int64 in memory, everything else read as asked for.

    Raises `UserError` for files that are not as their sidecar says; `verify=False` leaves the
    digests to a later `verify()`.
    """

    def __init__(self, path: Path | str, kind: str, main: str, verify: bool = True) -> None:
        self.path, self.main = Path(path), main
        self.meta: dict[str, Any] = read_json(sidecar(path))
        if self.meta.get("format") != kind:
            found = self.meta.get("format", "dense")
            raise UserError(f"{path}: holds {found} vectors, not {kind} ones; encode it again")
        self._begins: dict[str, int] = {}
        self.fields: dict[str, Field] = {}
        for name, facts in self.meta["files"].items():
            self._open(name, facts)
        self.offsets = np.load(file_of(path, "offsets", main))
        self.verified = False
        if verify:
            self.verify()

    def _open(self, name: str, facts: dict[str, Any]) -> None:
        place = file_of(self.path, name, self.main)
        try:
            array = np.load(place, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise damaged(place, f"not a whole .npy file ({error})", self.path) from None
        if list(array.shape) != facts["shape"] or str(array.dtype) != facts["dtype"]:
            stated = f"{facts['dtype']}{facts['shape']}"
            holds = f"{array.dtype}{list(array.shape)}"
            raise damaged(place, f"holds {holds}, its sidecar says {stated}", self.path)
        self.fields[name] = Field(array.dtype, array.shape[1:])
        self._begins[name] = getattr(array, "offset", 0)

    @property
    def rows(self) -> int:
        """How many rows the piece has."""
        return len(self.offsets) - 1

    def __len__(self) -> int:
        return self.rows

    @property
    def lengths(self) -> np.ndarray:
        """(rows,) int64: items of each row."""
        return np.diff(self.offsets)

    def begin(self, name: str) -> int:
        """The byte at which a field's items begin in its file."""
        return self._begins[name]

    def verify(self) -> None:
        """Hold all files against their digests; raises `UserError` on a mismatch."""
        for name, facts in self.meta["files"].items():
            place = file_of(self.path, name, self.main)
            if piece_digests(place) != facts["pieces"]:
                raise damaged(place, "its bytes are not those that its sidecar lists", self.path)
        self.verified = True

    def items(self, name: str, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """Items [start, stop) of a field, counted over all rows, read into `out` or memory."""
        field = self.fields[name]
        found = np.empty((stop - start, *field.item), field.dtype) if out is None else out
        with open(file_of(self.path, name, self.main), "rb", buffering=0) as file:
            self._fill(file, found, self.begin(name) + start * field.bytes)
        return found

    def _fill(self, file: FileIO, found: np.ndarray, place: int) -> None:
        """Read what lies at byte `place` of a file into `found`."""
        view = found.reshape(-1).view(np.uint8).data
        while view:
            count = os.preadv(file.fileno(), [view], place)
            if not count:
                raise damaged(Path(file.name), "ends early", self.path)
            view, place = view[count:], place + count

    def gather(self, name: str, rows: np.ndarray) -> np.ndarray:
        """A field's items of `rows` (n,), laid end to end in that order."""
        field = self.fields[name]
        ends = np.cumsum(self.lengths[rows])
        found = np.empty((int(ends[-1]) if len(ends) else 0, *field.item), field.dtype)
        with open(file_of(self.path, name, self.main), "rb", buffering=0) as file:
            start = 0
            for row, stop in zip(rows.tolist(), ends.tolist(), strict=True):
                place = self.begin(name) + int(self.offsets[row]) * field.bytes
                self._fill(file, found[start:stop], place)
                start = stop
        return found
