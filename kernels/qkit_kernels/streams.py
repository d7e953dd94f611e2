"""How codes lie in a register, and the activations laid the same way.

A kernel reads codes as they are stored, a *block* at a time: what fills one vector of 16 lanes.

    bits       block                 lane l holds the codes        found by
    4          64 bytes, 128 codes   8 l  .. 8 l + 7               a shift by 4 j
    2          64 bytes, 256 codes   16 l .. 16 l + 15             a shift by 2 j
    3, 5 .. 8  8 b bytes, 64 codes   4 l  .. 4 l + 3               one to a byte first, then a shift by 8 j

So with one shift, the sixteen lanes hold sixteen codes that are not neighbours. Rather than sorting the codes, which are
many, the activations are laid in this order once, since they serve all rows of the weight:

    floats   x'[block, j, l]   = x[block, l, j]     16 lanes l of `unit` codes j
    bytes    x'[block, j, i]   = x[block, i, j]     64 bytes i of unit / 4 codes j       (for `dot4`)

Behind the last feature there are zeros, so that whatever the codes there are, they count nothing. Where there are several
tokens, four lie together, a vector of each in turn, so that what is used together is read as one stream.
"""

import numpy as np
from numba import njit

from qkit_kernels.threads import fork_join
from qkit_kernels.vector import LANES, as_float, as_i32, pointer, room_f32, room_i8

UNIT = {bits: {4: 8, 2: 16}.get(bits, 4) for bits in range(2, 9)}  # codes in a lane
INFINITY, TINY = np.int32(0x7F800000), np.finfo(np.float32).tiny  # the first as bits


@njit(nogil=True, cache=True)
def lay_floats_rows(x, groups, laid, sums, first, last):
    """Lay float activations, and sum each group of them (the shifts of zero points multiply these sums).

    Args:
        x: [tokens, features], see `vector.as_float`.
        groups: of a row of the weight.
        laid: float32 [tokens / n, blocks, unit, n, 16], is filled, n (1 or 4) tokens together.
        sums: float32 [tokens, groups and zeros up to a multiple of 16], its groups are filled.
        first, last: which tokens.
    """
    features, blocks, unit, together, pad = x.shape[1], laid.shape[1], laid.shape[2], laid.shape[3], sums.shape[1]
    length, size = blocks * unit * LANES, features // groups
    x, laid, sums, row = pointer(x), pointer(laid), pointer(sums), room_f32(length)
    for t in range(first, last):
        for k in range(features):
            row[k] = as_float(x[t * features + k])
        for g in range(groups):
            sums[t * pad + g] = float_sum(row, g * size, (g + 1) * size)
        transpose(row, length, unit, LANES, laid, t // together * together * length, t % together, together)


@njit(fastmath={"reassoc"})
def float_sum(values, first, last):
    """The sum of values[first .. last - 1], a pointer's, in an order that suits vectors."""
    total = np.float32(0)
    for k in range(first, last):
        total += values[k]
    return total


@njit
def transpose(row, size, unit, width, laid, first, nth, together):
    """laid[block, j, nth, i] = row[block, i, j] for blocks of `width` i and `unit` j; pointers, laid from `first` on."""
    for start in range(0, size, unit * width):
        for j in range(unit):
            to = first + (start + j * width) * together + nth * width
            for i in range(width):
                laid[to + i] = row[start + i * unit + j]


@njit(nogil=True, cache=True)
def quantize_rows(x, keep, fixed, groups, scales, laid, sums, first, last):
    """Quantize activations to INT8 codes -127 .. 127, each token by its absmax / 127, and lay them.

    Args:
        x: [tokens, features], see `vector.as_float`.
        keep: uint8 [features], 0 where a column is an outlier and counts as 0 here; [0]: keep all.
        fixed: a scale for all tokens, beyond which values are clamped; 0: each token its own.
        groups: of a row of the weight.
        scales: float32 [tokens], is filled; NaN for a token that holds NaN, or infinity without a fixed scale.
        laid: int8 [tokens / n, blocks, unit / 4, n, 64], is filled, n (1 or 4) tokens together.
        sums: float32 [tokens, groups and zeros up to a multiple of 16], its groups are filled with sums of codes.
        first, last: which tokens.
    """
    features, blocks, unit, together, pad = x.shape[1], laid.shape[1], laid.shape[2], laid.shape[3], sums.shape[1]
    length, size, keeps_all = blocks * unit * 4 * LANES, features // groups, keep.size == 0
    row, codes = room_f32(features), room_i8(length)
    x, keep, scales, laid, sums = pointer(x), pointer(keep), pointer(scales), pointer(laid), pointer(sums)
    for t in range(first, last):
        for k in range(features):
            row[k] = as_float(x[t * features + k])
        if not keeps_all:
            for k in range(features):
                row[k] = row[k] if keep[k] != 0 else np.float32(0)
        scale, bad = token_scale(row, features, fixed)
        quantize_row(row, features, scale, codes)
        scales[t] = np.float32(np.nan) if bad else scale
        for g in range(groups):
            total = np.int32(0)
            for k in range(g * size, (g + 1) * size):
                total += np.int32(codes[k])
            sums[t * pad + g] = np.float32(total)
        transpose(codes, length, unit, 4 * LANES, laid, t // together * together * length, t % together, together)


@njit
def token_scale(row, size, fixed):
    """absmax / 127 (1 where all is zero, never denormal) or the fixed scale; and whether the row cannot be quantized.

    The bits of a float without its sign grow with its size, and those of NaN are largest: the comparison is of integers.
    """
    largest = np.int32(0)
    for k in range(size):
        largest = max(largest, np.int32(as_i32(row)[k] & np.int32(0x7FFFFFFF)))
    if fixed > 0:
        return fixed, largest > INFINITY
    if largest >= INFINITY:
        return np.float32(1), True
    reach = np.float32(0)
    for k in range(size):
        reach = max(reach, abs(row[k]))
    scale = np.float32(reach / np.float32(127))
    return (max(scale, TINY) if scale > 0 else np.float32(1)), False


@njit(error_model="numpy")
def quantize_row(row, size, scale, codes):
    """codes = clamp(round(row / scale), -127, 127); NaN gets any code."""
    for k in range(size):
        q = np.rint(row[k] / scale)
        q = np.float32(127) if q > np.float32(127) else q
        q = q if q > np.float32(-127) else np.float32(-127)
        codes[k] = np.int8(np.int32(q))


@njit(nogil=True, cache=True)
def lay_floats(team, threads, chunk, rows, x, groups, laid, sums):
    """`lay_floats_rows` by a team of threads."""
    fork_join(lay_floats_rows, (x, groups, laid, sums), rows, chunk, threads, team)


@njit(nogil=True, cache=True)
def quantize(team, threads, chunk, rows, x, keep, fixed, groups, scales, laid, sums):
    """`quantize_rows` by a team of threads."""
    fork_join(quantize_rows, (x, keep, fixed, groups, scales, laid, sums), rows, chunk, threads, team)
