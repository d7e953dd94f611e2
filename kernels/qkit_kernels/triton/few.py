"""y = x ŵᵀ for few tokens: bound by reading the weight, so that 8 tokens cost what one costs.

    y[m, n] = r[n] sum_k x[m, k] ŵ[n, k],    r a power of two

The weight is the *left* operand of the tensor core: 16 of its rows fill the 16 that an instruction has. The tokens, few as they
are, are the right one, which is 8 wide: 16 or 32 take two or four. With tokens on the left, 15 of 16 rows of a product with one
token would be empty.

A program makes 16 rows of y: its warps take one block of 128 columns each and are added up at the end, always in one order.
Many small programs, all launched at once, keep more loads on their way than few that loop. The weight is read once, and told so
(evict_first); x is read by all and stays in the caches.
"""

import triton
import triton.language as tl

from qkit_kernels.triton.words import (
    grid_at,
    halves,
    load_grid,
    load_plane,
    plane_at,
    quarter,
    store_total,
    table_bytes,
    table_pairs,
    total,
    values,
)


@triton.jit
def x_quarter(p, B: tl.constexpr, BF16: tl.constexpr, PTX: tl.constexpr):
    """x of columns 32 i .. 32 i + 31 of B blocks and 8 tokens, read as pairs: [B, 32, 8], columns in the order u t h l.

    Of a lane's four pairs an instruction takes u = 0 and u = 1 of one h: two registers that were loaded side by side.
    """
    left, right = halves(tl.load(p), BF16, PTX)  # [8 (token), B, 16 (t h u)]
    x = tl.reshape(tl.join(left, right), (8, B, 4, 2, 2, 2))  # token block t h u l
    return tl.reshape(tl.permute(x, (1, 4, 2, 3, 5, 0)), (B, 32, 8))


