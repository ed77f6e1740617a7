"""A folder that holds a PEFT adapter: what it is for, and that nobody pinned its base model."""

from pathlib import Path
from typing import Any

from ..errors import UserError, printable
from ..files import read_json

ADAPTER = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
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
    weights = any((folder / name).is_file() for name in WEIGHTS)
    if any((folder / name).is_file() for name in WHOLE):
        holds = "beside full weights, and nothing says whether they hold it already"
        if not weights:
            holds = "beside full weights and no weights of its own"
        other = "; if the weights hold it already, give the folder without that file"
    else:
        holds, other = "and not the model that it changes", ""
    known = printable(commit, 60) if commit and len(str(commit)) == 40 else "its full commit hash"
    raise UserError(
        f"{printable(model_id)}: holds an adapter ({ADAPTER}, for {printable(base)}) {holds}; set "
        f"base: {{hub: {printable(base)}, revision: {known}}} or base: {{path: a folder}} under "
        f"the model{now}{other}"
    )
