"""Keys: short digests over all that changes an artifact's bytes, and nothing that doesn't.

A key stands in the path and is the artifact's only identity: a changed setting is a new path, so
nothing stale can be picked up. Shard counts, batch sizes, devices and locations are never in one.
"""

from typing import Any

from ..files import digest

# Raise a number when the code of that step starts to give other bytes for the same input.
RECIPE = {
    "download": 1,
    "environment": 1,
    "stage": 4,
    "preflight": 1,
    "corpus": 1,
    "split": 1,
    "encode": 8,
    "cut": 1,
    "calibrate": 1,
    "quantize": 1,
    "stored": 1,
    "search": 2,
    "refine": 3,
    "weighted": 1,
    "maxsim": 1,
    "bm25": 2,
    "fuse": 2,
    "rerank": 2,
    "run": 1,
    "score": 2,
    "report": 2,
    "reference": 1,
}


def key_of(step: str, *parts: Any) -> str:
    """The key of a step's artifact: 12 hex digits from its recipe's number and `parts` (JSON)."""
    return digest([step, RECIPE[step], *parts])
