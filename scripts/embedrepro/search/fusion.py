"""Fusion of runs: reciprocal ranks, or weighted sums of normalised scores.

The formulas are those of ranx 0.3.21 (`fuse` with methods rrf, sum and wsum), which is not used
itself: it compiles with numba at each start, which takes far longer than the fusion.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..schema import over_defaults
from .runs import Ranking, iter_run, kept, ranked

DEFAULTS = {"method": "rrf", "k": 60, "normalize": "min-max", "weights": None}
CHOICES = {"method": ("rrf", "sum"), "normalize": ("min-max", "none")}


def read_spec(spec: dict[str, Any], runs: int) -> dict[str, Any]:
    """`spec` over DEFAULTS, one weight for each run; raises `UserError` naming key and value."""
    settings = over_defaults(spec, DEFAULTS, CHOICES, "fusion")
    settings["weights"] = settings["weights"] or [1.0] * runs
    if len(settings["weights"]) != runs:
        raise UserError(
            f"fusion: {len(settings['weights'])} weights for {runs} runs; give one each"
        )
    return settings


def contributions(scores: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
    """What each of one query's documents, best first, adds to its fused score; float64.

    rrf: 1 / (k + rank) (Cormack, Clarke and Büttcher, SIGIR 2009). sum: the score, min-max scaled
    to 0..1 within the query (CombSUM: Fox and Shaw, TREC-2).
    """
    if settings["method"] == "rrf":
        return 1 / (settings["k"] + np.arange(1, len(scores) + 1))
    scores = scores.astype(np.float64)
    if settings["normalize"] == "min-max":
        return (scores - scores.min()) / max(scores.max() - scores.min(), 1e-9)
    return scores


def fuse(paths: Sequence[Path | str], spec: dict[str, Any], k: int) -> Iterator[Ranking]:
    """Fuse TREC runs; yield per query, in the order they first come, the best `k` (see `kept`).

    A document missing from a run gets nothing from it. Fused scores are rounded to float32, as
    trec_eval holds them, before they are ordered.
    """
    settings = read_spec(spec, len(paths))
    fused: dict[str, dict[str, float]] = {}
    for path, weight in zip(paths, settings["weights"], strict=True):
        for query, docs, scores in iter_run(path):
            total = fused.setdefault(query, {})
            added = weight * contributions(scores, settings)
            for doc, value in zip(docs, added.tolist(), strict=True):
                total[doc] = total.get(doc, 0.0) + value
    for query, total in fused.items():
        _, docs, scores = ranked(query, total)
        depth = kept(query, docs, k)
        yield query, docs[:depth], scores[:depth]
