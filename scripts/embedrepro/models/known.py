"""What the registry knows of models: MTEB's metadata, and over it what people checked by hand.

`models.json` is made by tools/registry/mteb_models.py, `models.yaml` is written by hand. An entry
by hand wins key by key, but for a prompt that is the text of the generated table's `default`: then
the table, which knows the tasks that differ, stays.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

PROMPTS = ("query_prompt", "passage_prompt")


@lru_cache(2)
def _generated(registry: Path) -> dict[str, Any]:
    path = registry / "models.json"
    read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return read


@lru_cache(2)
def read_models(registry: Path) -> dict[str, dict[str, Any]]:
    """Every known model's entry by hub id (schema: rules/schemas/models.schema.json)."""
    text = (registry / "models.yaml").read_text(encoding="utf-8")
    by_hand: dict[str, dict[str, Any]] = yaml.load(text, yaml.CSafeLoader)["models"]
    known: dict[str, dict[str, Any]] = dict(_generated(registry).get("models", {}))
    for model_id, entry in by_hand.items():
        known[model_id] = laid_over(known.get(model_id, {}), entry)
    return known


def laid_over(generated: dict[str, Any], by_hand: dict[str, Any]) -> dict[str, Any]:
    if by_hand.get("revision", generated.get("revision")) != generated.get("revision"):
        return by_hand  # sizes, lengths and prompts of another revision say nothing
    merged = generated | by_hand
    for name in PROMPTS:
        table = generated.get(name)
        if isinstance(table, dict) and by_hand.get(name) == table["default"]:
            merged[name] = table
    return merged


def about(model_id: str, registry: Path) -> dict[str, str]:
    """{kind, runs, why} of a model that MTEB knows, also of those that nothing runs; else empty."""
    found: dict[str, str] = _generated(registry).get("about", {}).get(model_id, {})
    return found
