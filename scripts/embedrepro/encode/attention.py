"""Attention functions that the packed engine registers with transformers.

`VARLEN` attends within each sequence of a flat batch, without padding and without repeating
key/value heads. `PADDED` is scaled dot product attention with the mask always made: transformers
leaves the mask out when no row is padded, which runs another kernel and so makes a vector depend on
its neighbours.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import library
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .batches import SHORT

try:
    from .short_attention import attend_short
except ImportError:  # no Triton where there is no GPU
    attend_short = None  # type: ignore[assignment]

# torch < 2.12 takes grouped heads without being told.
NAMES_GROUPS = "enable_gqa" in inspect.signature(varlen_attn).parameters

VARLEN = "embedrepro_varlen"
PADDED = "embedrepro_padded"


def sees_all(config: Any) -> bool:
    """Whether no layer attends within a window, which `VARLEN` lacks in float32."""
    return getattr(config, "sliding_window", None) is None


@dataclass
class Layout:
    """Where the sequences of the batch now running lie.

    `offsets` (n + 1,) int32, `longest` length, `pooled` (n,) the positions whose states are read.
    """

    offsets: torch.Tensor | None = None
    longest: int = 0
    pooled: torch.Tensor | None = None


# Read inside the operator below, at run time: compiled layers are free of the batch's layout, so
# that neither the number of sequences nor the longest of them has to be constant.
layout = Layout()


@library.custom_op("embedrepro::varlen_attention", mutates_args=())
def varlen_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    left: int,
    right: int,
    scale: float,
) -> torch.Tensor:
    """Attention within each sequence of `layout`.

    query (tokens, heads, size), key and value (tokens, key heads, size). `left`, `right`: how far a
    token sees, -1 without bound; right = 0 is causal. In float32 `left` must be without bound.
    """
    if query.is_cuda and query.dtype == torch.float32:
        return _attend_float32(query, key, value, causal=right == 0, scale=scale)
    # By the class of length that a batch is of, so a sequence always meets the same kernel.
    if attend_short is not None and query.is_cuda and layout.longest <= SHORT:
        window = (left, right)
        return attend_short(query, key, value, layout.offsets, layout.longest, window, scale)
    where = (layout.offsets, layout.offsets, layout.longest, layout.longest)
    grouped = {"enable_gqa": query.shape[1] != key.shape[1]} if NAMES_GROUPS else {}
    return varlen_attn(query, key, value, *where, scale=scale, window_size=(left, right), **grouped)


def _attend_float32(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool, scale: float
) -> torch.Tensor:
    """As torch's attention of jagged tensors calls the same kernel, without making any."""
    group = query.shape[1] // key.shape[1]
    if group > 1:
        key, value = (tensor.repeat_interleave(group, 1) for tensor in (key, value))
    batched = (tensor[None] for tensor in (query, key, value))
    where = (layout.offsets, layout.offsets, layout.longest, layout.longest)
    found: torch.Tensor
    found, *_ = torch.ops.aten._efficient_attention_forward(
        *batched, None, *where, 0.0, int(causal), scale=scale
    )
    return found[0]


@varlen_attention.register_fake
def _(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    left: int,
    right: int,
    scale: float,
) -> torch.Tensor:
    return torch.empty_like(query)


def varlen_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query (1, heads, tokens, size) and so on.

    `module.is_causal` is the staged fact. transformers' sliding windows count the token itself,
    but not those of a decoder made bidirectional by its config's `is_causal`.
    """
    if sliding_window is None:
        left = -1
    else:
        left = sliding_window - getattr(module.config, "is_causal", True)
    right = 0 if module.is_causal else left
    flat = (tensor.transpose(1, 2).squeeze(0) for tensor in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    found = torch.ops.embedrepro.varlen_attention(*flat, left, right, scale)
    return found.unsqueeze(0), None


def always_masked(*args: Any, **kwargs: Any) -> torch.Tensor:
    """transformers' boolean mask, never left out."""
    kwargs |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return sdpa_mask(*args, **kwargs)


AttentionInterface.register(VARLEN, varlen_forward)  # no mask function: none is made
AttentionInterface.register(PADDED, sdpa_attention_forward)
AttentionMaskInterface.register(PADDED, always_masked)
