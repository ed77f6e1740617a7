"""The registry of public benchmarks, `rules/registry/datasets.yaml`."""

from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError, printable
from ..schema import nearest

FAMILY_ONLY = "datasets"


def read_registry(path: Path | str) -> dict[str, dict[str, Any]]:
    """Every dataset of the registry by name, `msmarco-passage` or `beir/scifact`.

    In the file a family (`beir`) holds what its datasets share; each dataset adds to that or
    replaces it, mapping by mapping, and "{subset}" stands for its name within the family. An entry
    has `name`, `source`, `splits` (our name: the source's) and the facts that
    `rules/schemas/datasets.schema.json` describes.
    """
    # The C loader: every job of a cluster reads this anew, and the other one takes a second.
    families = yaml.load(Path(path).read_text(encoding="utf-8"), yaml.CSafeLoader)
    entries = {}
    for family, shared in families.items():
        common = {key: value for key, value in shared.items() if key != FAMILY_ONLY}
        for subset, own in shared.get(FAMILY_ONLY, {"": {}}).items():
            name = f"{family}/{subset}" if subset else family
            entries[name] = {"name": name} | merged(common, own, subset)
    return entries


def merged(common: Any, own: Any, subset: str) -> Any:
    """`own` laid over `common`, with "{subset}" replaced."""
    if isinstance(common, dict) and isinstance(own, dict):
        keys = [*common, *(key for key in own if key not in common)]
        return {k: merged(common.get(k), own.get(k, common.get(k)), subset) for k in keys}
    return own.replace("{subset}", subset) if isinstance(own, str) else own


def expand(name: str, known: dict[str, dict[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """The entry that `name` means and the splits to evaluate.

    `beir/scifact` means all of its splits, `msmarco-passage/dl19` one of them. Raises `UserError`
    with the nearest known names for any other.
    """
    if name in known:
        return known[name], list(known[name]["splits"])
    dataset, _, split = name.rpartition("/")
    if dataset in known:
        splits = known[dataset]["splits"]
        if split in splits:
            return known[dataset], [split]
        raise UserError(
            f"dataset {dataset} has no split '{printable(split, 60)}'; it has {', '.join(splits)}"
        )
    family = [entry for entry in known if entry.startswith(f"{name}/")]
    if family:
        raise UserError(f"'{name}' is a family of datasets; name some of {', '.join(family)}")
    raise UserError(
        f"the registry knows no dataset '{printable(name, 80)}'{nearest(name, known)}; give it in "
        "full with name, source and splits if it is your own"
    )
