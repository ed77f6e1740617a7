"""Files that exist are whole: written under a temporary name, renamed, and checked when read."""

import errno
import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from .errors import UserError

READ = 8 * 2**20  # bytes read at once for hashing
PIECE = 2**26  # bytes of a file that one of several digests covers
SEAL = "self_sha256"  # of a JSON record: the digest of all else in it
RECORDS = ("corpus.json", "split.json")  # of a folder: {"files": {name: {"size", "sha256", …}}}
TEMPORARY = ".tmp-"  # every unfinished file's or folder's name starts with this


@contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path (nothing there yet) beside `path`; rename it to `path` on success.

    Works for files and for folders; a folder that is there already is replaced whole. On an error
    nothing is left behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        if temporary.is_file():
            store(temporary)
            os.replace(temporary, path)
        else:
            _replace_folder(temporary, path)
    except BaseException:
        remove(temporary)
        raise


def _temporary(path: Path) -> Path:
    return path.parent / f"{TEMPORARY}{secrets.token_hex(4)}-{path.name[:100]}"


def _replace_folder(temporary: Path, path: Path) -> None:
    """Rename a folder (or link); whatever stands at `path` goes, also what another process puts."""
    while True:
        try:
            os.replace(temporary, path)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        replaced = _temporary(path)
        with suppress(FileNotFoundError):
            os.replace(path, replaced)
        remove(replaced)


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold an exclusive lock on the file `path`, made when missing; whether this process has it.

    Without `wait` it may be another's. The kernel drops it when its holder dies. Where a file
    system has no locks, as on some clusters, every process has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        ours = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            ours = False
        except OSError:
            pass
        yield ours


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
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def write_record(path: Path | str, record: dict[str, Any]) -> None:
    """`write_json` of a record of ours, with a digest of itself that `read_json` checks."""
    write_json(path, record | {SEAL: _self_digest(record)})


def read_json(path: Path | str) -> Any:
    """What a JSON file holds; a record that is not as `write_record` wrote it is refused."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise damaged(path, f"not whole JSON ({error})") from None
    if isinstance(value, dict) and SEAL in value and value.pop(SEAL) != _self_digest(value):
        raise damaged(path, "not the JSON that was written")
    return value


def _self_digest(record: dict[str, Any]) -> str:
    return digest(json.loads(json.dumps(record)), 64)  # with keys as JSON has them


def damaged(path: Path | str, what: str, remove: Path | str | None = None) -> UserError:
    """The error for a file that is not as it was written. `remove`: what brings it back, if gone;
    by default the file itself."""
    return UserError(f"{path}: {what}; delete {remove or 'it'} and run again")


def store(path: Path) -> None:
    """Return when the disk has the file."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


@contextmanager
def sealed(path: Path | str) -> Iterator[Path]:
    """`atomic` for a file that gets its digest beside it, `<path>.sha256`, as sha256sum writes it.

    The digest is written first, so a file under its final name always has one.
    """
    from concurrent.futures import ThreadPoolExecutor

    with atomic(path) as temporary:
        yield temporary
        with ThreadPoolExecutor(1) as pool:
            stored = pool.submit(store, temporary)  # the disk is slow enough to hash meanwhile
            found = sha256(temporary)
            stored.result()
        write_text(f"{path}.sha256", f"{found}  {Path(path).name}\n")


def whole(path: Path | str) -> Path:
    """`path`, after holding its bytes against what was recorded when it was written.

    The record is `<path>.sha256` (see `sealed`) or the one of its folder (see `listed`); a file
    with neither comes from elsewhere and is taken as it is. Raises `UserError` on a mismatch.
    A process reads a file once for this; sha256 takes about a second for a gigabyte.
    """
    path = Path(path)
    try:
        info = path.stat()
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror})") from None
    _check_whole(path, info.st_size, info.st_mtime_ns, info.st_ino)
    return path


@lru_cache(1024)
def _check_whole(path: Path, size: int, *_mark: int) -> None:
    beside = Path(f"{path}.sha256")
    if beside.is_file():
        if sha256(path) != beside.read_text(encoding="utf-8", errors="replace")[:64]:
            raise damaged(path, f"its sha256 is not the one in {beside.name}")
        return
    found = listed(path)
    if found:
        record, facts = found
        if facts["size"] != size or facts["sha256"] != sha256(path):
            raise damaged(path, f"not the file that {record.name} lists", record)


def listed(path: Path) -> tuple[Path, dict[str, Any]] | None:
    """The record in a file's folder that lists it, and what that says of it."""
    for record in (path.parent / name for name in RECORDS):
        if record.is_file():
            facts = read_json(record).get("files", {}).get(path.name)
            if facts:
                return record, facts
    return None


def sha256(path: Path | str) -> str:
    """Hex digest of a file's bytes."""
    path = Path(path)
    return digest_of(path, 0, path.stat().st_size)


def digest_of(path: Path, start: int, left: int) -> str:
    """Hex sha256 of `left` bytes of a file from byte `start`, or of as many as there are."""
    return _measured(path, start, left).sha256


class Measured(NamedTuple):
    """Bytes of a file. `lines`, where they were counted: line ends among them; `ended`: whether one
    is the last of them."""

    sha256: str
    size: int
    lines: int
    ended: bool


def _measured(path: Path, start: int, left: int, count_lines: bool = False) -> Measured:
    """The `left` bytes of a file from byte `start`, or as many as there are."""
    # Large reads: each ends with a wait for the interpreter, which may be importing meanwhile.
    found, buffer = hashlib.sha256(), bytearray(min(left, READ))
    view, size, lines, ended = memoryview(buffer), 0, 0, False
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        while size < left and (count := file.readinto(view[: left - size])):
            found.update(view[:count])
            size += count
            if count_lines:
                lines += buffer.count(b"\n", 0, count)
                ended = buffer.endswith(b"\n", 0, count)
    return Measured(found.hexdigest(), size, lines, ended)


def measured_pieces(
    path: Path | str, threads: int = 4, count_lines: bool = False
) -> list[Measured]:
    """Each 64 MiB of a file, in parallel: one thread is slower than a disk."""
    from concurrent.futures import ThreadPoolExecutor

    path = Path(path)
    starts = range(0, path.stat().st_size, PIECE)
    with ThreadPoolExecutor(min(threads, free_cores())) as pool:
        return list(pool.map(lambda start: _measured(path, start, PIECE, count_lines), starts))


def piece_digests(path: Path | str) -> list[str]:
    """Hex sha256 of each 64 MiB of a file."""
    return [piece.sha256 for piece in measured_pieces(path)]


def free_cores() -> int:
    """Cores that this process may use, on clusters fewer than there are; where the system doesn't
    say, all of them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def digest(value: Any, length: int = 12) -> str:
    """Short hex digest of a JSON value, independent of key order."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]
