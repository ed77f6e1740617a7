"""The Triton kernels against plain arithmetic, on a GPU.

Without one, where Triton is installed, TRITON_INTERPRET=1 runs the attention kernel on the CPU.
"""

import os

import numpy as np
import pytest
import torch
from encode_models import attend_each

CUDA = torch.cuda.is_available()
if not CUDA and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a CUDA device, or Triton and TRITON_INTERPRET=1", allow_module_level=True)
pytest.importorskip("triton")

from embedrepro.encode.attention import layout, varlen_attention  # noqa: E402
from embedrepro.encode.fp8 import quantise  # noqa: E402
from embedrepro.encode.short_attention import attend_short  # noqa: E402

DEVICE = "cuda" if CUDA else "cpu"
LENGTHS = (1, 7, 33, 64, 65, 100)


@pytest.mark.parametrize(
    ("heads", "key_heads", "size", "window"),
    [
        (4, 2, 16, (-1, 0)),  # causal, grouped
        (6, 1, 32, (-1, -1)),  # a group that doesn't divide a block
        (2, 2, 80, (20, 20)),  # a size that is no power of two, a window
        (2, 2, 64, (9, 0)),
    ],
)
def test_short_attention(heads, key_heads, size, window):
    torch.manual_seed(0)
    ends = np.concatenate([[0], np.cumsum(LENGTHS)])
    flat = [torch.randn(ends[-1], n, size).half() for n in (heads, key_heads, key_heads)]
    query, key, value = (tensor.to(DEVICE) for tensor in flat)
    offsets = torch.tensor(ends, dtype=torch.int32, device=DEVICE)
    scale = size**-0.5
    found = attend_short(query, key, value, offsets, 128, window, scale)
    exact = attend_each(
        *(tensor.float() for tensor in flat), offsets, None, 128, None,
        scale=scale, window_size=window, enable_gqa=heads != key_heads,
    )  # fmt: skip
    assert (found.cpu().float() - exact).abs().max() < 4e-3
    # A sequence has the same bytes alone, and in a batch of longer ones.
    start, stop = ends[3:5]
    alone = torch.tensor([0, stop - start], dtype=torch.int32, device=DEVICE)
    some = (query[start:stop], key[start:stop], value[start:stop])
    assert torch.equal(attend_short(*some, alone, 512, window, scale), found[start:stop])


@pytest.mark.skipif(not CUDA, reason="torch has this kernel for CUDA only")
@pytest.mark.parametrize(("heads", "key_heads", "size"), [(4, 2, 16), (12, 12, 32), (6, 1, 128)])
@pytest.mark.parametrize("right", [0, -1])
def test_attention_in_float32(heads, key_heads, size, right):
    torch.manual_seed(0)
    ends = np.concatenate([[0], np.cumsum([*LENGTHS, 300, 1000])])
    flat = [torch.randn(ends[-1], n, size) for n in (heads, key_heads, key_heads)]
    query, key, value = (tensor.to(DEVICE) for tensor in flat)
    layout.offsets = torch.tensor(ends, dtype=torch.int32, device=DEVICE)
    layout.longest, scale = 1024, size**-0.5
    found = varlen_attention(query, key, value, -1, right, scale)
    exact = attend_each(
        *(tensor.double() for tensor in flat), torch.tensor(ends), None, 1024, None,
        scale=scale, window_size=(-1, right), enable_gqa=heads != key_heads,
    )  # fmt: skip
    assert (found.cpu() - exact).abs().max() < 3e-6
    for start, stop in zip(ends[:-1], ends[1:], strict=True):
        layout.offsets = torch.tensor([0, stop - start], dtype=torch.int32, device=DEVICE)
        for layout.longest in (stop - start, 2048):  # alone, whatever the batch's longest is
            some = (query[start:stop], key[start:stop], value[start:stop])
            alone = varlen_attention(*some, -1, right, scale)
            assert torch.equal(alone, found[start:stop])


@pytest.mark.skipif(not CUDA, reason="Triton's interpreter doesn't round to float8 as a GPU does")
@pytest.mark.parametrize(("rows", "size"), [(7, 48), (1000, 1536), (33, 8960)])
@pytest.mark.parametrize("gated", [False, True])
def test_rounding_to_float8(rows, size, gated):
    torch.manual_seed(0)
    values, gates = torch.randn(2, rows, size, dtype=torch.bfloat16, device=DEVICE)
    numbers, scales = quantise(values, gates if gated else None)
    exact = values.float()
    if gated:
        exact *= torch.nn.functional.silu(gates.float())
    most = exact.abs().amax(1, keepdim=True)
    torch.testing.assert_close(scales, most / 448, rtol=1e-5, atol=0)
    # Half the distance of neighbouring numbers, which is 32 next to the largest, 448.
    assert ((numbers.float() * scales - exact).abs() <= 16.1 / 448 * most).all()
    last = quantise(values[-1:], gates[-1:] if gated else None)[0]
    assert torch.equal(last.view(torch.uint8), numbers[-1:].view(torch.uint8))
