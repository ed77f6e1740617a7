"""Float32 products on one GPU: plain, from split factors, and TF32 alone; error and speed.

    python tests/benchmarks/products.py

Each line: rows x in x out, milliseconds, TFLOP/s, and the error against float64: root mean square
and largest, in units of the root mean square of the result.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
from embedrepro.encode.products import SplitLinear, tensor_floats

SHAPES = ((4096, 384, 1536), (4096, 768, 3072), (4096, 1536, 1536), (4096, 1536, 8960),
          (4096, 8960, 1536), (16384, 1536, 8960), (4096, 3584, 18944))  # fmt: skip


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

        ways = {"plain": layer, "split": SplitLinear(layer), "tf32": lambda _, run=tf32: run()}
        ways["bfloat16"] = lambda _, run=half: run()
        with torch.inference_mode():
            for name, run in ways.items():
                off = (run(values).double() - exact) / exact.pow(2).mean().sqrt()
                time = seconds(lambda run=run, values=values: run(values))
                rate = 2e-12 * rows * inner * outer / time
                print(f"{rows} x {inner} x {outer}  {name:9} {time * 1e3:8.3f} ms {rate:7.1f}"
                      f"  rms {off.pow(2).mean().sqrt():.2e}  largest {off.abs().max():.2e}",
                      flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
