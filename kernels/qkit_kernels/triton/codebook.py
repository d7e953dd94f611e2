"""y = x ŵᵀ for up to eight tokens on Hopper where a code stands for a number of a table (NF4, FP4).

    y[m, n] = r[n] sum_groups s[n] (sum_k table[q[n, k]] x[m, k])

What
    Two codes are a byte, and shared memory holds all 256 pairs of numbers, as the tensor core takes them: a lookup makes two
    weights. Each lane has a copy of its own, in a bank of its own, so that none waits for another.

How
    In `few` each small program fills that memory for itself, and every weight is multiplied by its scale. Here a program stays on
    its multiprocessor and fills it once (`stretch` says how the work is shared), before it waits for x; scales come to the sum of
    a group. Weights are not rounded a second time.

Trade-off
    Groups of at least 32 columns. x is read through the cache, by each warp for itself.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from qkit_kernels.triton.assembly import looked_up as look
from qkit_kernels.triton.lanes import load4, product_of_floats, put, put2, shared, store, warp_number
from qkit_kernels.triton.stretch import added_up, fetch, next_of, stretch
from qkit_kernels.triton.words import table_pairs, upper

_LOOK = tl.constexpr(look())


@triton.jit
def looked_up(word, copy):
    """The four pairs of numbers that a word of codes stands for, int32."""
    return tl.inline_asm_elementwise(
        _LOOK, "=r,=r,=r,=r,r,r", [word, copy], dtype=(tl.int32,) * 4, is_pure=True, pack=1
    )


@triton.jit
def codebook(
    x_ptr, words_ptr, grid_ptr, rows_ptr, table_ptr, y_ptr, M, N, stride_xm, stride_ym, least, over,
    KB: tl.constexpr, S: tl.constexpr, SPAN: tl.constexpr, BF16: tl.constexpr, WARPS: tl.constexpr, DEPTH: tl.constexpr,
    TOKENS: tl.constexpr, ROOM: tl.constexpr, FILL: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """All of y [M, N], a program for `least` tiles of 16 rows, or one more: the first `over` of them.

    Args:
        x_ptr: float16 or bfloat16 [M, 128 KB], rows `stride_xm` apart, which begin at multiples of 16 bytes.
        words_ptr, grid_ptr, rows_ptr, table_ptr: as `few` reads them; groups of 32 columns and more.
        TOKENS: 1 or 8, of which there are M.
        ROOM: see `assembly.room`, 128 WARPS TOKENS bytes.
        FILL: see `assembly.pairs`.
        DEPTH: blocks that a warp has ordered ahead.
    """
    SUMS: tl.constexpr = 64 * TOKENS  # bytes of a tile's
    thread = tl.arange(0, WARPS * 32)
    lane = thread % 32
    g, t = lane // 4, lane % 4
    warp, sums = warp_number(N), shared(ROOM, N)
    first, many, each, flat, last = stretch(least, over, warp, KB, WARPS)
    words, grid = words_ptr.to(tl.int64) + lane * 16, grid_ptr.to(tl.int64) + g * 4
    SIZE: tl.constexpr = 8 + 2 * S  # of what `fetch` finds
    next_flat = tl.minimum(flat, many * KB - 1)
    next_tile, next_block = first + next_flat // KB, next_flat % KB
    ahead = ()
    for _ in tl.static_range(DEPTH):
        ahead = ahead + fetch(words, words, grid, grid, 0, next_tile, next_block, KB, S, SPAN, 4, False)
        next_flat, next_tile, next_block = next_of(next_flat, next_tile, next_block, last, KB)
    row = (first + warp) * 16 + lane % 16
    factor = tl.load(rows_ptr + row, mask=row < N, other=0.0)
    copy = table_pairs(table_ptr, FILL) + lane * 4
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    # a token that is not there is the last one again; its product is not stored
    x_at = x_ptr.to(tl.int64) + (tl.minimum(g, M - 1).to(tl.int64) * stride_xm + t * 8) * 2
    none = thread.to(tl.float32) * 0.0
    y = (none, none, none, none)
    block, part = flat % KB, 0
    for _ in tl.range(0, (each + DEPTH - 1) // DEPTH, num_stages=1):
        for step in tl.static_range(DEPTH):
            now = ahead[step * SIZE : step * SIZE + SIZE]
            x = ()
            for i in tl.static_range(4):
                x = x + load4(x_at + (block * 256 + i * 64), AFTER=True)
            for group in tl.static_range(S):
                found = (none, none, none, none)
                for i in tl.static_range(4 // S * group, 4 // S * (group + 1)):
                    a, b = looked_up(now[i], copy), looked_up(now[4 + i], copy)
                    found = product_of_floats(a[0], b[0], a[1], b[1], x[4 * i], x[4 * i + 1], found, BF16)
                    found = product_of_floats(a[2], b[2], a[3], b[3], x[4 * i + 2], x[4 * i + 3], found, BF16)
                s0, s1 = upper(now[8 + 2 * group], BF16), upper(now[9 + 2 * group], BF16)
                y = (y[0] + found[0] * s0, y[1] + found[1] * s0, y[2] + found[2] * s1, y[3] + found[3] * s1)
            new = fetch(words, words, grid, grid, 0, next_tile, next_block, KB, S, SPAN, 4, False)
            ahead = ahead[: step * SIZE] + new + ahead[step * SIZE + SIZE :]
            next_flat, next_tile, next_block = next_of(next_flat, next_tile, next_block, last, KB)
            flat, block = flat + 1, block + 1
            if (block == KB) | (flat == last):  # the end of a tile, or of the stretch; the rest is not stored
                there = (flat <= last).to(tl.int32) + 0 * lane
                own = sums + (2 * warp + part) * SUMS + g * (4 * TOKENS)
                if TOKENS == 1:
                    put(own, y[0], there * (t == 0).to(tl.int32))
                    put(own + 32, y[2], there * (t == 0).to(tl.int32))
                else:
                    put2(own + t * 8, y[0], y[1], there)
                    put2(own + 256 + t * 8, y[2], y[3], there)
                y, block, part = (none, none, none, none), 0, part + 1
    tl.debug_barrier()
    if warp < many:
        for turn in tl.static_range((TOKENS + 1) // 2):
            token = 2 * turn + lane // 16
            place = (lane % 16 * TOKENS + token) * 4
            result = added_up(sums, place, (token < TOKENS).to(tl.int32), warp, each, KB, SUMS)
            here = (row < N) & (token < M)
            y_at = y_ptr + token.to(tl.int64) * stride_ym + row
            store(y_at, (result * factor).to(y_ptr.dtype.element_ty), here.to(tl.int32))
