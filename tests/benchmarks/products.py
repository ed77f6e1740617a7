"""Float32 products on one GPU: plain, from split factors, and TF32 alone; error and speed.

A float32 number is the sum of one with the 10 bits of mantissa that TensorFloat-32 keeps and of a
rest, so three products on the matrix units give nearly a float32 product. The units round their
sums towards zero, which shows with the number of terms; so terms are summed `split/N` at a time.
On an H200 what is as exact as plain float32 (256 terms) is as fast as it, and what is twice as fast
(all terms) is 5 to 20 times less exact: the engines compute plain float32.

    python tests/benchmarks/products.py

Each line: rows x in x out, milliseconds, TFLOP/s, and the error against float64: root mean square
and largest, in units of the root mean square of the result.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SHAPES = ((4096, 384, 1536), (4096, 768, 3072), (4096, 1536, 1536), (4096, 1536, 8960),
          (4096, 8960, 1536), (16384, 1536, 8960), (4096, 3584, 18944))  # fmt: skip


def split(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 `values` as (high, low): high has 10 bits of mantissa, high + low is `values`."""
    bits = values.contiguous().view(torch.int32)
    high = ((bits + 0x1000) & ~0x1FFF).view(torch.float32)
    return high, values - high


class SplitLinear(torch.nn.Module):
    """`linear`, a float32 layer on a GPU, as three products."""

    def __init__(self, linear: torch.nn.Linear, chunk: int) -> None:
        super().__init__()
        high, low = split(linear.weight.detach())
        self.register_buffer("high", high, persistent=False)
        self.register_buffer("low", low, persistent=False)
        self.bias = linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.chunk = chunk

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """(…, in) → (…, out), float32."""
        high, low = split(values.reshape(-1, self.in_features))
        found = torch.zeros(len(high), self.out_features, device=values.device)
        with tensor_floats():
            for start in range(0, self.in_features, self.chunk):
                part = slice(start, start + self.chunk)
                found.addmm_(low[:, part], self.high[:, part].T)
                found.addmm_(high[:, part], self.low[:, part].T)
                found.addmm_(high[:, part], self.high[:, part].T)
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


def seconds(run) -> float:
    """Of one call, the median of seven, each of several calls."""
    times = []
    for _ in range(7):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(5):
            run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 5e3)
    return sorted(times)[3]


def main() -> None:
    print(torch.cuda.get_device_name(), torch.__version__)
    torch.manual_seed(1)
    for rows, inner, outer in SHAPES:
        values = torch.randn(rows, inner, device="cuda")
        layer = torch.nn.Linear(inner, outer, bias=False, device="cuda")
        exact = values.double() @ layer.weight.double().T

        def tf32(values=values, layer=layer):
            with tensor_floats():
                return layer(values)

        def half(values=values, layer=layer):
            return values.bfloat16() @ layer.weight.bfloat16().T

        ways = {"plain": layer, "tf32": lambda _, run=tf32: run()}
        for chunk in (128, 256, 512, 1024, 10**6):
            ways[f"split/{chunk}"] = SplitLinear(layer, chunk)
        ways["bfloat16"] = lambda _, run=half: run()
        with torch.inference_mode():
            for name, run in ways.items():
                off = (run(values).double() - exact) / exact.pow(2).mean().sqrt()
                time = seconds(lambda run=run, values=values: run(values))
                rate = 2e-12 * rows * inner * outer / time
                print(f"{rows} x {inner} x {outer}  {name:13} {time * 1e3:8.3f} ms {rate:7.1f}"
                      f"  rms {off.pow(2).mean().sqrt():.2e}  largest {off.abs().max():.2e}",
                      flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
