"""Matrix products in 8-bit floats: weights and activations each with one scale per row.

A row is scaled so that its largest magnitude is the format's largest number (448 for e4m3), as in
Micikevicius et al., "FP8 Formats for Deep Learning", arXiv:2209.05433, per row instead of per
tensor. Sums are kept by the device's tensor cores; results are bfloat16. CUDA only: rounding a row
in one pass over it takes a Triton kernel.
"""

import torch
import triton
import triton.language as tl
from torch import library
from torch._inductor.custom_graph_pass import CustomGraphPass

LARGEST = torch.finfo(torch.float8_e4m3fn).max


@triton.jit
def _read(values, gates, place, inside, GATED: tl.constexpr):
    value = tl.load(values + place, mask=inside, other=0.0).to(tl.float32)
    if GATED:
        gate = tl.load(gates + place, mask=inside, other=0.0).to(tl.float32)
        value *= gate / (1.0 + tl.exp(-gate))
    return value


@triton.jit
def _write(numbers, place, inside, value, LARGEST: tl.constexpr):
    number = tl.minimum(tl.maximum(value, -LARGEST), LARGEST)
    tl.store(numbers + place, number.to(numbers.dtype.element_ty), mask=inside)


@triton.jit
def _quantise(
    values, gates, numbers, scales, size,
    GATED: tl.constexpr, LARGEST: tl.constexpr, WIDE: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    # A row in two powers of two, so that few lanes compute what nobody stores.
    row = tl.program_id(0)
    begin = row.to(tl.int64) * size
    column = tl.arange(0, WIDE)
    value = _read(values, gates, begin + column, column < size, GATED)
    most = tl.max(tl.abs(value))
    if REST > 0:
        beyond = WIDE + tl.arange(0, REST)
        other = _read(values, gates, begin + beyond, beyond < size, GATED)
        most = tl.maximum(most, tl.max(tl.abs(other)))
    scale = tl.maximum(most, 1e-12) / LARGEST
    inverse = 1.0 / scale
    _write(numbers, begin + column, column < size, value * inverse, LARGEST)
    if REST > 0:
        _write(numbers, begin + beyond, beyond < size, other * inverse, LARGEST)
    tl.store(scales + row, scale)


@library.custom_op("embedrepro::quantise", mutates_args=())
def quantise(
    values: torch.Tensor, gates: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(…, k) values to (n, k) float8_e4m3fn and (n, 1) float32 scales, value = number × scale.

    With `gates`, of the same shape, what is rounded is values · SiLU(gates), made in float32.
    """
    values = values.contiguous()
    gates = None if gates is None else gates.contiguous()
    numbers, scales = _like(values)
    rows, size = numbers.shape
    wide = 2 ** (size.bit_length() - 1)
    rest = triton.next_power_of_2(size - wide) if size > wide else 0
    _quantise[(rows,)](
        values, gates, numbers, scales, size, gates is not None, LARGEST, wide, rest,
        num_warps=min(max(wide // 1024, 1), 16),
    )  # fmt: skip
    return numbers, scales


@quantise.register_fake
def _like(
    values: torch.Tensor, gates: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    rows, size = values.shape[:-1].numel(), values.shape[-1]
    numbers = torch.empty(rows, size, dtype=torch.float8_e4m3fn, device=values.device)
    return numbers, torch.empty(rows, 1, dtype=torch.float32, device=values.device)


class RoundOnce(CustomGraphPass):
    """In a compiled layer, round once what several products read (query, key and value)."""

    def __call__(self, graph: torch.fx.Graph) -> None:
        first: dict[tuple, torch.fx.Node] = {}
        for node in list(graph.nodes):
            if node.target is torch.ops.embedrepro.quantise.default:
                same = first.setdefault(node.args, node)
                if same is not node:
                    node.replace_all_uses_with(same)
                    graph.erase_node(node)

    def uuid(self) -> str:
        return "embedrepro round once 1"


class Fp8Linear(torch.nn.Module):
    """A linear layer's product in float8; input and output are bfloat16."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        weight, scale = quantise(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale.t().contiguous())
        self.bias = linear.bias

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        found = self.product(*quantise(values))
        return found.view(*values.shape[:-1], -1)

    def product(self, numbers: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """(n, k) rows as `quantise` gives them to (n, out)."""
        found = torch._scaled_mm(
            numbers,
            self.weight.t(),
            scale_a=scale,
            scale_b=self.scale,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        return found if self.bias is None else found + self.bias


class Fp8Gated(torch.nn.Module):
    """down(SiLU(gate(x)) · up(x)): x is rounded once, and the product while it is made."""

    def __init__(self, gate: Fp8Linear, up: Fp8Linear, down: Fp8Linear) -> None:
        super().__init__()
        self.gate, self.up, self.down = gate, up, down

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        rows = quantise(values)
        found = self.down.product(*quantise(self.up.product(*rows), self.gate.product(*rows)))
        return found.view(*values.shape[:-1], -1)


def replace_linear(layers: torch.nn.Module, activation: str | None) -> None:
    """Put an `Fp8Linear` in the place of each linear layer whose sizes the product can take.

    `activation`: the config's name of it; gated feed-forward parts with SiLU become `Fp8Gated`.
    """
    torch._inductor.config.post_grad_custom_pre_pass = RoundOnce()
    for parent in list(layers.modules()):
        for name, child in parent.named_children():
            if isinstance(child, torch.nn.Linear) and not any(s % 16 for s in child.weight.shape):
                setattr(parent, name, Fp8Linear(child))
    for parent in list(layers.modules()):
        for name, child in parent.named_children():
            parts = [getattr(child, f"{part}_proj", None) for part in ("gate", "up", "down")]
            if activation == "silu" and all(isinstance(part, Fp8Linear) for part in parts):
                setattr(parent, name, Fp8Gated(*parts))  # type: ignore[arg-type]
