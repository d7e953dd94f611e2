"""Stretches of blocks: how the kernels that only read a weight share it, `one` and `eight`.

A multiprocessor has one program, or two, which takes its share of the tiles of 16 rows; its blocks of 128 columns lie in a row,
and each warp takes a stretch of them, of which it orders some from memory ahead. A stretch lies in two tiles at most, whose sums
are added up at the end, in the order of the warps. Nothing waits for another warp until then.
"""

import triton
import triton.language as tl

from qkit_kernels.triton.lanes import load, load2, load4, take
from qkit_kernels.triton.words import lower, upper


@triton.jit
def stretch(least, over, warp, KB: tl.constexpr, WARPS: tl.constexpr):
    """What a program takes, the first of its tiles and how many (`least`, the first `over` programs one more), and of its blocks
    what a warp takes: how many at most, the first, and the one behind the last.
    """
    pid = tl.program_id(0)
    first, many = pid * least + tl.minimum(pid, over), least + (pid < over).to(tl.int32)
    each = (many * KB + WARPS - 1) // WARPS
    flat = warp * each
    return first, many, each, flat, tl.minimum(flat + each, many * KB)


@triton.jit
def places(words_ptr, grid_ptr, off_ptr, lane, N8, KB: tl.constexpr, BITS: tl.constexpr):
    """Where a lane's words, single bits, scales and offsets of the first block lie, and how far planes are from each other."""
    blocks = N8.to(tl.int64) * KB
    return (
        words_ptr.to(tl.int64) + lane * (8 if BITS < 4 else 16),
        words_ptr.to(tl.int64) + blocks * 256 + lane * 4,
        grid_ptr.to(tl.int64) + lane // 4 * 4,
        off_ptr.to(tl.int64) + lane // 4 * 4,
        blocks * 512,
    )


@triton.jit
def fetch(
    origins, tile, block, KB: tl.constexpr, S: tl.constexpr, SPAN: tl.constexpr, BITS: tl.constexpr, OFFSET: tl.constexpr
):  # fmt: skip
    """A lane's words of rows g and g + 8 of a block, plane by plane, and the scales (and offsets) of its groups, row by row.

    Args:
        origins: of `places`.
    """
    words, bits, grid, off, planes = origins
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
def scale_and_shift(
    grids, row: tl.constexpr, group: tl.constexpr, S: tl.constexpr, BIAS: tl.constexpr, BF16: tl.constexpr, OFFSET: tl.constexpr
):  # fmt: skip
    """Of what `fetch` finds behind the words: what a group's sum of codes is multiplied by, s, and its sum of x, offset - z s.

    Args:
        BIAS: what stands before a zero point less what stands before a code.
    """
    grid = grids[2 * group + row]
    scale = upper(grid, BF16)
    shift = (lower(grid, BF16) + BIAS) * scale
    if OFFSET:
        off = grids[2 * (S + group) + row]
        shift += lower(off, BF16) + upper(off, BF16)
    return scale, shift


@triton.jit
def next_of(flat, tile, block, last, KB: tl.constexpr):
    """The block behind this one of a stretch; behind the last one, the last again, whose product is not stored."""
    further = (flat + 1 < last).to(tl.int32)
    flat, block = flat + further, block + further
    if block == KB:
        tile, block = tile + 1, 0
    return flat, tile, block


@triton.jit
def ordered(
    origins, flat, first, many, last, DEPTH: tl.constexpr,
    KB: tl.constexpr, S: tl.constexpr, SPAN: tl.constexpr, BITS: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """What `fetch` finds of the first DEPTH blocks of a stretch, one behind the other; and the next block: its place in the
    program's blocks, its tile, its place in that.
    """
    flat = tl.minimum(flat, many * KB - 1)
    tile, block = first + flat // KB, flat % KB
    ahead = ()
    for _ in tl.static_range(DEPTH):
        ahead = ahead + fetch(origins, tile, block, KB, S, SPAN, BITS, OFFSET)
        flat, tile, block = next_of(flat, tile, block, last, KB)
    return ahead, flat, tile, block


@triton.jit
def added_up(sums, place, live, warp, each, KB: tl.constexpr, SUMS: tl.constexpr):
    """A sum of the program's tile `warp`, of all warps that have blocks of it, in their order.

    Args:
        sums: where two times SUMS bytes of each warp begin, for the tile in which its stretch begins and for the next one.
        place: of that sum, in bytes.
    """
    result = place.to(tl.float32) * 0.0
    for other in tl.range(warp * KB // each, ((warp + 1) * KB - 1) // each + 1, num_stages=1):
        result += take(sums + (2 * other + warp - other * each // KB) * SUMS + place, live, AFTER=True)
    return result
