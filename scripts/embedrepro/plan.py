"""What an experiment still has to do: jobs, bytes and device hours, before anything runs."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Registry-free guesses, used where a dataset or a model doesn't say.
TOKENS_A_PASSAGE = 90  # MS MARCO passages have 81 Qwen tokens on average
BYTES_A_PARAMETER = 4
TOKENIZED_A_SECOND = 40_000  # passages, the tokenizer's bound on 16 cores


def count(steps: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add to each step how many of its outputs are there already.

    A step is {"step", "what", "outputs": [paths], "bytes": to download in all or None,
    "seconds": device seconds in all or None}; bytes and seconds shrink to the share still to do.
    """
    counted = []
    for step in steps:
        cached = sum(Path(path).exists() for path in step["outputs"])
        share = 1 - cached / len(step["outputs"])
        rest = {
            key: None if step.get(key) is None else step[key] * share
            for key in ("bytes", "seconds")
        }
        total = len(step["outputs"])
        counted.append({**step, **rest, "cached": cached, "to_do": total - cached})
    return counted


def encode_seconds(documents: int | None, parameters: int | None, tflops: float) -> float | None:
    """Device seconds to encode a corpus; None where its or the model's size isn't known.

    A token costs 2 operations for each parameter; a small model waits for the tokenizer instead.
    """
    if documents is None or parameters is None:
        return None
    products = documents * TOKENS_A_PASSAGE * 2 * parameters / (tflops * 1e12)
    return max(products, documents / TOKENIZED_A_SECOND)


def table(counted: list[dict[str, Any]], tflops: float) -> str:
    """The plan as text: a line a step, then the sums."""
    lines = [f"{'step':<18} {'cached':>7} {'to do':>7} {'download':>10} {'device time':>12}  what"]
    for step in counted:
        lines.append(
            f"{step['step']:<18} {step['cached']:>7,} {step['to_do']:>7,} "
            f"{_bytes(step['bytes']):>10} {_time(step['seconds']):>12}  {step['what']}"
        )
    unknown = sum(s["seconds"] is None and s["step"] == "encode_corpus" for s in counted)
    total = sum(s["seconds"] or 0 for s in counted)
    download = sum(s["bytes"] or 0 for s in counted)
    jobs = sum(s["to_do"] for s in counted)
    lines.append("")
    lines.append(
        f"{jobs:,} outputs to make, {_bytes(download)} to download, {_time(total)} on one device "
        f"at {tflops:g} TFLOP/s"
        + (f"; {unknown} corpora of unknown size left out" if unknown else "")
    )
    return "\n".join(lines)


def _bytes(count: float | None) -> str:
    if not count:
        return "?" if count is None else "-"
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _time(seconds: float | None) -> str:
    if not seconds:
        return "?" if seconds is None else "-"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
