"""The weight made floats, once for many tokens: from there on it is a matrix product like any other.

    w[n, k] = r[n] ŵ[n, k]

Bound by writing: 16 bits a weight where its codes are 2 to 8. Worth it where so many tokens share the weight that the product
itself takes several times as long.
"""

import triton
import triton.language as tl

from qkit_kernels.triton.words import grid_at, load_grid, load_plane, plane_at, quarter, table_bytes, values


@triton.jit
def floats(
    words_ptr, grid_ptr, off_ptr, rows_ptr, table_ptr, out_ptr, N, K, N8, KB,
    A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, S: tl.constexpr, SPAN: tl.constexpr, BIAS: tl.constexpr,
    OFFSET: tl.constexpr, TABLE: tl.constexpr, BF16: tl.constexpr, PTX: tl.constexpr, WARPS: tl.constexpr,
):  # fmt: skip
    """One block of 128 columns of 16 WARPS rows: out [N, K] in 16 bits. Arguments are those of `few`."""
    R: tl.constexpr = 16 * WARPS
    block, first = tl.program_id(0), tl.program_id(1) * (2 * WARPS)
    g, b, r = (
        tl.arange(0, 8)[:, None, None, None],
        tl.arange(0, WARPS)[None, :, None, None],
        tl.arange(0, 2)[None, None, :, None],
    )
    row8 = first + r * WARPS + b
    place = (row8 * KB + block) * 8 + g
    second = words_ptr + N8 * KB * 32 * A
    w0 = load_plane(plane_at(words_ptr, place, A), 0, A, "evict_first")
    w1 = load_plane(plane_at(second, place, B), 0, B, "evict_first")
    w2 = load_plane(plane_at(second + N8 * KB * 32 * B, place, C), 0, C, "evict_first")
    scales_at, offsets_at = (
        grid_at(grid_ptr, row8, block, g, KB, S, SPAN),
        grid_at(off_ptr, row8, block, g, KB, S, SPAN),
    )
    low, high = table_bytes(table_ptr, g, TABLE)
    quarters = ()
    for i in tl.static_range(4):
        grid = load_grid(scales_at, block, 0, i, S, SPAN)
        off = grid
        if OFFSET:
            off = load_grid(offsets_at, block, 0, i, S, SPAN)
        w = values(
            quarter(w0, i, A), quarter(w1, i, B), quarter(w2, i, C), grid, off,
            low, high, A, B, C, BIAS, OFFSET, TABLE, BF16, PTX,
        )  # fmt: skip
        quarters = quarters + (w,)
    w = tl.join(tl.join(quarters[0], quarters[2]), tl.join(quarters[1], quarters[3]))  # g b r t l u h i1 i0
    w = tl.reshape(tl.permute(w, (2, 1, 0, 7, 8, 3, 6, 5, 4)), (R, 128))  # r b g, i t h u l
    row, column = first * 8 + tl.arange(0, R), block * 128 + tl.arange(0, 128)
    scale = tl.load(rows_ptr + row, mask=row < N, other=0.0)
    live = (row < N)[:, None] & (column < K)[None, :]
    out = out_ptr + row.to(tl.int64)[:, None] * K + column[None, :]
    tl.store(out, (w.to(tl.float32) * scale[:, None]).to(out_ptr.dtype.element_ty), mask=live)
