"""Code that a model's config names in another repository: `other/repo--module.Class`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError, printable
from ..files import read_json
from ..names import slug
from .snapshot import Unreachable

CODE = "code"  # folder of a snapshot, in it one for each other repository


def targets(custom: Mapping[str, Any]) -> Iterator[str]:
    """What an `auto_map` names, `module.Class` or `org/repo--module.Class`."""
    for value in custom.values():
        for target in value if isinstance(value, list) else [value]:
            if target is not None:
                yield str(target)


def elsewhere(target: str, spec: Mapping[str, Any]) -> str:
    """The other repository that a target of `spec`'s model lies in, or ""."""
    repository, there, _ = target.rpartition("--")
    own = {str(spec["id"]).lower(), str(spec.get("source", {}).get("hub", spec["id"])).lower()}
    return repository if there and repository.lower() not in own else ""


def code_folder(snapshot: Path, repository: str) -> Path:
    """Where the code of another repository lies in a snapshot."""
    return snapshot / CODE / slug(repository)


def fetch_code(spec: Mapping[str, Any], folder: Path, scratch: Path) -> dict[str, dict[str, Any]]:
    """Fetch the code that the config in `folder` names elsewhere, at the spec's `code_revision`.

    All Python files of that repository's root come to `folder`/code/<its slug>/; returns their
    names → size and sha256. Raises `UserError`.
    """
    revision = spec.get("code_revision")
    if not revision:
        return {}
    from .hub_client import fetch_files

    where = printable(spec["id"])
    config = folder / "config.json"
    custom = read_json(config).get("auto_map") or {} if config.is_file() else {}
    found = {elsewhere(target, spec) for target in targets(custom)} - {""}
    if len(found) != 1:
        named = f"in several ({', '.join(sorted(found))})" if found else "in no other"
        raise UserError(
            f"{where}: code_revision: is the commit of the one other repository that its code "
            f"lies in, and config.json names code {printable(named)}"
        )
    (repository,) = found
    try:
        hashes = fetch_files(repository, revision, scratch / "code", ".py")
    except Unreachable as error:
        raise UserError(
            f"{where}: its code can't be fetched from {printable(repository)}: {error}; check the "
            "network"
        ) from None
    place = code_folder(folder, repository)
    place.mkdir(parents=True, exist_ok=True)
    for name in hashes:
        (place / name).write_bytes((scratch / "code" / "files" / name).read_bytes())
    prefix = place.relative_to(folder).as_posix()
    return {f"{prefix}/{name}": facts for name, facts in hashes.items()}
