"""Queries encoded ahead of the job that asks for them.

Starting up takes longer than encoding most queries. So the job of a corpus' first shard, which has
the model loaded, encodes them too and leaves them under a temporary name beside where they belong;
their own job, which comes after it, gives them their name.
"""

import os
from pathlib import Path
from typing import Any

from .. import files
from ..errors import UserError
from ..vectors import dense
from .facts import resolve


def waiting(output: Path) -> Path:
    """Where `output` lies until its own job comes."""
    return output.with_name(f"{files.TEMPORARY}ahead-{output.name}")


def is_whole(path: Path) -> bool:
    try:
        dense.load_array(path)
    except UserError:
        return False
    return True


def take(output: Path) -> bool:
    """Give what was encoded ahead its name; False where nothing whole is there."""
    early = waiting(output)
    if not is_whole(early):
        for part in (early, dense.sidecar(early)):
            files.remove(part)
        return False
    try:
        os.replace(dense.sidecar(early), files.sidecar(output))
        os.replace(early, output)
    except FileNotFoundError:  # another workflow took it
        return False
    return True


def encode_ahead(engine: Any, wanted: list[dict[str, Any]]) -> None:
    """Encode the queries that are not there yet; each of `wanted` has texts, spec and output."""
    from .shard import encode_shard

    facts = engine.facts
    for item in wanted:
        output = Path(item["output"])
        if output.exists() or is_whole(waiting(output)):
            continue
        engine.use(resolve(facts.staged, item["spec"].get("facts") or {}))
        encode_shard(engine, Path(item["texts"]), item["spec"], "query", 0, 1, waiting(output))
    engine.use(facts)
