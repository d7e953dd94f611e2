"""Codes of 2 to 8 bits into bytes and back, on the CPU: `numerics.packing` in one pass, by words of 64 bits.

8 codes of b bits are b bytes: a word collects 8 codes, the first in its lowest bits, and is cut into bytes.
"""

import numpy as np
from numba import njit

from qkit_kernels.numba.threads import fork_join


@njit(nogil=True, cache=True)
def pack_rows(codes, bits, packed, first, last):
    """codes uint8 [rows, length], each below 2^bits, into packed uint8 [rows, ceil(length * bits / 8)]."""
    length, size = codes.shape[1], packed.shape[1]
    step = np.uint64(bits)
    for row in range(first, last):
        for k in range(0, length, 8):
            word = np.uint64(0)
            for i in range(min(8, length - k)):
                word |= np.uint64(codes[row, k + i]) << (step * np.uint64(i))
            start = k // 8 * bits
            for i in range(min(bits, size - start)):
                packed[row, start + i] = np.uint8(word & np.uint64(255))
                word >>= np.uint64(8)


@njit(cache=True, nogil=True)
def unpack_row(packed, bits, codes):
    """packed uint8 [ceil(n * bits / 8)] -> codes uint8 [n], lowest bits first."""
    length = codes.size
    mask = np.uint64((1 << bits) - 1)
    step = np.uint64(bits)
    for first in range(0, length, 8):
        start = first // 8 * bits
        word = np.uint64(0)
        for j in range(min(bits, packed.size - start)):
            word |= np.uint64(packed[start + j]) << np.uint64(8 * j)
        for k in range(first, min(first + 8, length)):
            codes[k] = word & mask
            word >>= step


@njit(nogil=True, cache=True)
def unpack_rows(packed, bits, codes, first, last):
    """The inverse of `pack_rows`."""
    for row in range(first, last):
        unpack_row(packed[row], bits, codes[row])


@njit(nogil=True, cache=True)
def pack(team, threads, chunk, rows, codes, bits, packed):
    """`pack_rows` by a team of threads."""
    fork_join(pack_rows, (codes, bits, packed), rows, chunk, threads, team)


@njit(nogil=True, cache=True)
def unpack(team, threads, chunk, rows, packed, bits, codes):
    """`unpack_rows` by a team of threads."""
    fork_join(unpack_rows, (packed, bits, codes), rows, chunk, threads, team)
