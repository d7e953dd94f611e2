"""y = x ŵᵀ for more tokens than a tensor core takes at once: the codes become floats in registers, on their way into the product.

    y[m, n] = r[n] sum_k x[m, k] ŵ[n, k]

A program makes a tile of y, BN rows of the weight by BM tokens. Hopper's `wgmma` takes its left operand, the weight, from
registers, in another order of columns than `mma`; so x is put in that order first, by `reorder`. How tiles are dealt out to
programs, `pieces` says.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from qkit_kernels.triton.pieces import piece, slot, stretch, tile_of
from qkit_kernels.triton.words import grid_at, load_grid, load_plane, plane_at, quarter, table_bytes, values


@triton.jit
def reorder(x_ptr, out_ptr, K, stride_xm, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    """x [M, K] with each 32 columns, i t h u l as words hold them, in the order i h u t l in which wgmma meets them.

    With EARLY the next kernel may begin while this one runs, as this one may while the one before does.
    """
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    m = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    source = (k // 32) * 32 + ((k // 2) % 4) * 8 + ((k // 8) % 4) * 2 + k % 2
    tl.store(out_ptr + m * K + k, tl.load(x_ptr + m * stride_xm + source, mask=k < K, other=0.0), mask=k < K)


@triton.jit
def drained(w):
    """w, when no wgmma is on its way any more.

    Triton (3.6) splits a product with its left operand in registers into eight instructions and leaves seven of them running
    over the end of the loop's body, where the next weights are written into the registers that they still read: a race, whose
    result is wrong for some tiles and right by luck for others. Tied to the words by data flow, so that it cannot move.
    """
    return tl.inline_asm_elementwise(
        "{ wgmma.wait_group.sync.aligned 0; mov.b32 $0, $1; }", "=r,r", [w], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def one_piece(
    x_ptr, words_ptr, second, third, grid_ptr, off_ptr, rows_ptr, y_ptr, parts_ptr, low, high, g, b, r,
    tile, start, stop, M, N, KB, stride_ym,
    A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, S: tl.constexpr, SPAN: tl.constexpr, BIAS: tl.constexpr,
    OFFSET: tl.constexpr, TABLE: tl.constexpr, BF16: tl.constexpr, PTX: tl.constexpr,
    WARPS: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, STAGES: tl.constexpr, TOGETHER: tl.constexpr,
    SPLIT: tl.constexpr, DRAIN: tl.constexpr,
):  # fmt: skip
    """Blocks start .. stop - 1 of a tile, to y if they are all of it, else to this program's part."""
    R: tl.constexpr = BN // (8 * WARPS)
    across, along = tl.cdiv(N, BN), tl.cdiv(M, BM)
    n, m = tile_of(tile, across, along, TOGETHER)
    row8 = n * (BN // 8) + (r // 2) * (2 * WARPS) + b * 2 + r % 2
    place = row8 * (KB * 8) + g
    p0, p1, p2 = plane_at(words_ptr, place, A), plane_at(second, place, B), plane_at(third, place, C)
    scales_at, offsets_at = grid_at(grid_ptr, row8, 0, g, KB, S, SPAN), grid_at(off_ptr, row8, 0, g, KB, S, SPAN)
    acc = tl.zeros((BN, BM), tl.float32)
    for block in tl.range(start, stop, num_stages=STAGES):
        w0 = load_plane(p0, block, A, "")
        w1 = load_plane(p1, block, B, "")
        w2 = load_plane(p2, block, C, "")
        x = x_ptr.load([m * BM, block * 128])
        if DRAIN:
            w0 = drained(w0)
        quarters = ()
        for i in tl.static_range(4):
            grid = load_grid(scales_at, 0, block, i, S, SPAN)
            off = grid
            if OFFSET:
                off = load_grid(offsets_at, 0, block, i, S, SPAN)
            w = values(
                quarter(w0, i, A), quarter(w1, i, B), quarter(w2, i, C), grid, off,
                low, high, A, B, C, BIAS, OFFSET, TABLE, BF16, PTX,
            )  # fmt: skip
            quarters = quarters + (w,)
        w = tl.join(tl.join(quarters[0], quarters[2]), tl.join(quarters[1], quarters[3]))  # g b r t l u h i1 i0
        w = tl.reshape(w, (8, WARPS, R // 2, 2, 4, 2, 2, 2, 2, 2))  # g b r1 r0 t l u h i1 i0
        w = tl.reshape(tl.permute(w, (2, 1, 3, 0, 8, 9, 7, 6, 4, 5)), (BN, 128))  # r1 b r0 g, i h u t l
        acc = tl.dot(w, x.T, acc)
    column, row = tl.arange(0, BM), tl.arange(0, BN)
    y = acc * tl.load(rows_ptr + n * BN + row, mask=row < N - n * BN, other=0.0)[:, None]
    if SPLIT and stop - start < KB:
        part_ptr = parts_ptr + slot(tl.program_id(0), start) * (BM * BN)
        tl.store(part_ptr + column[None, :] * BN + row[:, None], y)
    else:
        live = (column < M - m * BM)[None, :] & (row < N - n * BN)[:, None]
        out_ptr = y_ptr + m.to(tl.int64) * BM * stride_ym + n * BN
        tl.store(out_ptr + (column * stride_ym)[None, :] + row[:, None], y.to(y_ptr.dtype.element_ty), mask=live)


@triton.jit
def many(
    x_ptr, words_ptr, grid_ptr, off_ptr, rows_ptr, table_ptr, y_ptr, parts_ptr, M, N, N8, KB, tiles, stride_ym,
    A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, S: tl.constexpr, SPAN: tl.constexpr, BIAS: tl.constexpr,
    OFFSET: tl.constexpr, TABLE: tl.constexpr, BF16: tl.constexpr, PTX: tl.constexpr,
    WARPS: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, STAGES: tl.constexpr, TOGETHER: tl.constexpr,
    SPLIT: tl.constexpr, DRAIN: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """A program's tiles of y, or its parts of them.

    Args:
        x_ptr: a tensor descriptor of x [M, 128 KB] as `reorder` leaves it, in blocks [BM, 128].
        BN: a multiple of 16 WARPS, at most 128.
        TOGETHER: rows of tiles that are worked on together, so that what they share of x is still in the cache.
        parts_ptr: float32 [2 programs, BM, BN], for parts of tiles; read by `add_up`.
        SPLIT: see `stretch`.
        DRAIN: the card has wgmma (sm_90); see `drained`.
        EARLY: see `reorder`; it is the kernel before this one.
    The others are those of `few`.
    """
    R: tl.constexpr = BN // (8 * WARPS)
    g, b, r = (
        tl.arange(0, 8)[:, None, None, None],
        tl.arange(0, WARPS)[None, :, None, None],
        tl.arange(0, R)[None, None, :, None],
    )
    second = words_ptr + N8 * KB * 32 * A
    third = second + N8 * KB * 32 * B
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    low, high = table_bytes(table_ptr, g, TABLE)
    if SPLIT:
        begin, end = stretch(tl.program_id(0), tl.num_programs(0), tiles, KB, SPLIT)
        for tile in range(begin // KB, tl.cdiv(end, KB)):
            start, stop = piece(tile, begin, end, KB)
            one_piece(
                x_ptr, words_ptr, second, third, grid_ptr, off_ptr, rows_ptr, y_ptr, parts_ptr, low, high, g, b, r,
                tile, start, stop, M, N, KB, stride_ym, A, B, C, S, SPAN, BIAS, OFFSET, TABLE, BF16, PTX,
                WARPS, BN, BM, STAGES, TOGETHER, SPLIT, DRAIN,
            )  # fmt: skip
    else:
        one_piece(
            x_ptr, words_ptr, second, third, grid_ptr, off_ptr, rows_ptr, y_ptr, parts_ptr, low, high, g, b, r,
            tl.program_id(0), 0, KB, M, N, KB, stride_ym, A, B, C, S, SPAN, BIAS, OFFSET, TABLE, BF16, PTX,
            WARPS, BN, BM, STAGES, TOGETHER, SPLIT, DRAIN,
        )  # fmt: skip
