"""What the codes of one row are worth: for each group a scale s and a shift c, so that ŵ = s (q - middle) + c.

A kernel asks for a row at a time, so that scales are read as they are stored (16-bit floats, packed zero points, absmax
values of 8 bits) and only a row of them is ever unpacked. `grid` is a tuple of arrays that says how they are stored:

    (scales [rows, groups], zero_points, offsets [rows, groups])      ŵ = s (q - z), or ŵ = s q + offset
    (codes uint8 [rows, groups], map [256], nested [..], offset [1])  s = map[code] nested[i // 256] + offset   (QLoRA)

where an array of no size stands for None; scales and offsets are float32, or float16 seen as uint16.
"""

import numpy as np
from numba.extending import overload

from qkit_kernels.formats import NESTED_BLOCK
from qkit_kernels.numba.vector import as_float, nth_code, value


def load_row(grid, sizes, row, groups, g0, g1, bits, middle, s, c):
    """What the codes of a row are worth, in the groups g0 .. g1 - 1.

    Args:
        grid: `pointers` of the arrays above.
        sizes: (rows of the first, size of the second, size of the third).
        row: which.
        groups: of a row.
        g0, g1: which of them.
        bits: Static(b).
        middle: what has been taken off the codes, 2^(b - 1) or 0.
        s, c: pointers to float32 [g1 - g0], are filled.

    Returns:
        Whether any c may differ from 0.
    """
    raise NotImplementedError("load_row is for kernels")


@overload(load_row)
def _load_row(grid, sizes, row, groups, g0, g1, bits, middle, s, c):
    return _load_nested if len(grid) == 4 else _load_plain


def _load_nested(grid, sizes, row, groups, g0, g1, bits, middle, s, c):
    codes, numbers, nested, offset = grid
    start, first, end, add = row * groups + g0, row * groups + g0, row * groups + g1, offset[0]
    while first < end:  # a stretch that shares a nested scale
        scale, stop = nested[first // NESTED_BLOCK], min(end, (first // NESTED_BLOCK + 1) * NESTED_BLOCK)
        for i in range(first, stop):
            s[i - start], c[i - start] = numbers[codes[i]] * scale + add, np.float32(0)
        first = stop
    return False


def _load_plain(grid, sizes, row, groups, g0, g1, bits, middle, s, c):
    scales, zero_points, offsets = grid
    rows, zero_bytes, offset_count = sizes
    first, count = (0 if rows == 1 else row * groups) + g0, g1 - g0  # one scale for all rows, or each its own
    shift = middle - np.float32(2 ** (value(bits) - 1))  # 0 where the middle has been taken off the codes
    for g in range(count):
        s[g] = as_float(scales[first + g])
    if zero_bytes and value(bits) == 4 and first % 2 == 0 and count % 2 == 0:  # the usual case, two to a byte
        for pair in range(count // 2):
            byte = zero_points[first // 2 + pair]
            c[2 * pair] = s[2 * pair] * (middle - np.float32(byte & np.uint8(15)))
            c[2 * pair + 1] = s[2 * pair + 1] * (middle - np.float32(byte >> np.uint8(4)))
    elif zero_bytes:
        for g in range(count):
            c[g] = s[g] * (middle - nth_code(zero_points, zero_bytes, first + g, bits))
    elif offset_count:
        for g in range(count):
            c[g] = as_float(offsets[first + g]) + s[g] * middle
    else:
        for g in range(count):
            c[g] = s[g] * shift
    return shift != 0 or zero_bytes > 0 or offset_count > 0
