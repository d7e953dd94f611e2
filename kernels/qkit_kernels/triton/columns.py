"""GPTQ's column loop on a GPU (Frantar et al. 2022, arXiv 2210.17323, algorithm 1), within one block of columns.

    for column j:  q = clamp(rint(w_j / s) + z),  ŵ = s (q - z),  e = (w_j - ŵ) / U_jj,  w_k -= e U_jk  for k > j

All rows share U and are else alone: a program takes a few of them, keeps their part of the block in registers, and walks over
its columns in order. What the block owes to the columns behind it is a matrix product, and not done here.

Codes are taken in float32, errors and updates in float64, every operation is rounded once (the compiler may not fuse a product
and a difference) and every w_k meets the columns in their order: the codes are those of the plain loop, to the last one.
"""

import triton
import triton.language as tl


@triton.jit
def round_block(
    w_ptr, upper_ptr, scale_ptr, zero_ptr, codes_ptr, errors_ptr, N, width, stride_w, stride_u, q_max,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Some rows of one block.

    Args:
        w_ptr: float64 [N, width], the columns in the order in which they are rounded; rows are `stride_w` apart.
        upper_ptr: float64 [width, width], the block's part of U; rows are `stride_u` apart.
        scale_ptr, zero_ptr: float32 [N, width], of the group of each column.
        codes_ptr: uint8 [N, width], is filled.
        errors_ptr: float64 [N, width], is filled with e.
        q_max: the largest code; the smallest is 0.
        ROWS, WIDTH: powers of two; WIDTH at least `width`.
    """
    row, column = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    live = (row < N)[:, None] & (column < width)[None, :]
    place = row[:, None] * width + column[None, :]
    w = tl.load(w_ptr + row[:, None] * stride_w + column[None, :], mask=live, other=0.0)
    codes = tl.zeros((ROWS, WIDTH), tl.float32)
    for j in range(width):
        here, behind = (column == j)[None, :], (column > j)[None, :]
        s = tl.load(scale_ptr + row * width + j, mask=row < N, other=1.0)
        z = tl.load(zero_ptr + row * width + j, mask=row < N, other=0.0)
        u = tl.load(upper_ptr + j * stride_u + column, mask=(column > j) & (column < width), other=0.0)
        pivot = tl.load(upper_ptr + j * stride_u + j)
        value = tl.sum(tl.where(here, w, 0.0), 1)  # one number and zeros
        q = tl.math.div_rn(value.to(tl.float32), s)  # `/` would be an approximation
        q = (
            (q + 12582912.0) - 12582912.0
        ) + z  # 1.5 2^23: its last bit is worth 1, so that a sum with it is a whole number
        q = tl.minimum(tl.maximum(q, 0.0), q_max)
        e = (value - (s * (q - z)).to(tl.float64)) / pivot
        codes = tl.where(here, q[:, None], codes)
        w = tl.where(behind, w - e[:, None] * u[None, :], tl.where(here, e[:, None], w))
    tl.store(codes_ptr + place, codes.to(tl.uint8), mask=live)
    tl.store(errors_ptr + place, w, mask=live)  # the place of each w_j holds its error by now
