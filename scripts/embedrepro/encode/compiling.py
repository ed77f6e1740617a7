"""torch's compiler for a model's layers. Importing this imports 500 modules."""

from collections.abc import Iterable

import torch
from torch._inductor import config

config.compile_threads = 1  # what one layer needs takes less than to start workers
# No timing on the device decides which kernel runs: two processes get the same bytes.
config.deterministic = True

import torch._dynamo  # noqa: E402
import torch._inductor.compile_fx  # noqa: E402, F401


def compile_layers(layers: Iterable[torch.nn.Module]) -> None:
    """Compile each module's forward; modules of one kind share what was compiled."""
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=False, fullgraph=True)
