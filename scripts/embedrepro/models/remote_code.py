"""The code that a model brings: which files it needs, and that they lead nowhere else."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError, printable


def code_files(snapshot: Path, custom: dict[str, Any]) -> list[str]:
    """The files that an `auto_map` names and what they import from beside them."""
    waiting = [module_file(target) for target in targets(custom)]
    found: list[str] = []
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        path = snapshot / name
        if not path.is_file():
            raise UserError(f"{snapshot}: its code {printable(name)} is not in the snapshot")
        found.append(name)
        waiting += imports(path, name)
    return sorted(found)


def refuse_elsewhere(spec: Mapping[str, Any], custom: dict[str, Any]) -> None:
    """Refuse code that lies in another repository: no commit of that is pinned here."""
    source = spec.get("source", {})
    own = {str(spec["id"]).lower(), str(source.get("hub", spec["id"])).lower()}
    for target in targets(custom):
        repository, there, _ = target.rpartition("--")
        if there and "hub" in source and repository.lower() not in own:
            raise UserError(
                f"{printable(spec['id'])}: its code lies in another repository "
                f"({printable(repository)}), which nothing pins; put that code beside config.json "
                "of a local copy and give it as source: {path: ...}"
            )


def targets(custom: dict[str, Any]) -> Iterator[str]:
    for value in custom.values():
        for target in value if isinstance(value, list) else [value]:
            if target is not None:
                yield str(target)


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
