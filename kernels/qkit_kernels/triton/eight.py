"""y = x ŵᵀ for up to eight tokens on Hopper: nothing but reading the weight; the tensor core multiplies codes, not weights.

    y[m, n] = r[n] sum_groups (s[n] sum_k c[q[n, k]] x[m, k] + t[n] sum_k x[m, k])

    a table's codes     c[q] = table[q], t = 0
    others              c[q] = bias + q, t = s (-bias - z) or an offset less bias s

What
    A code with the bits of a float in front of it is that float and the code (`assembly`): one instruction makes two of a word.
    Where codes stand for the numbers of a table (NF4, FP4), two codes are a byte, and shared memory holds all 256 pairs of
    numbers; each lane has a copy of its own, in a bank of its own, so that none waits for another.

How
    In `few` each small program begins anew, and every weight is multiplied by its scale. Here a program stays on its
    multiprocessor (`stretch` says how the work is shared), orders its weight before it waits for x, and scales come to the sum
    of a group. The sums of x, too, are the tensor core's, with ones on the left. Weights are not rounded.

Trade-off
    Groups of at least 32 columns. x is read through the cache, by each warp for itself. What the bias adds is taken away again
    from a float32 sum that the tensor core truncates, always to one side. So it is no larger than a float needs before a code of
    so many bits, 2^bits, and not what is worth 1 in the last place (1024 in float16), where x of one sign lost a percent.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from qkit_kernels.triton.assembly import looked_up as look
from qkit_kernels.triton.lanes import load4, product_of_floats, put, put2, shared, store, warp_number
from qkit_kernels.triton.stretch import added_up, fetch, next_of, ordered, places, scale_and_shift, stretch
from qkit_kernels.triton.words import table_pairs

_LOOK = tl.constexpr(look())


@triton.jit
def looked_up(word, copy):
    """The four pairs of numbers that a word of codes stands for, int32."""
    return tl.inline_asm_elementwise(
        _LOOK, "=r,=r,=r,=r,r,r", [word, copy], dtype=(tl.int32,) * 4, is_pure=True, pack=1
    )


@triton.jit
def counted(words, row: tl.constexpr, i: tl.constexpr, BITS: tl.constexpr, COUNT: tl.constexpr):
    """The i-th quarter of a row's codes as four pairs of floats bias + q, int32: of what `fetch` finds of a block."""
    if BITS == 8:
        first, second = words[4 * row + i], words[8 + 4 * row + i]
    elif BITS == 4:
        first, second = words[4 * row + i], words[4 * row + i]
    else:
        first = words[2 * row + i // 2]
        second = first
        if BITS == 3:
            second = words[4 + row]
            if i > 0:
                second = second >> (4 * i)
        if i % 2 == 1:
            first = first >> 8
    return tl.inline_asm_elementwise(
        COUNT, "=r,=r,=r,=r,r,r", [first, second], dtype=(tl.int32,) * 4, is_pure=True, pack=1
    )


@triton.jit
def eight(
    x_ptr, words_ptr, grid_ptr, off_ptr, rows_ptr, table_ptr, y_ptr, M, N, N8, stride_xm, stride_ym, least, over,
    KB: tl.constexpr, S: tl.constexpr, SPAN: tl.constexpr, BITS: tl.constexpr, OFFSET: tl.constexpr, BF16: tl.constexpr,
    WARPS: tl.constexpr, DEPTH: tl.constexpr, TOKENS: tl.constexpr, ROOM: tl.constexpr, FILL: tl.constexpr,
    COUNT: tl.constexpr, BIAS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """All of y [M, N], a program for `least` tiles of 16 rows, or one more: the first `over` of them.

    Args:
        x_ptr: float16 or bfloat16 [M, 128 KB], rows `stride_xm` apart, which begin at multiples of 16 bytes.
        words_ptr, grid_ptr, off_ptr, rows_ptr, table_ptr: as `few` reads them; codes of 2, 3, 4 or 8 bits in groups of 32 columns
            and more, of 2 or 3 of 64 and more.
        TOKENS: 1 or 8, of which there are M.
        ROOM: see `assembly.room`, 128 WARPS TOKENS bytes.
        FILL: see `assembly.pairs`; "" where codes are numbers.
        COUNT: see `assembly.counted`; "" where they are a table's.
        BIAS: what a code's zero point has in front of it less what COUNT puts in front of a code.
        DEPTH: blocks that a warp has ordered ahead.
    """
    SUMS: tl.constexpr = 64 * TOKENS  # bytes of a tile's
    thread = tl.arange(0, WARPS * 32)
    lane = thread % 32
    g, t = lane // 4, lane % 4
    warp, sums = warp_number(N), shared(ROOM, N)
    first, many, each, flat, last = stretch(least, over, warp, KB, WARPS)
    origins = places(words_ptr, grid_ptr, off_ptr, lane, N8, KB, BITS)
    SIZE: tl.constexpr = BITS * 2 + 2 * S * (2 if OFFSET else 1)  # of what `fetch` finds
    ahead, next_flat, next_tile, next_block = ordered(
        origins, flat, first, many, last, DEPTH, KB, S, SPAN, BITS, OFFSET
    )
    row = (first + warp) * 16 + lane % 16
    factor = tl.load(rows_ptr + row, mask=row < N, other=0.0)
    copy = 0 * lane
    if FILL != "":
        copy = table_pairs(table_ptr, FILL) + lane * 4
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    # a token that is not there is the last one again; its product is not stored
    x_at = x_ptr.to(tl.int64) + (tl.minimum(g, M - 1).to(tl.int64) * stride_xm + t * 8) * 2
    none = thread.to(tl.float32) * 0.0
    ones = (0x3F803F80 if BF16 else 0x3C003C00) + 0 * lane
    y = (none, none, none, none)
    block, part = flat % KB, 0
    for _ in tl.range(0, (each + DEPTH - 1) // DEPTH, num_stages=1):
        for step in tl.static_range(DEPTH):
            now = ahead[step * SIZE : step * SIZE + SIZE]
            for group in tl.static_range(S):
                found, total = (none, none, none, none), (none, none, none, none)
                for i in tl.static_range(4 // S * group, 4 // S * (group + 1)):
                    if FILL != "":
                        a, b = looked_up(now[i], copy), looked_up(now[4 + i], copy)
                    else:
                        a, b = counted(now, 0, i, BITS, COUNT), counted(now, 1, i, BITS, COUNT)
                    x = load4(x_at + (block * 256 + i * 64), AFTER=True)
                    found = product_of_floats(a[0], b[0], a[1], b[1], x[0], x[1], found, BF16)
                    found = product_of_floats(a[2], b[2], a[3], b[3], x[2], x[3], found, BF16)
                    if FILL == "":
                        total = product_of_floats(ones, ones, ones, ones, x[0], x[1], total, BF16)
                        total = product_of_floats(ones, ones, ones, ones, x[2], x[3], total, BF16)
                s0, t0 = scale_and_shift(now[2 * BITS :], 0, group, S, BIAS, BF16, OFFSET)
                s1, t1 = scale_and_shift(now[2 * BITS :], 1, group, S, BIAS, BF16, OFFSET)
                y = (y[0] + found[0] * s0, y[1] + found[1] * s0, y[2] + found[2] * s1, y[3] + found[3] * s1)
                if FILL == "":
                    y = (y[0] + total[0] * t0, y[1] + total[1] * t0, y[2] + total[0] * t1, y[3] + total[1] * t1)
            new = fetch(origins, next_tile, next_block, KB, S, SPAN, BITS, OFFSET)
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
