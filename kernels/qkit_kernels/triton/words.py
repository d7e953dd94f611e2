"""Words of codes, and how they become weights: what the kernels `few`, `many` and `floats` share.

The layout: the lane that loads a word is the lane that feeds the tensor core, so that no weight passes through shared memory.
`mma.m16n8k16` wants of its left operand, in lane 4 g + t, rows g and g + 8 and four of every 16 columns. Which columns is free as
long as both operands agree, so a lane takes 8 *consecutive* ones per word, and x is read 16 bytes at a time:

    plane of b bits     int32 [N/8, K/128, 8 (g), 4 (t), b]: row 8 n + g, columns 128 k + 32 i + 8 t + 0..7 for i = 0..3
    within those 8      column 4 h + 2 u + l is that of pair p = 2 h + u, half l of the word: code at bit 16 l + b p,
                        i counting on from there: 4 bits, a word each; 2 bits, two in a word (i odd: 8 bits up); 1 bit, all in one
    a code of 3 bits    is a plane of 2 and one of 1, lowest bits first (`assembly.PLANES`), one plane behind the other
    a code of 8 bits    stays whole: h = 0 lies in the first plane's words, h = 1 in the second's, at bit 16 l + 8 u
    a table's codes     at bit 4 c, one after the other: a byte is a pair
    scales              int32 [N/8, groups, S, 8]: -(bias + z) in the lower 16 bits and s above, as floats of x's dtype;
                        S a block of 128 columns where groups are smaller (2, 4, 8), else 1, and SPAN blocks to a group
                        (0: a row is one group)
    offsets             the same shape: the offset below, and above what rounding it left
"""

import triton
import triton.language as tl


@triton.jit
def halves(v, BF16: tl.constexpr, PTX: tl.constexpr):
    """int32 -> the two 16-bit floats that it holds."""
    if PTX:
        if BF16:
            return tl.inline_asm_elementwise(
                "mov.b32 {$0, $1}, $2;", "=h,=h,r", [v], dtype=(tl.bfloat16,) * 2, is_pure=True, pack=1
            )
        else:
            return tl.inline_asm_elementwise(
                "mov.b32 {$0, $1}, $2;", "=h,=h,r", [v], dtype=(tl.float16,) * 2, is_pure=True, pack=1
            )
    else:
        return half(v, BF16), half(v >> 16, BF16)


@triton.jit
def half(v, BF16: tl.constexpr):
    """The 16-bit float in the lower half of an int32."""
    bits = (v & 0xFFFF).to(tl.int16)
    if BF16:
        return bits.to(tl.bfloat16, bitcast=True)
    else:
        return bits.to(tl.float16, bitcast=True)


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
def plane_at(words_ptr, place, B: tl.constexpr, LANE: tl.constexpr = False):
    """Pointers to the words of one plane, [..., 4 B], of `place` int32 [..., 1], which counts (row of eight, block, g).

    One block further on lies 32 B words further on.

    Args:
        LANE: one pointer to the words of each lane, [..., 4 (t)], for planes of 1 and 2 bits; see `load_plane`.
    """
    if B == 0:
        return words_ptr + place
    elif LANE and B < 4:
        return words_ptr + place * (4 * B) + tl.arange(0, 4)[None, None, None, :] * B
    else:
        return words_ptr + place * (4 * B) + tl.arange(0, 4 * B)[None, None, None, :]


@triton.jit
def load_plane(pointers, further, B: tl.constexpr, EVICT: tl.constexpr, LANE: tl.constexpr = False):
    """The words `further` blocks further on.

    Args:
        LANE: in PTX. Triton's own load takes 16 bytes a lane, of planes of 1 and 2 bits also those of its neighbours, and all
            of them would go through shared memory to where they are wanted.
    """
    if B == 0:
        return tl.zeros((1, 1, 1, 1), tl.int32)
    elif LANE and B == 1:
        p = (pointers + further * 32).to(tl.int64)
        return tl.inline_asm_elementwise(
            "ld.global.L1::evict_first.b32 $0, [$1];", "=r,l", [p], dtype=tl.int32, is_pure=True, pack=1
        )
    elif LANE and B == 2:
        p = (pointers + further * 64).to(tl.int64)
        first, second = tl.inline_asm_elementwise(
            "ld.global.L1::evict_first.v2.b32 {$0, $1}, [$2];",
            "=r,=r,l",
            [p],
            dtype=(tl.int32,) * 2,
            is_pure=True,
            pack=1,
        )
        return tl.reshape(tl.join(first, second), (p.shape[0], p.shape[1], p.shape[2], 8))
    else:
        return tl.load(pointers + further * (32 * B), eviction_policy=EVICT)


