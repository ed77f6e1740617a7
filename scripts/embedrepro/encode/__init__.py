"""Text to vectors: several engines behind one interface. Importing this package imports no torch.

    engine = load_engine(staged, {"dtype": "float32"}, "cpu")
    for part in engine.encode(texts, "passage"):
        vectors[part.rows] = part.vectors

`Engine.encode(texts, role, instruction=None)` takes any iterable of strings and yields `Part`s as
they are done, not in the order of the texts: `rows` (n,) int64 are positions in `texts`, `vectors`
(n, dimension) float32 when computed in float32, else float16. Texts are read as needed: memory does
not grow with their number. A text's vector doesn't depend on the texts around it.

What a job calls is `job.encode_pieces`.
"""

import os
from pathlib import Path
from typing import Any

from ..errors import UserError, printable
from ..startup import import_transformers, uncollected
from .engine import ENGINES, Engine, Precision, Turning, engine_of
from .facts import Facts, resolve


@uncollected(stays=False)
def load_engine(
    staged: Path | str,
    settings: dict[str, Any] | None = None,
    device: str = "auto",
    tokens_per_batch: int | None = None,
    compiled: bool = False,
) -> Engine:
    """The engine that `stage.json` or `settings` names, with its model on `device`.

    `settings`: what a piece states over stage.json (see `facts.resolve`). `device`: auto, cpu or
    cuda. `tokens_per_batch`: None lets the engine choose. `compiled`: whether layers are compiled
    where the engine can: other bytes in half precision, and more speed after some seconds. Raises
    `UserError` for a setting, folder or device that doesn't fit.
    """
    facts = resolve(staged, settings or {})
    if facts.trust_remote_code:
        from ..models.staged import lay_out_code, verify_code

        lay_out_code(Path(staged), verify_code(Path(staged)))
    import_libraries(engine_of(facts))
    if ENGINES[engine_of(facts)].local:
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()
    engine: Engine = ENGINES[engine_of(facts)].load()(
        facts, pick_device(device), tokens_per_batch, compiled
    )
    return engine


def turn_engine(engine: Engine, settings: dict[str, Any], compiled: bool) -> bool:
    """Let a loaded model go on with other settings; False where it has to be loaded anew."""
    facts = resolve(engine.facts.staged, settings)
    return isinstance(engine, Turning) and engine.turn(facts, compiled)


def import_libraries(engine: str) -> None:
    """Import what an engine needs, which takes seconds: for who has something to do meanwhile."""
    if ENGINES[engine].local:
        # Nothing here may reach for the network: the staged folder is whole.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        import_transformers()
    try:
        with uncollected():
            ENGINES[engine].load()
    except ImportError as error:
        raise UserError(
            f"engine {engine}: can't be had with the libraries of this environment "
            f"({printable(error)}); choose another engine: or environment:"
        ) from None


def pick_device(device: str) -> str:
    """`cuda` or `cpu`; `auto` is CUDA where there is one."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda: torch sees no CUDA device; use --device cpu, or auto")
    return device


__all__ = [
    "ENGINES",
    "Engine",
    "Facts",
    "Precision",
    "import_libraries",
    "load_engine",
    "pick_device",
    "resolve",
    "turn_engine",
]
