"""Stretches of blocks: how the kernels that only read a weight share it, `one` and `codebook`.

A multiprocessor has one program, or two, which takes its share of the tiles of 16 rows; its blocks of 128 columns lie in a row,
and each warp takes a stretch of them, of which it orders some from memory ahead. A stretch lies in two tiles at most, whose sums
are added up at the end, in the order of the warps. Nothing waits for another warp until then.
"""

import triton
import triton.language as tl

from qkit_kernels.triton.lanes import load, load2, load4
from qkit_kernels.triton.words import half


@triton.jit
def lower(v, BF16: tl.constexpr):
    """The 16-bit float in the lower half of an int32, as float32."""
    if BF16:
        return (v << 16).to(tl.float32, bitcast=True)
    else:
        return half(v, BF16).to(tl.float32)


@triton.jit
def upper(v, BF16: tl.constexpr):
    """The one in its upper half."""
    if BF16:
        return (v & -65536).to(tl.float32, bitcast=True)
    else:
        return half(v >> 16, BF16).to(tl.float32)


@triton.jit
def fetch(
    words, bits, grid, off, planes, tile, block,
    KB: tl.constexpr, S: tl.constexpr, SPAN: tl.constexpr, BITS: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """A lane's words of rows g and g + 8 of a block, plane by plane, and the scales (and offsets) of its groups, row by row."""
    place = (2 * tile * KB + block).to(tl.int64)
    if BITS == 8 or BITS == 4:
        at = words + place * 512
        found = load4(at) + load4(at + KB * 512)
        if BITS == 8:
            found = found + load4(at + planes) + load4(at + planes + KB * 512)
    else:
        at = words + place * 256
        found = load2(at) + load2(at + KB * 256)
        if BITS == 3:
            at = bits + place * 128
            found = found + (load(at), load(at + KB * 128))
    GROUPS: tl.constexpr = KB // SPAN if SPAN else 1  # strides of S
    place = (2 * tile * GROUPS).to(tl.int64)
    if SPAN:
        place += block // SPAN
    for i in tl.static_range(S):
        found = found + (load(grid + (place * S + i) * 32), load(grid + ((place + GROUPS) * S + i) * 32))
    if OFFSET:
        for i in tl.static_range(S):
            found = found + (load(off + (place * S + i) * 32), load(off + ((place + GROUPS) * S + i) * 32))
    return found


@triton.jit
def next_of(flat, tile, block, last, KB: tl.constexpr):
    """The block behind this one of a stretch; behind the last one, the last again, whose product is not stored."""
    further = (flat + 1 < last).to(tl.int32)
    flat, block = flat + further, block + further
    if block == KB:
        tile, block = tile + 1, 0
    return flat, tile, block
