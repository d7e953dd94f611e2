"""GPTQ's column loop on a CPU: every row is alone, so rows are dealt out to threads, and some go through all columns together.

    for column j:  q = clamp(rint(w_j / s) + z),  ŵ = s (q - z),  e = (w_j - ŵ) / U_jj,  w_k -= e U_jk  for k > j

The last step is nearly all of the work, and written like this it would read the whole of U, and write all of w, for every column.
Here columns are taken 32 at a time, and the debts are called in instead of being paid out: before a block is rounded,

    w_k -= sum_{j < start} e_j U_jk        for its 32 columns k, which stay in four registers while 64 errors pass by

from a panel of U, 64 x 32 numbers that lie together and stay in the first cache for all rows of a tile. The place of w_j keeps
its error e_j. Each w_k still meets the columns in their order, codes are taken in float32, errors and updates in float64, and
nothing is fused or reordered: the codes are those of the plain loop, to the last one.
"""

import numpy as np
from numba import njit

from qkit_kernels.numba.threads import fork_join
from qkit_kernels.numba.vector import less_product, load_f64, pointer, store_f64

TILE = 16  # rows that share one pass over U
BLOCK = 32  # columns that are rounded before the next are looked at: four vectors
PAST = 64  # earlier columns whose errors are called in at a time


@njit(nogil=True, cache=True)
def columns_rows(w, upper, group, scale, zero, q_max, codes, first, last):
    """Round all columns of some rows, in order.

    Args:
        w: float64 [out, in], columns in the order of rounding; where they lie their errors e stand in the end.
        upper: float64 [blocks, in, 32], the Cholesky factor in the same order: U[:, 32 b .. 32 b + 31] for each block b.
        group: int64 [in], the group of each column.
        scale, zero: float32 [out, groups].
        q_max: float32, the largest code; the smallest is 0.
        codes: uint8 [out, in], is filled, in the order of rounding.
        first, last: which rows.
    """
    length = w.shape[1]
    block = np.zeros((TILE, BLOCK), np.float64)
    for row in range(first, last, TILE):
        rows = min(TILE, last - row)
        for start in range(0, length, BLOCK):
            width, u = min(BLOCK, length - start), upper[start // BLOCK]
            block[:rows, :width] = w[row : row + rows, start : start + width]
            for past in range(0, start, PAST):
                count = min(PAST, start - past)
                panel = start * length + past * BLOCK
                for i in range(rows):
                    call_in(
                        pointer(block), i * BLOCK, pointer(upper), panel, pointer(w), (row + i) * length + past, count
                    )
            for j in range(start, start + width):
                for i in range(rows):
                    s = scale[row + i, group[j]]
                    z = zero[row + i, group[j]]
                    value = block[i, j - start]
                    q = np.rint(np.float32(value) / s) + z
                    q = min(max(q, np.float32(0)), q_max)
                    codes[row + i, j] = np.uint8(q)
                    e = (value - np.float64(s * (q - z))) / u[j, j - start]
                    w[row + i, j] = e
                    for k in range(j + 1 - start, width):
                        block[i, k] -= e * u[j, k]


@njit
def call_in(block, at, upper, panel, errors, first, count):
    """block[at ..] -= sum_j errors[first + j] upper[panel + 32 j ..] for 32 columns, one j after the other; pointers."""
    w0, w1, w2, w3 = load_f64(block, at), load_f64(block, at + 8), load_f64(block, at + 16), load_f64(block, at + 24)
    for j in range(count):
        e, u = errors[first + j], panel + BLOCK * j
        w0, w1 = less_product(w0, e, load_f64(upper, u)), less_product(w1, e, load_f64(upper, u + 8))
        w2, w3 = less_product(w2, e, load_f64(upper, u + 16)), less_product(w3, e, load_f64(upper, u + 24))
    store_f64(block, at, w0)
    store_f64(block, at + 8, w1)
    store_f64(block, at + 16, w2)
    store_f64(block, at + 24, w3)


@njit(nogil=True, cache=True)
def columns(team, threads, chunk, rows, w, upper, group, scale, zero, q_max, codes):
    """`columns_rows` by a team of threads."""
    fork_join(columns_rows, (w, upper, group, scale, zero, q_max, codes), rows, chunk, threads, team)
