"""Keys: short digests over all that changes a file's content, known before anything runs.

A key stands in the path, so a changed setting is a new path and a stale file can't be picked up.
What doesn't change the content (shard count, batch size, devices) is never part of a key.
"""

from typing import Any

from .files import digest

# Raise a number when the code of that step starts to give other bytes for the same input.
RECIPE = {
    "download": 1,
    "stage": 1,
    "dataset": 1,
    "encode": 2,
    "search": 1,
    "bm25": 2,
    "fuse": 2,
    "rerank": 1,
}

STAGE_FACTS = ("attention", "end_token", "padding_side", "pooling", "normalize")
ENCODE_FACTS = ("query_prompt", "passage_prompt", "max_length", "dtype", "engine", "dimensions")
# What staging reads of a registry entry; notes and sources change no folder.
REGISTRY_FACTS = (*STAGE_FACTS, *ENCODE_FACTS, "custom_code", "unsupported", "max_tokens")


def of(step: str, *parts: Any) -> str:
    """The key of a step's output from everything that changes it."""
    return digest([step, RECIPE[step], *parts])


def role_facts(facts: dict[str, Any], role: str) -> dict[str, Any]:
    """The encode facts that change the vectors of one role (`query` or `passage`)."""
    shared = {name: facts[name] for name in ("dtype", "engine", "dimensions") if name in facts}
    prompt = {name: facts[name] for name in (f"{role}_prompt",) if name in facts}
    length = (
        {"max_length": facts["max_length"][role]} if role in facts.get("max_length", {}) else {}
    )
    return shared | prompt | length
