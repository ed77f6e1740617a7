"""What decides a dataset's content: digests of the local files that are read, pins of the others.

Where a folder lies is in none of it: the same data moved elsewhere is the same dataset.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError, printable
from ..files import digest, measured_pieces
from ..sources.snapshot import remembered
from .folder import FOLDERS, Folder

SOURCE_KINDS = (*FOLDERS, "hub", "ir_datasets")
MOST_THREADS = 16
PARTS = {"corpus": ("corpus",), "split": ("queries", "qrels")}  # of a source, that each is made of


@dataclass(frozen=True)
class Digest:
    """`key`: 12 hex digits over the files' content; `bytes`: their size on the disk; `lines`: of
    the first file, at least as many as its records, None where it is compressed."""

    key: str
    bytes: int
    lines: int | None


def local_kind(source: Mapping[str, Any]) -> str | None:
    """The layout of a source that is a local folder; None for any other source."""
    return next((kind for kind in FOLDERS if kind in source), None)


def source_kind(source: Mapping[str, Any], where: str) -> str:
    """The key that says what a source is; `where` starts the message of a `UserError`."""
    given = [kind for kind in SOURCE_KINDS if kind in source]
    if len(given) != 1:
        shown = printable(", ".join(source)) or "nothing"
        kinds = ", ".join(SOURCE_KINDS)
        raise UserError(f"{where}: its source has {shown}; give exactly one of {kinds}")
    return given[0]


def corpus_digest(source: Mapping[str, Any], cache: Path | None = None) -> Digest:
    """Digest of the file that a corpus is read from.

    `source`: {beir: folder} or {flagembedding: folder}. `cache`: a folder that remembers the
    digests of files that did not change. Raises `UserError` where a file is missing.
    """
    return _digest(source, "", "corpus", cache)


def split_digest(source: Mapping[str, Any], split: str, cache: Path | None = None) -> Digest:
    """The same for the files that the queries and judgements of `split`, the source's name of
    it, are read from; `lines` are those of the queries' file."""
    return _digest(source, split, "split", cache)


def _digest(source: Mapping[str, Any], split: str, what: str, cache: Path | None) -> Digest:
    kind = local_kind(source)
    if kind is None:
        raise ValueError(f"not a local source: {source}")
    folder: Folder = FOLDERS[kind](dict(source))
    files = {part: folder.file(part, split) for part in PARTS[what]}
    paths = {path.relative_to(folder.folder).as_posix(): path for path in files.values()}
    if cache is None:
        found = measured(paths)
    else:
        memory = f"data-{digest(str(folder.folder.resolve()))}.json"
        found = remembered(paths, cache / "digests" / memory, measured)
    by_part = [found[path.relative_to(folder.folder).as_posix()] for path in files.values()]
    # Whether a file is gzipped is told by its name.
    content = [[facts["pieces"], facts["lines"] is None] for facts in by_part]
    size = sum(facts["size"] for facts in by_part)
    return Digest(digest([kind, what, content]), size, by_part[0]["lines"])


def measured(paths: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """name → {"size": bytes, "pieces": hex, "lines": number, or None for a gzipped file}.

    "pieces" is a digest of the digests of a file's pieces, which many threads make at once.
    """
    facts = {}
    for name, path in paths.items():
        pieces = measured_pieces(path, MOST_THREADS, count_lines=True)
        lines = sum(piece.lines for piece in pieces) + bool(pieces and not pieces[-1].ended)
        facts[name] = {
            "size": sum(piece.size for piece in pieces),
            "pieces": digest([piece.sha256 for piece in pieces], 64),
            "lines": None if path.suffix == ".gz" else lines,
        }
    return facts


def corpus_identity(source: Mapping[str, Any], cache: Path | None = None) -> dict[str, Any]:
    """What decides a corpus' content: for a key, and for the record of what was read.

    {hub, revision} with the corpus' configuration where it is given, {ir_datasets: id}, or {layout:
    digest} of a local folder.
    """
    if kind := local_kind(source):
        return {kind: corpus_digest(source, cache).key}
    return {
        key: source[key] for key in ("hub", "revision", "corpus", "ir_datasets") if key in source
    }


def split_identity(
    source: Mapping[str, Any], theirs: str | Mapping[str, Any], cache: Path | None = None
) -> dict[str, Any]:
    """What decides the queries and judgements of a split; see `corpus_identity`.

    `theirs`: the source's name of the split, or {source, split} of another source.
    """
    if not isinstance(theirs, str):
        return split_identity(theirs["source"], theirs["split"], cache)
    if kind := local_kind(source):
        return {kind: split_digest(source, theirs, cache).key}
    if "ir_datasets" in source:
        return {"ir_datasets": theirs if "/" in theirs else f"{source['ir_datasets']}/{theirs}"}
    pins = {key: source[key] for key in ("hub", "revision", "queries", "qrels") if key in source}
    return pins | {"split": theirs}
