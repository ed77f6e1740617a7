"""One model from the hub at one commit: listed, fetched in parallel, resumed, held to its digests.

`snapshot_download` of huggingface_hub 2.4 starts a file that was cut off again from its first byte
(its temporary names are unique to a process) and waits without limit for the listing, so this
fetches each file with the same library's `http_get`, which continues where it is told to.
"""

import hashlib
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import httpx2
from huggingface_hub import HfApi, get_token, hf_hub_url
from huggingface_hub.constants import MAX_HTTP_DOWNLOAD_SIZE
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers, disable_progress_bars

from ..errors import UserError, printable
from ..files import sha256
from .snapshot import (
    Unreachable,
    check_choice,
    check_file_name,
    check_space,
    choose,
    module_folders,
    parsed_json,
)

COMMIT = re.compile(r"[0-9a-f]{40}")
WAITS = (1, 2, 4, 8)  # seconds before each further try
LONGEST_WAIT = 300  # the hub counts requests in windows of five minutes
TIMEOUT: Any = httpx2.Timeout(10, connect=5)  # huggingface_hub says float, and passes it on
WORKERS = 8
T = TypeVar("T")


class Entry(NamedTuple):
    """A file as the hub lists it. `checksum` is "sha256:…" (LFS), "git:…" (blob) or ""."""

    name: str
    size: int | None
    checksum: str


class Corrupt(Exception):
    """What arrived is not what the hub's listing says."""


def fetch_hub(
    repo: str, revision: str | None, place: Path, pins: dict[str, str], allow_pickle: bool
) -> dict[str, dict]:
    """Fetch `repo` at the commit `revision` into `place`/files; return name → size and sha256.

    A file gets its name there only when it is whole and verified, so a second call continues the
    first. Raises `Unreachable` when the hub does not answer, `UserError` when it answers no.
    """
    where = f"hub {repo}"
    if revision is None or not COMMIT.fullmatch(revision):
        shown = f"revision '{printable(revision)}' can move" if revision else "no revision is given"
        raise UserError(f"{where}: {shown}; pin the 40 hex digits of a commit{now(repo, revision)}")
    try:
        entries = list_files(repo, revision)
        check_listed(entries, pins, where)
        fetcher = Fetcher(repo, revision, place)
        chosen = choose((e.name for e in entries), fetcher.modules(entries))
        check_choice(chosen, where, allow_pickle)
        return fetcher.fetch_all([entry for entry in entries if entry.name in set(chosen)])
    except (httpx2.HTTPError, OSError, HFValidationError, Corrupt) as error:
        raise explained(error, repo, revision) from None


def fetch_files(repo: str, revision: str, place: Path, ending: str) -> dict[str, dict]:
    """Fetch the files of a commit's root whose names end so; see `fetch_hub`."""
    where = f"hub {repo}"
    try:
        entries = list_files(repo, revision)
        check_listed(entries, {}, where)
        chosen = [e for e in entries if "/" not in e.name and e.name.endswith(ending)]
        if not chosen:
            raise UserError(f"{where}: holds no {ending} file at {revision[:12]}")
        return Fetcher(repo, revision, place).fetch_all(chosen)
    except (httpx2.HTTPError, OSError, HFValidationError, Corrupt) as error:
        raise explained(error, repo, revision) from None


def now(repo: str, revision: str | None) -> str:
    """The commit that a branch or tag points to now, in words; '' where the hub doesn't tell."""
    try:
        info = HfApi().model_info(repo, revision=revision, timeout=TIMEOUT)
        return f" ({revision or 'main'} is at {info.sha} now)"
    except (httpx2.HTTPError, OfflineModeIsEnabled, ValueError, KeyError, TypeError):
        return ""


def list_files(repo: str, revision: str) -> list[Entry]:
    """All files of the commit; a hub that is silent or can't be connected to is left at once."""

    def ask() -> Any:
        try:
            return HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=TIMEOUT)
        except HFValidationError:
            raise
        except (ValueError, KeyError, TypeError):
            raise Unreachable("what answers is not a hub; check HF_ENDPOINT and proxies") from None

    info = patiently(ask, f"hub {repo}", first_contact=True)
    if info.sha != revision:
        raise UserError(f"hub {repo}: answers for commit {info.sha} when asked for {revision}")
    return [entry_of(sibling) for sibling in info.siblings or []]