@triton.jit
def x_of_tokens(x_at, further, B: tl.constexpr, TOKENS: tl.constexpr, BF16: tl.constexpr, PTX: tl.constexpr):
    """`x_quarter` of 8, 16 or 32 tokens side by side; x_at has a tensor of pointers for each eight of them."""
    if TOKENS == 8:
        return x_quarter(x_at[0] + further, B, BF16, PTX)
    else:
        below = x_of_tokens(x_at[: TOKENS // 16], further, B, TOKENS // 2, BF16, PTX)
        above = x_of_tokens(x_at[TOKENS // 16 :], further, B, TOKENS // 2, BF16, PTX)
        return tl.reshape(tl.permute(tl.join(below, above), (0, 1, 3, 2)), (B, 32, TOKENS))


@triton.jit
def few(
    x_ptr, words_ptr, grid_ptr, off_ptr, rows_ptr, table_ptr, y_ptr,
    M, N, N8, KB, stride_xm, stride_ym,
    A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, S: tl.constexpr, SPAN: tl.constexpr, BIAS: tl.constexpr,
    OFFSET: tl.constexpr, TABLE: tl.constexpr, BF16: tl.constexpr, PTX: tl.constexpr,
    WARPS: tl.constexpr, TOKENS: tl.constexpr, UNROLL: tl.constexpr, TURNS: tl.constexpr, RAGGED: tl.constexpr,
    FILL: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Rows 16 pid .. 16 pid + 15 of y, of the TOKENS tokens that are the program's by its second number.

    Args:
        x_ptr: float16 or bfloat16 [M, 128 KB], rows `stride_xm` (even) apart.
        words_ptr, grid_ptr, off_ptr: as `words` lays them; N8 rows of eight, KB blocks of 128 columns.
        rows_ptr: float32 [N], r.
        table_ptr: int32 [40, 8], four words of low bytes and four of high ones, eight times each; then all pairs of numbers.
        y_ptr: [M, N].
        TOKENS: 8, 16 or 32.
        UNROLL: blocks of a warp that are written out, TURNS times.
        RAGGED: the last ones run over the end; they read the last block again, and scale it with 0.
        FILL: assembly that puts a table's pairs into shared memory; "": its bytes are looked up in registers.
        SUM: see `total`.
    """
    first, tile = tl.program_id(0) * 2, tl.program_id(1) * TOKENS
    x_ptr, y_ptr, M = x_ptr + tile * stride_xm, y_ptr + tile * stride_ym, tl.minimum(M - tile, TOKENS)
    g4, b4, r4 = (
        tl.arange(0, 8)[:, None, None, None],
        tl.arange(0, WARPS)[None, :, None, None],
        tl.arange(0, 2)[None, None, :, None],
    )
    token, b3, pair = (
        tl.arange(0, 8)[:, None, None],
        tl.arange(0, WARPS)[None, :, None],
        tl.arange(0, 16)[None, None, :],
    )
    x_words = x_ptr.to(tl.pointer_type(tl.int32)) + b3 * 64 + pair
    # a token that is not there is the last one again: to mask it would cost instructions, and its product is not stored
    x_at = ()
    for eight in tl.static_range(TOKENS // 8):
        x_at = x_at + (x_words + tl.minimum(token + 8 * eight, M - 1) * (stride_xm // 2),)
    place = ((first + r4) * KB + b4) * 8 + g4
    second = words_ptr + N8 * KB * 32 * A
    p0, p1, p2 = (
        plane_at(words_ptr, place, A, PTX != ""),
        plane_at(second, place, B, PTX != ""),
        plane_at(second + N8 * KB * 32 * B, place, C, PTX != ""),
    )
    scales_at = grid_at(grid_ptr, first + r4, b4, g4, KB, S, SPAN)
    offsets_at = grid_at(off_ptr, first + r4, b4, g4, KB, S, SPAN)
    row = first * 8 + tl.arange(0, 16)[None, :, None]
    factor = tl.load(rows_ptr + row, mask=row < N, other=0.0)
    if FILL == "":
        low, high = table_bytes(table_ptr, g4, TABLE)
    else:
        lane = 4 * g4 + tl.arange(0, 4)[None, None, None, :]
        low, high = (table_pairs(table_ptr, FILL) + 4 * lane,), ()
    acc = tl.zeros((WARPS, 16, TOKENS), tl.float32)
    for turn in tl.range(0, TURNS, num_stages=1):
        for block in tl.static_range(UNROLL):
            base = (turn * UNROLL + block) * WARPS
            further = base
            if RAGGED:
                further = tl.minimum(base + b4, KB - 1) - b4
            w0 = load_plane(p0, further, A, "evict_first", PTX != "")
            w1 = load_plane(p1, further, B, "evict_first", PTX != "")
            w2 = load_plane(p2, further, C, "evict_first", PTX != "")
            grid, off = (), ()
            for i in tl.static_range(4):
                if i % (4 // min(S, 4)) == 0:
                    scales = load_grid(scales_at, b4, further, i, S, SPAN)
                    if RAGGED:
                        scales = tl.where(base + b4 < KB, scales, 0)
                    grid = grid + (scales,)
                    if OFFSET:
                        offsets = load_grid(offsets_at, b4, further, i, S, SPAN)
                        if RAGGED:
                            offsets = tl.where(base + b4 < KB, offsets, 0)
                        off = off + (offsets,)
            across = base
            if RAGGED:
                across = tl.minimum(base + b3, KB - 1) - b3
            for i in tl.static_range(4):
                x = x_of_tokens(x_at, across * 64 + i * 16, WARPS, TOKENS, BF16, PTX != "")
                scales = grid[i * min(S, 4) // 4]
                offsets = scales
                if OFFSET:
                    offsets = off[i * min(S, 4) // 4]
                w = values(
                    quarter(w0, i, A), quarter(w1, i, B), quarter(w2, i, C), scales, offsets,
                    low, high, A, B, C, BIAS, OFFSET, TABLE, BF16, PTX,
                )  # g b r t l u h  # fmt: skip
                w = tl.reshape(tl.permute(w, (1, 2, 0, 5, 3, 6, 4)), (WARPS, 16, 32))  # b, r g, u t h l
                acc = tl.dot(w, x, acc)
    column = tl.arange(0, TOKENS)[None, None, :]
    store_total(total(acc, SUM) * factor, y_ptr, row, column, M, N, stride_ym)