@triton.jit
def quarter(w, i: tl.constexpr, B: tl.constexpr):
    """Of a plane's words [a, b, c, 4 B] those of columns 32 i .. 32 i + 31, int32 [a, b, c, 4 (t)], codes from bit 0 on.

    Registers change names; nothing moves from lane to lane.
    """
    if B == 4:
        pairs = tl.reshape(w, (w.shape[0], w.shape[1], w.shape[2], 4, 2, 2))
        even, odd = tl.split(pairs)
        if i % 2:
            a, b = tl.split(odd)
        else:
            a, b = tl.split(even)
        if i // 2:
            return b
        else:
            return a
    elif B == 2:
        a, b = tl.split(tl.reshape(w, (w.shape[0], w.shape[1], w.shape[2], 4, 2)))
        if i // 2:
            return b >> (8 * (i % 2))
        else:
            return a >> (8 * (i % 2))
    elif B == 1:
        return w >> (4 * i)
    else:
        return w


@triton.jit
def values(
    w0, w1, w2, grid, off, low, high,
    A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, BIAS: tl.constexpr,
    OFFSET: tl.constexpr, TABLE: tl.constexpr, BF16: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Words [a, b, c, 4] -> weights [a, b, c, 4 (t), 2 (l), 2 (u), 2 (h)] in 16 bits: (q - z) s, q s + offset, or table[q] s.

    Args:
        w0, w1, w2: the words of planes of A, B and C bits (0: there is none).
        grid, off: int32, that broadcast to a word: bias, zero point and scale; offset.
        low, high: a table's bytes, see `table_bytes`; or (where this lane looks up pairs,) and (), see `table_pairs`.
        PTX: assembly, or "" for Triton's own words.
    """
    grid = tl.broadcast_to(grid, w0.shape)
    off = tl.broadcast_to(off, w0.shape)
    if B == 0:
        w1 = w0
    if C == 0:
        w2 = w0
    if PTX == "":
        v00, v01 = plain(w0, w1, w2, grid, off, low, high, 0, A, B, C, BIAS, OFFSET, TABLE, BF16)
        v10, v11 = plain(w0, w1, w2, grid, off, low, high, 1, A, B, C, BIAS, OFFSET, TABLE, BF16)
        v20, v21 = plain(w0, w1, w2, grid, off, low, high, 2, A, B, C, BIAS, OFFSET, TABLE, BF16)
        v30, v31 = plain(w0, w1, w2, grid, off, low, high, 3, A, B, C, BIAS, OFFSET, TABLE, BF16)
    elif TABLE and len(high) == 0:
        v00, v01, v10, v11, v20, v21, v30, v31 = eight(
            PTX, "=h,=h,=h,=h,=h,=h,=h,=h,r,r,r", (w0, tl.broadcast_to(low[0], w0.shape), grid), BF16
        )
    elif TABLE:
        v00, v01, v10, v11, v20, v21, v30, v31 = eight(
            PTX, "=h,=h,=h,=h,=h,=h,=h,=h,r,r,r,r,r,r,r,r,r,r",
            (w0, low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3], grid), BF16,
        )  # fmt: skip
    else:
        v00, v01, v10, v11, v20, v21, v30, v31 = eight(
            PTX, "=h,=h,=h,=h,=h,=h,=h,=h,r,r,r,r,r", (w0, w1, w2, grid, off), BF16
        )
    u0 = tl.join(tl.join(v00, v01), tl.join(v10, v11))
    u1 = tl.join(tl.join(v20, v21), tl.join(v30, v31))
    return tl.join(u0, u1)


@triton.jit
def eight(PTX: tl.constexpr, OPERANDS: tl.constexpr, given, BF16: tl.constexpr):
    """Eight 16-bit floats that assembly makes of int32."""
    if BF16:
        return tl.inline_asm_elementwise(PTX, OPERANDS, given, dtype=(tl.bfloat16,) * 8, is_pure=True, pack=1)
    else:
        return tl.inline_asm_elementwise(PTX, OPERANDS, given, dtype=(tl.float16,) * 8, is_pure=True, pack=1)


@triton.jit
def total(acc, SUM: tl.constexpr):
    """Sums of warps [warps, 16, tokens] added up, in the same shape; what the first warp has of it counts.

    Args:
        SUM: `assembly.summed`; "": by Triton's own sum, whose result goes through shared memory three times.
    """
    if SUM == "":
        return tl.broadcast_to(tl.sum(acc, 0)[None, :, :], acc.shape)
    else:
        EACH: tl.constexpr = acc.shape[2] // 2  # sums of a lane
        KIND: tl.constexpr = "r" if acc.dtype == tl.int32 else "f"
        OPERANDS: tl.constexpr = ("=" + KIND + ",") * EACH + (KIND + ",") * (EACH - 1) + KIND
        return tl.inline_asm_elementwise(SUM, OPERANDS, [acc], dtype=acc.dtype, is_pure=False, pack=EACH)


@triton.jit
def store_total(y, y_ptr, row, column, M, N, stride_ym):
    """What the first warp has of y [warps, 16, tokens] to y_ptr [M, N]; row [1, 16, 1], column [1, 1, tokens]."""
    warp = tl.arange(0, y.shape[0])[:, None, None]
    live = (column < M) & (row < N) & (warp == 0)
    tl.store(y_ptr + warp * 0 + column * stride_ym + row, y.to(y_ptr.dtype.element_ty), mask=live)


@triton.jit
def plain(
    w0, w1, w2, grid, off, low, high, p: tl.constexpr,
    A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, BIAS: tl.constexpr,
    OFFSET: tl.constexpr, TABLE: tl.constexpr, BF16: tl.constexpr,
):  # fmt: skip
    """The two weights of pair p, rounded where the assembly rounds them."""
    s = half(grid >> 16, BF16).to(tl.float32)
    if TABLE:
        a = number((w0 >> 8 * p) & 15, low, high, BF16) * s
        b = number((w0 >> 8 * p + 4) & 15, low, high, BF16) * s
    else:
        if A + B == 8:
            word = w1 if p // 2 else w0
            q, r = (word >> (8 * (p % 2))) & 255, (word >> (8 * (p % 2) + 16)) & 255
        else:
            q, r = (w0 >> (A * p)) & ((1 << A) - 1), (w0 >> (A * p + 16)) & ((1 << A) - 1)
            if B:
                q |= ((w1 >> (B * p)) & ((1 << B) - 1)) << A
                r |= ((w1 >> (B * p + 16)) & ((1 << B) - 1)) << A
        if C:
            q |= ((w2 >> (C * p)) & ((1 << C) - 1)) << (A + B)
            r |= ((w2 >> (C * p + 16)) & ((1 << C) - 1)) << (A + B)
        z = half(grid, BF16).to(tl.float32) + BIAS
        a, b = (q.to(tl.float32) + z) * s, (r.to(tl.float32) + z) * s
        if OFFSET:
            o, rest = half(off, BF16).to(tl.float32), half(off >> 16, BF16).to(tl.float32)
            a, b = a + o, b + o
            if BF16:
                a, b = a.to(tl.bfloat16).to(tl.float32) + rest, b.to(tl.bfloat16).to(tl.float32) + rest
            else:
                a, b = a.to(tl.float16).to(tl.float32) + rest, b.to(tl.float16).to(tl.float32) + rest
    if BF16:
        return a.to(tl.bfloat16), b.to(tl.bfloat16)
    else:
        return a.to(tl.float16), b.to(tl.float16)


@triton.jit
def number(code, low, high, BF16: tl.constexpr):
    """table[code], float32, of the table's low and high bytes."""
    below = tl.where(code < 8, tl.where(code < 4, low[0], low[1]), tl.where(code < 12, low[2], low[3]))
    above = tl.where(code < 8, tl.where(code < 4, high[0], high[1]), tl.where(code < 12, high[2], high[3]))
    place = 8 * (code & 3)
    return half(((below >> place) & 255) | (((above >> place) & 255) << 8), BF16).to(tl.float32)


@triton.jit
def table_bytes(table_ptr, g, TABLE: tl.constexpr):
    """A table's low and high bytes, eight words, each shaped like g; g itself where there is no table.

    Read from an address that depends on the lane: from one that does not, they land in uniform registers, and each `prmt` would
    need a move.
    """
    if TABLE:
        p = table_ptr + g
        low = tl.load(p), tl.load(p + 8), tl.load(p + 16), tl.load(p + 24)
        high = tl.load(p + 32), tl.load(p + 40), tl.load(p + 48), tl.load(p + 56)
    else:
        low, high = (g, g, g, g), (g, g, g, g)
    return low, high


@triton.jit
def table_pairs(table_ptr, FILL: tl.constexpr):
    """All pairs of a table's numbers, put into shared memory by `assembly.pairs`: where they begin.

    Lane l looks up at 4 l behind it, at copies of its own.
    """
    return tl.inline_asm_elementwise(
        FILL, "=r,l", [(table_ptr + 64).to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def grid_at(grid_ptr, row8, block, g, KB, S: tl.constexpr, SPAN: tl.constexpr):
    """Pointers to the scales (or offsets) of a block, shaped as row8, block and g broadcast.

    Groups of 16 have two scales in 32 columns, and the last axis is t then.
    """
    if S == 8:
        pointers = grid_ptr + (row8 * KB + block) * 64 + g + tl.arange(0, 4)[None, None, None, :] // 2 * 8
    elif SPAN == 1:
        pointers = grid_ptr + (row8 * KB + block) * (8 * S) + g
    elif SPAN == 0:
        pointers = grid_ptr + row8 * 8 + g + block * 0
    else:
        pointers = grid_ptr + row8 * (KB // SPAN * 8) + g + block * 0
    return pointers


@triton.jit
def load_grid(pointers, block, further, i: tl.constexpr, S: tl.constexpr, SPAN: tl.constexpr):
    """The scales of columns 32 i .. 32 i + 31, `further` blocks further on than `block`.

    A load of fewer elements than threads takes its user's layout; one tensor of all S would be converted at every step.
    """
    if S == 8:
        found = tl.load(pointers + further * 64 + 16 * i)
    elif SPAN == 1:
        found = tl.load(pointers + further * (8 * S) + i * S // 4 * 8)
    elif SPAN == 0:
        found = tl.load(pointers)
    else:
        found = tl.load(pointers + (block + further) // SPAN * 8)
    return found