def entry_of(sibling: Any) -> Entry:
    if sibling.lfs is not None:
        checksum = f"sha256:{sibling.lfs.sha256}"
    else:
        checksum = f"git:{sibling.blob_id}" if sibling.blob_id else ""
    return Entry(sibling.rfilename, sibling.size, checksum)


def check_listed(entries: list[Entry], pins: dict[str, str], where: str) -> None:
    """Refuse hostile file names, and what the listing already shows not to be the pinned file."""
    for name, size, checksum in entries:
        check_file_name(name, where)
        if size is not None and size > MAX_HTTP_DOWNLOAD_SIZE:
            raise UserError(
                f"{where}: '{name}' is over 50 GB, which the hub does not serve over plain HTTP; "
                "fetch it with `hf download` and name the folder as `source: {path: …}`"
            )
        kind, _, found = checksum.partition(":")
        if kind == "sha256" and name in pins and pins[name].lower() != found:
            raise UserError(
                f"{where}: '{name}' has sha256 {found}, the config says {pins[name]}; "
                "it is not the file that was pinned"
            )


class Fetcher:
    """Fetches files of one commit into `place`/files by way of `place`/parts."""

    def __init__(self, repo: str, revision: str, place: Path) -> None:
        self.repo, self.revision = repo, revision
        self.folder, self.parts = place / "files", place / "parts"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.parts.mkdir(exist_ok=True)
        # Byte ranges only make sense on a file that is not compressed on its way.
        self.headers = build_hf_headers() | {"Accept-Encoding": "identity"}
        if not sys.stderr.isatty():
            disable_progress_bars()

    def modules(self, entries: list[Entry]) -> list[str] | None:
        """Folders of sentence-transformers' modules, which only its modules.json tells."""
        for entry in entries:
            if entry.name == "modules.json":
                self.fetch(entry)
                return module_folders(
                    parsed_json(self.folder / entry.name, f"hub {self.repo}", list)
                )
        return None

    def fetch_all(self, entries: list[Entry]) -> dict[str, dict]:
        """name → size and sha256 of all `entries`, largest fetched first."""
        check_space(self.folder, sum(e.size or 0 for e in entries if not self.have(e)))
        by_size = sorted(entries, key=lambda entry: -(entry.size or 0))
        pool = ThreadPoolExecutor(WORKERS)
        try:
            fetched = pool.map(self.fetch, by_size)
            return dict(sorted(zip((e.name for e in by_size), fetched, strict=True)))
        finally:
            pool.shutdown(cancel_futures=True)

    def have(self, entry: Entry) -> bool:
        path = self.folder / entry.name
        return path.is_file() and entry.size in (None, path.stat().st_size)

    def fetch(self, entry: Entry) -> dict:
        """Fetch one file unless it is there already, and whole; return its size and sha256."""
        target = self.folder / entry.name
        part = self.parts / hashlib.sha256(f"{entry.name} {entry.checksum}".encode()).hexdigest()
        if not (self.have(entry) and checksum_of(target, entry.checksum) == entry.checksum):
            patiently(lambda: self._get(entry, part), f"hub {self.repo}: '{entry.name}'")
            target.parent.mkdir(parents=True, exist_ok=True)
            part.replace(target)
        kind, _, known = entry.checksum.partition(":")
        return {
            "size": target.stat().st_size,
            "sha256": known if kind == "sha256" else sha256(target),
        }

    def _get(self, entry: Entry, part: Path) -> None:
        """Continue `part` where it ends; a part that turns out wrong is thrown away."""
        resumable = entry.size is not None and entry.checksum != ""
        with open(part, "ab" if resumable else "wb") as file:
            if entry.size is not None and file.tell() > entry.size:
                file.truncate(0)
            try:
                http_get(
                    hf_hub_url(self.repo, entry.name, revision=self.revision),
                    file,
                    resume_size=file.tell(),
                    headers=self.headers,
                    expected_size=entry.size,
                    displayed_filename=entry.name,
                )
            except HfHubHTTPError as error:
                if error.response.status_code == 416:
                    file.truncate(0)
                raise
        if entry.checksum and checksum_of(part, entry.checksum) != entry.checksum:
            part.unlink()
            raise Corrupt(f"'{entry.name}' is not what the hub lists as {entry.checksum}")


