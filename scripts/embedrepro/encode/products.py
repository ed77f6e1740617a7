"""Float32 products on a GPU from split factors: about three times as fast, as exact.

A float32 number is the sum of one with the 10 bits of mantissa that TensorFloat-32 keeps and of a
rest. Three products on the matrix units, high by high, high by low and low by high, added in
float32, give a float32 product: what is left out is a 2^-22nd of each term. `tests/benchmarks/
products.py` holds error and speed against plain float32.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SMALLEST = 2**20  # elements of a weight below which splitting costs more than it saves


def split(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 `values` as (high, low): high has 10 bits of mantissa, high + low is `values`."""
    bits = values.contiguous().view(torch.int32)
    high = ((bits + 0x1000) & ~0x1FFF).view(torch.float32)
    return high, values - high


class SplitLinear(torch.nn.Module):
    """`linear`, a float32 layer on a GPU, as three products."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        high, low = split(linear.weight.detach())
        self.register_buffer("high", high, persistent=False)
        self.register_buffer("low", low, persistent=False)
        self.bias = linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """(…, in) → (…, out), float32."""
        high, low = split(values.reshape(-1, self.in_features))
        with tensor_floats():
            found = low @ self.high.T
            found.addmm_(high, self.low.T)
            found.addmm_(high, self.high.T)
        if self.bias is not None:
            found += self.bias
        return found.reshape(*values.shape[:-1], self.out_features)


@contextmanager
def tensor_floats() -> Iterator[None]:
    """Products of float32 factors on the matrix units, which read 10 bits of their mantissa."""
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


def split_products(model: torch.nn.Module) -> None:
    """Replace the large linear layers of a float32 model on a GPU."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is torch.nn.Linear and child.weight.numel() >= SMALLEST:
                setattr(parent, name, SplitLinear(child))
