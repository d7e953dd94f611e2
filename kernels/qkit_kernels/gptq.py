"""GPTQ's column loop on a CPU: every row is alone, so a few rows at a time go through all columns.

    for column j:  q = clamp(rint(w_j / s) + z),  ŵ = s (q - z),  e = (w_j - ŵ) / U_jj,  w_k -= e U_jk  for k > j

Nothing is batched lazily: a tile of rows stays in the cache while U streams past, once a tile. The arithmetic is that of the
plain version to the last bit: codes in float32, errors and updates in float64, no fused multiply-add.
"""

import numpy as np
from numba import njit

TILE = 8  # rows that share one pass over U


@njit(nogil=True, cache=True)
def columns(w, upper, group, scale, zero, q_max, codes):
    """Round all columns in order.

    Args:
        w: float64 [out, in], columns in the order of rounding; is used up.
        upper: float64 [in, in], the Cholesky factor in the same order.
        group: int64 [in], the group of each column.
        scale, zero: float32 [out, groups].
        q_max: float32, the largest code; the smallest is 0.
        codes: uint8 [out, in], is filled, in the order of rounding.
    """
    rows, length = w.shape
    error = np.empty(TILE, np.float64)
    for first in range(0, rows, TILE):
        last = min(first + TILE, rows)
        for j in range(length):
            for row in range(first, last):
                s = scale[row, group[j]]
                z = zero[row, group[j]]
                q = np.rint(np.float32(w[row, j]) / s) + z
                q = min(max(q, np.float32(0)), q_max)
                codes[row, j] = np.uint8(q)
                error[row - first] = (w[row, j] - np.float64(s * (q - z))) / upper[j, j]
            for row in range(first, last):
                e = error[row - first]
                for k in range(j + 1, length):
                    w[row, k] -= e * upper[j, k]