def checksum_of(path: Path, like: str) -> str:
    """Checksum of a file in the form of `like`: "sha256:…", or "git:…" (git's blob hash)."""
    if like.startswith("sha256:"):
        return f"sha256:{sha256(path)}"
    with open(path, "rb") as file:
        blob = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
        while chunk := file.read(1 << 20):
            blob.update(chunk)
    return f"git:{blob.hexdigest()}"


SILENT = (httpx2.ConnectError, httpx2.TimeoutException, httpx2.ProxyError)
BROKEN = (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError, Corrupt)


def passing(error: Exception) -> bool:
    """Whether the same request may well succeed a little later."""
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return status in (408, 416, 429) or status >= 500
    return isinstance(error, BROKEN) or cut_short(error)


def cut_short(error: Exception) -> bool:
    """http_get's own error for a body that is not as long as it should be: a bare OSError."""
    return type(error) is OSError and error.errno is None


def patiently(call: Callable[[], T], what: str, first_contact: bool = False) -> T:
    """`call()`, tried again while its error is a passing one, with growing waits or the hub's own.

    At `first_contact` a hub that is silent is not asked again: a mirror may answer sooner.
    """
    for wait in WAITS:
        try:
            return call()
        except (httpx2.HTTPError, OSError, Corrupt) as error:
            if not passing(error) or (first_contact and isinstance(error, SILENT)):
                raise
            pause = min(asked_wait(error) or wait, LONGEST_WAIT)
            print(f"{what}: {reason(error)}; again in {pause:g} s", file=sys.stderr)
        time.sleep(pause)
    return call()


def asked_wait(error: Exception) -> float | None:
    """Seconds that the server asks to wait (`Retry-After`), if it does."""
    if not isinstance(error, HfHubHTTPError):
        return None
    value = error.response.headers.get("Retry-After", "")
    return float(value) if value.isdigit() else None


def reason(error: Exception) -> str:
    """An error in a few words, without URLs: those can carry signatures."""
    if isinstance(error, HfHubHTTPError):
        return f"HTTP status {error.response.status_code}"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    text = re.sub(r"https?://\S+", "<url>", str(error)).splitlines()
    return printable(": ".join([type(error).__name__, *text[:1]]), 150)


def explained(error: Exception, repo: str, revision: str) -> Exception:
    """The exception to raise instead: `Unreachable`, or a `UserError` that says what to do."""
    where = f"hub {repo}"
    if isinstance(error, HFValidationError):
        return UserError(f"{where}: is not an id that the hub can have; name another source")
    if isinstance(error, GatedRepoError):
        return UserError(f"{where}: is gated; accept its terms on its page, {token_hint()}")
    if isinstance(error, RevisionNotFoundError):
        return UserError(f"{where}: has no commit {revision}{now(repo, 'main')}; correct it")
    if isinstance(error, RepositoryNotFoundError):
        return UserError(f"{where}: does not exist or is private; check the id, {token_hint()}")
    if isinstance(error, HfHubHTTPError) and error.response.headers.get("X-Error-Message"):
        status = error.response.status_code
        if status in (401, 403):
            return UserError(f"{where}: refuses access (HTTP status {status}); {token_hint()}")
    if isinstance(error, Corrupt):
        return UserError(f"{where}: {error}, {len(WAITS) + 1} times; a proxy or the hub changes it")
    if isinstance(error, OSError) and error.errno is not None:
        return UserError(f"{where}: {error.strerror}: {error.filename}")
    return Unreachable(reason(error))


def token_hint() -> str:
    if get_token():
        return "the token that is set (HF_TOKEN or `hf auth login`) does not give access"
    return "and set HF_TOKEN to a token that gives access"
