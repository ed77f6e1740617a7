"""A folder that holds a PEFT adapter: what it is for, and that nobody pinned its base model."""

import re
from pathlib import Path
from typing import Any

from ..errors import UserError, printable
from ..files import read_json

ADAPTER = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
COMMIT = re.compile(r"[0-9a-f]{40}")
WHOLE = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


def read_adapter(folder: Path) -> dict[str, Any]:
    """The adapter_config.json in `folder`. Raises `UserError`."""
    settings = read_json(folder / ADAPTER)
    if not isinstance(settings, dict):
        raise UserError(f"{folder / ADAPTER}: not a table")
    return settings


def refuse_baseless(folder: Path, model_id: str, now: str = "") -> None:
    """Refuse an adapter of which nothing says what it changes; `now`: where its base stands."""
    if not (folder / ADAPTER).is_file():
        return
    settings = read_adapter(folder)
    base, commit = settings.get("base_model_name_or_path"), settings.get("revision")
    whole = any((folder / name).is_file() for name in WHOLE)
    merged = f"give that folder without {ADAPTER} as source: {{path: …}}"
    said = f"{printable(model_id)}: holds an adapter ({ADAPTER}, for {printable(base)})"
    if whole and not any((folder / name).is_file() for name in WEIGHTS):
        raise UserError(
            f"{said} beside full weights and without its own; if the full ones hold it, {merged}"
        )
    hub = base if HUB_ID.fullmatch(str(base)) else "its id"  # others name a disk of their author's
    known = commit if COMMIT.fullmatch(str(commit)) else "its full commit hash"
    said += (
        " beside full weights, and nothing says whether they hold it already"
        if whole
        else " and not the model that it changes"
    )
    raise UserError(
        f"{said}; set base: {{hub: {hub}, revision: {known}}} or base: {{path: a folder}} under "
        f"the model{now}" + (f"; if they do, {merged}" if whole else "")
    )
