"""What stands between the products of a model's step: norm and gate of a token in a launch each, attention in two.

    s = x + more,  n = w s / sqrt(mean s² + eps)        g = a sigmoid(a) b        o = softmax(q kᵀ c) v

What
    None is much work, and none takes much of the card. What they cost is time in which the memory is idle.

How
    Each lets the next kernel begin before it does anything itself, and waits for the one before it when it needs its numbers
    (EARLY, from sm_90 on). A product that follows, `one` or `eight`, orders its weight meanwhile.

Trade-off
    A program of `add_norm` has a whole token: for few of them. What follows may begin while even the kernel ahead of these still
    runs: it must wait before it reads anything that is not a weight.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def add_norm(
    x_ptr, more_ptr, weight_ptr, sum_ptr, norm_ptr, eps, K: tl.constexpr, WIDTH: tl.constexpr, EARLY: tl.constexpr
):  # fmt: skip
    """The sum of a token's x and more, and its root mean square norm (Zhang & Sennrich 2019, arXiv 1910.07467, equation 4).

    Args:
        x_ptr, more_ptr, sum_ptr, norm_ptr: [tokens, K], a program a token.
        weight_ptr: [K].
        WIDTH: a power of two, at least K.
    """
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    column = tl.arange(0, WIDTH)
    weight = tl.load(weight_ptr + column, mask=column < K, other=0.0)
    at = tl.program_id(0).to(tl.int64) * K + column
    total = tl.load(x_ptr + at, mask=column < K, other=0.0) + tl.load(more_ptr + at, mask=column < K, other=0.0)
    tl.store(sum_ptr + at, total, mask=column < K)
    wide = total.to(tl.float32)
    wide *= tl.rsqrt(tl.sum(wide * wide, 0) / K + eps)
    tl.store(norm_ptr + at, weight * wide.to(weight.dtype), mask=column < K)


@triton.jit
def gated(gate_ptr, up_ptr, out_ptr, K, stride_gate, stride_up, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    """SiLU of gate, times up (Shazeer 2020, arXiv 2002.05202, equation 5).

    Args:
        gate_ptr, up_ptr: [tokens, K], rows so far apart.
        out_ptr: [tokens, K]; a program BLOCK numbers of a token.
    """
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(gate_ptr + token * stride_gate + column, mask=column < K, other=0.0)
    up = tl.load(up_ptr + token * stride_up + column, mask=column < K, other=0.0)
    wide = gate.to(tl.float32)
    silu = (wide / (1.0 + tl.exp(-wide))).to(up.dtype)
    tl.store(out_ptr + token * K + column, silu * up, mask=column < K)


@triton.jit
def attend(
    query_ptr, keys_ptr, values_ptr, seen_ptr, most_ptr, shares_ptr, out_ptr, scale, length,
    HEADS: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Attention of one token over BLOCK positions, for the HEADS heads that share keys and values; `combine` makes one of all.

    As FlashAttention does it (Dao et al. 2022, arXiv 2205.14135, section 3.1): for each block the largest score, the sum of
    exp(score - largest), and that of exp(score - largest) v.

    Args:
        query_ptr: [groups, HEADS, DIM], a program a group and a block.
        keys_ptr, values_ptr: [groups, length, DIM].
        seen_ptr: bool [length], the positions that there are.
        most_ptr, shares_ptr: float32 [groups, blocks, HEADS].
        out_ptr: float32 [groups, blocks, HEADS, DIM].
        ROWS: HEADS, or more: a power of two, 16 at least. DIM: one, 16 at least.
    """
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    group = tl.program_id(0).to(tl.int64)
    head, dim = tl.arange(0, ROWS), tl.arange(0, DIM)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there, cached = (place < length)[:, None], (group * length + place[:, None]) * DIM + dim[None, :]
    keys = tl.load(keys_ptr + cached, mask=there, other=0.0)
    values = tl.load(values_ptr + cached, mask=there, other=0.0)
    seen = tl.load(seen_ptr + place, mask=place < length, other=0) != 0
    live = (head < HEADS)[:, None]
    query = tl.load(query_ptr + (group * HEADS + head[:, None]) * DIM + dim[None, :], mask=live, other=0.0)
    scores = tl.where(seen[None, :], tl.dot(query, tl.trans(keys), input_precision="ieee") * scale, -float("inf"))
    most = tl.maximum(tl.max(scores, 1), -3e38)
    share = tl.exp(scores - most[:, None])
    at = (group * tl.num_programs(1) + tl.program_id(1)) * HEADS + head
    tl.store(most_ptr + at, most, mask=head < HEADS)
    tl.store(shares_ptr + at, tl.sum(share, 1), mask=head < HEADS)
    out = tl.dot(share.to(values.dtype), values, input_precision="ieee")
    tl.store(out_ptr + at[:, None] * DIM + dim[None, :], out, mask=live)


@triton.jit
def combine(
    most_ptr, shares_ptr, part_ptr, out_ptr,
    HEADS: tl.constexpr, BLOCKS: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """What `attend` found in BLOCKS blocks as one, out_ptr [groups, HEADS, DIM]: a program a group and a head.

    Args:
        WIDTH: a power of two, at least BLOCKS.
    """
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    group, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    block, dim = tl.arange(0, WIDTH), tl.arange(0, DIM)
    at = (group * BLOCKS + block) * HEADS + head
    most = tl.load(most_ptr + at, mask=block < BLOCKS, other=-3e38)
    worth = tl.exp(most - tl.max(most, 0))
    shares = tl.sum(worth * tl.load(shares_ptr + at, mask=block < BLOCKS, other=0.0), 0)
    part = tl.load(part_ptr + at[:, None] * DIM + dim[None, :], mask=(block < BLOCKS)[:, None], other=0.0)
    out = tl.sum(worth[:, None] * part, 0) / shares
    tl.store(out_ptr + (group * HEADS + head) * DIM + dim, out.to(out_ptr.dtype.element_ty))
