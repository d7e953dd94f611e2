"""Packed codes to float32, on the CPU: the plain `QTensor.dequantize`, one row at a time and without its big temporaries.

Arithmetic, for the group g of weight k in row o (the same operations in the same order as the plain version, so the
results are equal to the last bit):

    out[o, k] = scales[o, g] * (float(q[o, k]) - zeros[o, g]) + offsets[o, g]

A row is done in two sweeps. The first reads `bits` bytes, which hold 8 codes, into one 64-bit word and shifts the codes
out of it; the second is a multiply-add over contiguous float32, which LLVM turns into vector instructions. No fast-math:
reordering would change the last bit. One thread and no parallel region, so it is safe wherever it is called from; the
matrix product that follows it is what uses the cores.
"""

import numpy as np
from numba import njit

from qkit_kernels.numba.packing import unpack_row


@njit(cache=True, nogil=True)
def dequantize(packed, scales, zeros, offsets, bits, out):
    """Fill `out` float32 [rows, n] from packed uint8 [rows, bytes] and scales, zeros, offsets float32 [rows, groups]."""
    rows, length = out.shape
    groups = scales.shape[1]
    size = length // groups
    codes = np.empty(length, np.uint8)
    for o in range(rows):
        unpack_row(packed[o], bits, codes)
        for g in range(groups):
            scale, zero, offset = scales[o, g], zeros[o, g], offsets[o, g]
            for k in range(g * size, (g + 1) * size):
                out[o, k] = scale * (np.float32(codes[k]) - zero) + offset
