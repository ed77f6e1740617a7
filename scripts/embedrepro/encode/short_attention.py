"""Attention within short sequences that lie end to end, as one Triton kernel for CUDA.

torch's kernel for variable lengths is built for long sequences. Here a program takes one block of
rows of one sequence and one key head: a row is a token of one of the query heads that share that
key head, so that grouped heads fill a block and read keys and values once. Blocks start at their
sequence's first token and have the same size in every batch: a result's bytes don't depend on the
sequences around it. Softmax by running maxima (Milakov & Gimelshein, arXiv:1805.02867), sums in
float32.
"""

import math

import torch
import triton
import triton.language as tl

ROWS, KEYS, WARPS, STAGES = 64, 32, 4, 2  # fixed: what is fastest would be a matter of timing


@triton.jit
def _attend(
    query, key, value, found, offsets,
    query_token, query_head, key_token, key_head, value_token, value_head, found_token, found_head,
    scale, key_heads, blocks,
    GROUP: tl.constexpr, SIZE: tl.constexpr, WIDE: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    head = program % key_heads
    block = program // key_heads % blocks
    sequence = program // key_heads // blocks
    begin = tl.load(offsets + sequence)
    length = tl.load(offsets + sequence + 1) - begin
    if block * ROWS >= length * GROUP:
        return
    begin = begin.to(tl.int64)
    column = tl.arange(0, WIDE)
    row = block * ROWS + tl.arange(0, ROWS)
    token, member = row // GROUP, head * GROUP + row % GROUP
    kept = (token < length)[:, None] & (column < SIZE)[None, :]
    place = (token * query_token + member * query_head)[:, None] + column[None, :]
    q = tl.load(query + begin * query_token + place, mask=kept, other=0.0)

    first, last = block * ROWS // GROUP, (block * ROWS + ROWS - 1) // GROUP
    low, high = 0, length
    if LEFT >= 0:
        low = tl.maximum(first - LEFT, 0) // KEYS * KEYS
    if RIGHT >= 0:
        high = tl.minimum(last + 1 + RIGHT, length)
    top = tl.full([ROWS], -1e30, tl.float32)  # finite: a row may see nothing of a block
    total = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, WIDE], tl.float32)
    keys = key + begin * key_token + head * key_head
    values = value + begin * value_token + head * value_head
    for start in range(low, high, KEYS):
        other = start + tl.arange(0, KEYS)
        inside = (other < length)[:, None] & (column < SIZE)[None, :]
        k = tl.load(keys + other[:, None] * key_token + column[None, :], mask=inside, other=0.0)
        scores = tl.dot(q, tl.trans(k)) * scale
        seen = (other < length)[None, :]
        if RIGHT >= 0:
            seen = seen & (other[None, :] - token[:, None] <= RIGHT)
        if LEFT >= 0:
            seen = seen & (token[:, None] - other[None, :] <= LEFT)
        scores = tl.where(seen, scores, float("-inf"))
        above = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - above[:, None])
        fade = tl.exp2(top - above)
        top = above
        total = total * fade + tl.sum(weights, 1)
        v = tl.load(values + other[:, None] * value_token + column[None, :], mask=inside, other=0.0)
        out = tl.dot(weights.to(v.dtype), v, out * fade[:, None])
    place = (token * found_token + member * found_head)[:, None] + column[None, :]
    out = out / total[:, None]
    tl.store(found + begin * found_token + place, out.to(found.dtype.element_ty), mask=kept)


def attend_short(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    offsets: torch.Tensor,
    longest: int,
    window: tuple[int, int],
    scale: float,
) -> torch.Tensor:
    """Attention within each sequence, (tokens, heads, size) like `query`.

    query (tokens, heads, size), key and value (tokens, key heads, size), float16 or bfloat16, the
    last dimension contiguous; `offsets` (sequences + 1,) int32; no sequence longer than `longest`.
    `window`: how far a token sees to the left and to the right, -1 without bound.
    """
    _, heads, size = query.shape
    key_heads = key.shape[1]
    group = heads // key_heads
    found = torch.empty_like(query)
    blocks = triton.cdiv(longest * group, ROWS)
    _attend[((len(offsets) - 1) * blocks * key_heads,)](
        query, key, value, found, offsets,
        *query.stride()[:2], *key.stride()[:2], *value.stride()[:2], *found.stride()[:2],
        scale / math.log(2), key_heads, blocks,
        group, size, max(16, triton.next_power_of_2(size)), *window, ROWS, KEYS,
        num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    return found
