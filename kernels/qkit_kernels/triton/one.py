"""y = x ŵᵀ for one token on Hopper, in whole numbers: with half the instructions of `few`, and no weight is rounded.

    y[n] = r[n] sum_groups s (sum_k q[n, k] x[k] - z sum_k x[k]),    x[k] = 2^e (d0[k] + 256 d1[k] + 65536 d2[k])

What
    Codes are whole numbers already. What makes them floats, in `few`, is most of its work: four bits in place, minus the zero
    point, times the scale, for each weight. So the token becomes whole numbers instead, once for all rows of a program: of 22
    bits, which are three bytes, three columns of the right operand of an INT8 product. An instruction multiplies 16 rows by 32
    codes, of which two words are masked and shifted, no more; scales and zero points come to the sum of a group.

Exact
    2^e is such that the largest x of a block of 128 columns has 22 bits: all that are at least 2^-14 (bfloat16) or 2^-11
    (float16) of it are whole, others are off by 2^-23 of it. Products and sums of a group are whole numbers below 2^22, so
    that they are read as floats as they are: the sum begins at the bits of 1.5 2^23 (`MAGIC`).

`stretch` says how the work is shared. The next kernel may begin meanwhile and order its weight (EARLY), so that the memory is
never left alone.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from qkit_kernels.triton.assembly import DIGITS_BYTES
from qkit_kernels.triton.lanes import (
    bytes_of,
    load4,
    partner,
    product,
    put,
    put2,
    shared,
    store,
    take,
    take4,
    warp_number,
)
from qkit_kernels.triton.stretch import added_up, fetch, next_of, ordered, places, scale_and_shift, stretch
from qkit_kernels.triton.words import lower, upper

MAGIC = tl.constexpr(0x4B400000)  # 1.5 2^23: n more is the float 1.5 2^23 + n
DIGITS = tl.constexpr(DIGITS_BYTES)


@triton.jit
def step_of(largest):
    """For numbers of at most `largest`: 2^-e, which makes them whole numbers below 2^22, and 2^e; NaN for what is not finite."""
    exponent = tl.maximum(largest.to(tl.int32, bitcast=True) >> 23, 22)
    inverse = ((275 - exponent) << 23).to(tl.float32, bitcast=True)
    step = ((exponent - 21) << 23).to(tl.float32, bitcast=True)
    return inverse, tl.where(largest < float("inf"), step, float("nan"))


@triton.jit
def counted(bits):
    """What has been added to `MAGIC`, as float32."""
    return bits.to(tl.float32, bitcast=True) - 12582912.0


@triton.jit
def digits_of(x, inverse):
    """round(x inverse) as an int32 whose lowest three bytes are d0 + 128, d1 + 128 and d2 + 128."""
    return (x * inverse + 12582912.0).to(tl.int32, bitcast=True) - (MAGIC - 0x808080)


@triton.jit
def in_order(u, odd, BITS: tl.constexpr):
    """Of a thread's eight columns 4 h + 2 u + l those whose codes are neighbours in two words of bytes.

    8 bits: h is the word, a byte is 2 l + u. 4 bits: u is half a byte, a byte 2 l + h. 2 bits, of 3 too: h and u are a quarter of
    it, and a byte is 2 l + i, i odd 32 columns further on: a thread of even i has h = 0 of both, its partner h = 1.
    """
    if BITS == 8:
        return u[0], u[2], u[1], u[3], u[4], u[6], u[5], u[7]
    elif BITS == 4:
        return u[0], u[4], u[1], u[5], u[2], u[6], u[3], u[7]
    else:
        found = ()
        for j in tl.static_range(4):
            given, kept = tl.where(odd, u[j], u[4 + j]), tl.where(odd, u[4 + j], u[j])
            taken = partner(given.to(tl.float32, bitcast=True), 4).to(tl.int32, bitcast=True)
            found = found + (tl.where(odd, taken, kept), tl.where(odd, kept, taken))
        return found


@triton.jit
def split_token(
    x_ptr, digits, steps, totals, thread, THREADS: tl.constexpr,
    KB: tl.constexpr, S: tl.constexpr, BITS: tl.constexpr, BF16: tl.constexpr,
):  # fmt: skip
    """x [128 KB] into shared memory: its digits, the step of each block, and the sums of its S groups.

    A thread has eight neighbours of 128, 16 threads a block. Digit d of columns 32 i + 8 t + 0 .. 7 lies at bytes 32 (4 d + t) +
    8 i of the block, where lane 4 d + t finds what it multiplies by, in the order in which codes lie in their words.
    """
    for turn in tl.static_range((KB * 16 + THREADS - 1) // THREADS):
        eight = turn * THREADS + thread
        live = (eight < KB * 16).to(tl.int32)
        eight = tl.minimum(eight, KB * 16 - 1)
        block, at = eight // 16, eight % 16
        r, x = load4(x_ptr.to(tl.int64) + eight * 16, AFTER=True), ()
        for j in tl.static_range(4):
            x = x + (lower(r[j], BF16), upper(r[j], BF16))
        largest, total = tl.abs(x[0]), x[0]
        for j in tl.static_range(1, 8):
            largest, total = tl.maximum(largest, tl.abs(x[j]), propagate_nan=tl.PropagateNan.ALL), total + x[j]
        for b in tl.static_range(4):
            largest = tl.maximum(largest, partner(largest, 1 << b), propagate_nan=tl.PropagateNan.ALL)
            if 16 >> b > S:
                total += partner(total, 1 << b)
        inverse, step = step_of(largest)
        u = ()
        for j in tl.static_range(8):
            u = u + (digits_of(x[j], inverse),)
        u = in_order(u, at // 4 % 2 == 1, BITS)
        own = digits + block * DIGITS + at % 4 * 32 + at // 4 * 8
        for d in tl.static_range(3):
            first = bytes_of(bytes_of(u[0], u[1], 17 * d + 64), bytes_of(u[2], u[3], 17 * d + 64), 0x5410)
            second = bytes_of(bytes_of(u[4], u[5], 17 * d + 64), bytes_of(u[6], u[7], 17 * d + 64), 0x5410)
            put2(own + d * 128, first ^ -0x7F7F7F80, second ^ -0x7F7F7F80, live)  # 0x80 in each byte: from d + 128 to d
        put(steps + block * 4, step, live * (at == 0).to(tl.int32))
        put(totals + (block * S + at * S // 16) * 4, total, live * (at % (16 // S) == 0).to(tl.int32))


@triton.jit
def codes(words, row: tl.constexpr, j: tl.constexpr, BITS: tl.constexpr):
    """The j-th 32 of a row's 128 codes as bytes, two int32; see `in_order`."""
    if BITS == 8:
        return words[4 * row + j], words[8 + 4 * row + j]
    elif BITS == 4:
        return words[4 * row + j] & 0x0F0F0F0F, (words[4 * row + j] >> 4) & 0x0F0F0F0F
    else:
        P: tl.constexpr = j % 2 * 2
        w = words[2 * row + j // 2]
        first, second = (w >> (2 * P)) & 0x03030303, (w >> (2 * P + 2)) & 0x03030303
        if BITS == 3:
            first, second = (
                with_third(first, words[4 + row], j // 2, P),
                with_third(second, words[4 + row], j // 2, P + 1),
            )
        return first, second


@triton.jit
def with_third(low, w, v: tl.constexpr, P: tl.constexpr):
    """Two bits a byte, and a third from the word of single bits: bit 8 v + P for i = 2 v, and the one 4 further on for i + 1."""
    AT: tl.constexpr = 8 * v + P
    if AT > 1:
        even = w >> (AT - 2)
    else:
        even = w << (2 - AT)
    if AT > 5:
        odd = w >> (AT - 6)
    else:
        odd = w << (6 - AT)
    return low | (even & 0x00040004) | (odd & 0x04000400)


@triton.jit
def of_group(
    grids, row: tl.constexpr, group: tl.constexpr, step, total,
    S: tl.constexpr, BIAS: tl.constexpr, BF16: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """What a group's sum of codes times digits is multiplied by, s 2^e, and what is added to that: (offset - z s) sum x."""
    scale, shift = scale_and_shift(grids, row, group, S, BIAS, BF16, OFFSET)
    return scale * step, shift * total


@triton.jit
def one(
    x_ptr, words_ptr, grid_ptr, off_ptr, rows_ptr, y_ptr, N, N8, least, over,
    KB: tl.constexpr, S: tl.constexpr, SPAN: tl.constexpr, BITS: tl.constexpr, BIAS: tl.constexpr, OFFSET: tl.constexpr,
    BF16: tl.constexpr, WARPS: tl.constexpr, DEPTH: tl.constexpr, ROOM: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """All of y [N], a program for `least` tiles of 16 rows, or one more: the first `over` of them.

    Args:
        x_ptr: float16 or bfloat16 [128 KB].
        words_ptr, grid_ptr, off_ptr, rows_ptr: as `few` reads them; codes of 2 or 3 bits in groups of 64 and more, of 4 or 8 in
            groups of 32 and more.
        ROOM: see `assembly.room`, 128 WARPS + KB (DIGITS + 4 + 4 S) bytes.
        DEPTH: blocks that a warp has ordered ahead.
    """
    thread = tl.arange(0, WARPS * 32)
    lane = thread % 32
    g, t = lane // 4, lane % 4
    warp, sums = warp_number(N), shared(ROOM, N)
    digits = sums + WARPS * 128
    steps, totals = digits + KB * DIGITS, digits + KB * (DIGITS + 4)
    first, many, each, flat, last = stretch(least, over, warp, KB, WARPS)
    origins = places(words_ptr, grid_ptr, off_ptr, lane, N8, KB, BITS)
    SIZE: tl.constexpr = BITS * 2 + 2 * S * (2 if OFFSET else 1)  # of what `fetch` finds
    ahead, next_flat, next_tile, next_block = ordered(
        origins, flat, first, many, last, DEPTH, KB, S, SPAN, BITS, OFFSET
    )
    row = (first + warp) * 16 + lane % 2 * 8 + lane // 2
    here = (row < N) & (lane < 16)
    factor = tl.load(rows_ptr + row, mask=here, other=0.0)
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    split_token(x_ptr, digits, steps, totals, thread, WARPS * 32, KB, S, BITS, BF16)
    tl.debug_barrier()
    none = thread.to(tl.float32) * 0.0
    start = MAGIC + 0 * thread
    digit, column0 = (g < 3).to(tl.int32), (t == 0).to(tl.int32)
    worth0, worth1 = tl.where(t == 0, 1.0, 65536.0), tl.where(t == 0, 256.0, 0.0)  # of columns 2 t and 2 t + 1
    y = (none, none, none, none)
    block, part = flat % KB, 0
    for _ in tl.range(0, (each + DEPTH - 1) // DEPTH, num_stages=1):
        for step in tl.static_range(DEPTH):
            now = ahead[step * SIZE : step * SIZE + SIZE]
            grids = now[2 * BITS :]
            x = take4(digits + block * DIGITS + lane * 32, digit) + take4(
                digits + block * DIGITS + lane * 32 + 16, digit
            )
            unit = take(steps + block * 4 + 0 * lane, 1 + 0 * lane)
            for group in tl.static_range(S):
                found = (start, start, start, start)
                for j in tl.static_range(4 // S * group, 4 // S * (group + 1)):
                    a, c = codes(now, 0, j, BITS)
                    b, d = codes(now, 1, j, BITS)
                    found = product(a, b, c, d, x[2 * j], x[2 * j + 1], found)
                total = take(totals + (block * S + group) * 4 + 0 * lane, column0)
                s0, shift0 = of_group(grids, 0, group, unit, total, S, BIAS, BF16, OFFSET)
                s1, shift1 = of_group(grids, 1, group, unit, total, S, BIAS, BF16, OFFSET)
                y = (
                    y[0] + counted(found[0]) * s0 + shift0,
                    y[1] + counted(found[1]) * s0,
                    y[2] + counted(found[2]) * s1 + shift1,
                    y[3] + counted(found[3]) * s1,
                )
            new = fetch(origins, next_tile, next_block, KB, S, SPAN, BITS, OFFSET)
            ahead = ahead[: step * SIZE] + new + ahead[step * SIZE + SIZE :]
            next_flat, next_tile, next_block = next_of(next_flat, next_tile, next_block, last, KB)
            flat, block = flat + 1, block + 1
            if (block == KB) | (flat == last):  # the end of a tile, or of the stretch; the rest is not stored
                y0, y1 = y[0] * worth0 + y[1] * worth1, y[2] * worth0 + y[3] * worth1
                there = column0 * (flat <= last).to(tl.int32)
                put2(sums + warp * 128 + part * 64 + g * 8, y0 + partner(y0, 1), y1 + partner(y1, 1), there)
                y, block, part = (none, none, none, none), 0, part + 1
    tl.debug_barrier()
    if warp < many:
        result = added_up(sums, lane * 4, (lane < 16).to(tl.int32), warp, each, KB, 64)
        store(y_ptr + row, (result * factor).to(y_ptr.dtype.element_ty), here.to(tl.int32))
