"""The code that a model brings: which files it needs, its own and those of another repository."""

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError, printable
from ..names import slug
from ..sources.code import code_folder, elsewhere, targets


def code_files(
    spec: Mapping[str, Any], snapshot: Path, base: Path, custom: Mapping[str, Any]
) -> dict[str, Path]:
    """The files that an `auto_map` names and what they import from beside them: name → path.

    They lie in `base`, those of another repository where `fetch_code` put them in `snapshot`.
    Raises `UserError` for code that isn't here, or of which two files have one name.
    """
    waiting = [(elsewhere(target, spec), module_file(target)) for target in targets(custom)]
    found: dict[str, Path] = {}
    while waiting:
        repository, name = waiting.pop()
        folder = code_folder(snapshot, repository) if repository else base
        beside = repository and not folder.is_dir() and "hub" not in spec.get("source", {})
        path = (base if beside else folder) / name
        if not path.is_file():
            raise UserError(f"{printable(spec['id'])}: {missing(repository, name, path, beside)}")
        if found.get(name, path) != path and found[name].read_bytes() != path.read_bytes():
            raise UserError(
                f"{printable(spec['id'])}: its code has two files {printable(name)}, one of them "
                f"in {printable(repository or 'its own repository')}, and they differ"
            )
        if name not in found:
            found[name] = path
            waiting += [(repository, sibling) for sibling in imports(path, name)]
    return dict(sorted(found.items()))


def native_wanted(
    spec: Mapping[str, Any], stated: bool | None, target: object, where: str
) -> bool | None:
    """Whether transformers' own class is to be used where there is one: as the user states it; an
    environment is there for a model's own code, so it asks for that. None: nobody says.

    `target`: what the config names as code for the model. Raises `UserError` where own code is
    asked for and none is named.
    """
    own = "native: false" if stated is False else ""
    if stated is None and spec.get("environment"):
        own = "environment: is for a model's own code"
    if own and not target:
        raise UserError(f"{where}: {own}, but config.json names no code of its own")
    return False if own else stated


def missing(repository: str, name: str, path: Path, local: object) -> str:
    """What to do about code that isn't here."""
    if not repository:
        return f"its code {printable(name)} is not in the snapshot {path.parent}"
    other = printable(repository)
    if path.parent.name == slug(repository) and path.parent.is_dir():
        return f"its code {printable(name)} is not in {other} at the code_revision: that is set"
    beside = ", or put that file beside config.json" if local else ""
    return (
        f"its code {printable(name)} lies in another repository ({other}), which nothing pins; "
        f"read that code, then set code_revision: under the model to its full commit hash{beside}"
    )


def module_file(target: str) -> str:
    """'org/repo--module.Class' -> 'module.py'; a module in a folder is refused."""
    module, dot, _ = target.rpartition("--")[2].rpartition(".")
    if not dot or not module.isidentifier():
        raise UserError(f"auto_map: {printable(target)} is not module.Class")
    return f"{module}.py"


def imports(path: Path, name: str) -> list[str]:
    """The sibling files that a code file imports relatively."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{path}: not Python ({error})") from None
    siblings = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            if node.level > 1 or (node.module and "." in node.module):
                raise UserError(f"{path}: imports from outside its own folder (line {node.lineno})")
            modules = [node.module] if node.module else [alias.name for alias in node.names]
            siblings += [f"{module}.py" for module in modules]
    return siblings


def localize(custom: dict[str, Any]) -> dict[str, Any]:
    """An auto_map without `repo--` prefixes."""

    def local(value: Any) -> Any:
        if isinstance(value, list):
            return [local(item) for item in value]
        return value.rpartition("--")[2] if isinstance(value, str) else value

    return {name: local(value) for name, value in custom.items()}
