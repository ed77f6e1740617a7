"""Matrix products in 8-bit floats: weights and activations each with one scale per row.

A row is scaled so that its largest magnitude is the format's largest number (448 for e4m3), as in
Micikevicius et al., "FP8 Formats for Deep Learning", arXiv:2209.05433, per row instead of per
tensor. Sums are kept by the device's tensor cores; results are bfloat16.
"""

import torch

LARGEST = torch.finfo(torch.float8_e4m3fn).max


def quantise(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, k) values to (n, k) float8_e4m3fn and (n, 1) float32 scales, value = number × scale."""
    scale = rows.abs().amax(-1, keepdim=True).float().clamp(min=1e-12) / LARGEST
    return (rows.float() / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scale


class Fp8Linear(torch.nn.Module):
    """A linear layer's product in float8; input and output are bfloat16."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        weight, scale = quantise(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale.t().contiguous())
        self.bias = linear.bias

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        numbers, scale = quantise(values.reshape(-1, values.shape[-1]))
        found = torch._scaled_mm(
            numbers,
            self.weight.t(),
            scale_a=scale,
            scale_b=self.scale,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        if self.bias is not None:
            found = found + self.bias
        return found.view(*values.shape[:-1], -1)


def replace_linear(layers: torch.nn.Module) -> None:
    """Put an `Fp8Linear` in the place of each linear layer whose sizes the product can take."""
    for parent in list(layers.modules()):
        for name, child in parent.named_children():
            if isinstance(child, torch.nn.Linear) and not any(s % 16 for s in child.weight.shape):
                setattr(parent, name, Fp8Linear(child))
