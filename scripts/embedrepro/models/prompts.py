"""What MTEB puts before queries and passages, by model and task, without mteb.

Read from two generated files of the registry: `mteb_tasks.json` (tasks, and which dataset of ours
each is) and `prompts.json` (models). The order of names and of instructions is that of
`mteb/models/{abs_encoder,sentence_transformer_wrapper,instruct_wrapper}.py` (2.26.24):

- named: the text under `<task>-<role>`, `<task>`, `<type>-<role>`, `<type>`, `<role>`, the first
  that is there; then what sentence-transformers itself falls back on (passage, corpus).
- instruct: the model's instruction for the task, its type or the role, then the task's own, in the
  model's order; without one the instruction of the task's class; put into the model's template.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

REGISTRY = Path(__file__).resolve().parents[3] / "rules" / "registry"
Role = Literal["query", "passage"]
ROLES: dict[Role, str] = {"query": "query", "passage": "document"}  # ours: mteb's
PRIORITY = ("custom_prompt", "task_type_prompt", "encode_type_prompt", "default_task_prompt")


@dataclass(frozen=True)
class Place:
    """Where MTEB publishes scores of one split of a dataset."""

    task: str
    subset: str
    split: str


@lru_cache(4)
def _read(path: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return read


def tasks(registry: Path = REGISTRY) -> dict[str, Any]:
    """All of `mteb_tasks.json`; see the head of `tools/registry/mteb_tasks.py`."""
    return _read(registry / "mteb_tasks.json")


def model(model_id: str, registry: Path = REGISTRY) -> dict[str, Any]:
    """The entry of `prompts.json`; empty where mteb doesn't know the model."""
    entry: dict[str, Any] = _read(registry / "prompts.json")["models"].get(model_id, {})
    return entry


def places(dataset: str, registry: Path = REGISTRY) -> dict[str, list[Place]]:
    """{split of ours: places} for a dataset's name; empty where it is no task of MTEB's."""
    known = tasks(registry)
    if dataset in known["datasets"]:
        splits: dict[str, list[list[str]]] = known["datasets"][dataset]
        return {split: [Place(*row) for row in rows] for split, rows in splits.items()}
    for task, subset in ((dataset, ""), tuple(dataset.rpartition("/")[::2])):
        entry = known["tasks"].get(task)
        if entry and (not subset or subset in entry["subsets"]):
            if not subset and len(entry["subsets"]) > 1:
                return {}
            subset = subset or entry["subsets"][0]
            return {split: [Place(task, subset, split)] for split in entry["splits"]}
    return {}


def task_of(dataset: str, registry: Path = REGISTRY) -> str | None:
    """The MTEB task that a dataset's name stands for: "SciFact" for "beir/scifact"."""
    for rows in places(dataset, registry).values():
        return rows[0].task
    return None


def prompt_of(model_id: str, task: str, role: Role, registry: Path = REGISTRY) -> str | None:
    """What mteb puts before each text; None where the model's own files or code decide.

    `task` is MTEB's name of it (see `task_of`).
    """
    entry = model(model_id, registry)
    about = tasks(registry)["tasks"].get(task)
    if about is None or "way" not in entry:
        return None
    if entry["way"] == "instruct":
        return _instructed(entry, task, about, role)
    return _named(entry, task, about["type"], ROLES[role])


def _named(entry: Mapping[str, Any], task: str, kind: str, role: str) -> str | None:
    prompts = entry.get("prompts")
    if prompts is None:
        return None
    names = [f"{task}-{role}", task, f"{kind}-{role}", kind, role]
    names += [entry["fallback"]] if "fallback" in entry else []
    names += ["passage", "corpus"] if role == "document" else []
    return next((prompts[name] for name in names if name in prompts), "")


def _instructed(entry: Mapping[str, Any], task: str, about: Mapping[str, Any], role: Role) -> str:
    if role == "passage" and entry.get("passages") is False:
        return ""
    text = _instruction(entry, task, about, ROLES[role])
    if "template" not in entry:
        return text
    filled, empty = map(str, entry["template"][role])
    return filled.replace("{task}", text) if text else empty


def _instruction(entry: Mapping[str, Any], task: str, about: Mapping[str, Any], role: str) -> str:
    own = entry.get("prompts", {})
    stated = about.get("instruction")
    names = {
        "custom_prompt": task,
        "task_type_prompt": about["type"],
        "encode_type_prompt": role,
    }
    found = stated
    for source in entry.get("priority", PRIORITY):
        if source == "default_task_prompt":
            if stated.get(role) if isinstance(stated, dict) else stated:
                break
        elif names[source] in own:
            found = own[names[source]]
            break
    if isinstance(found, dict):
        return str(found.get(role) or "")
    return str(found or about["fallback"])
