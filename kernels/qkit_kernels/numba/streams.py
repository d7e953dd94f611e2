"""How codes lie in a register, and the activations laid the same way.

A kernel reads codes as they are stored, a *block* at a time: what fills one vector of 16 lanes.

    bits       block                 lane l holds the codes        found by
    4          64 bytes, 128 codes   8 l  .. 8 l + 7               a shift by 4 j
    2          64 bytes, 256 codes   16 l .. 16 l + 15             a shift by 2 j
    3, 5 .. 8  8 b bytes, 64 codes   4 l  .. 4 l + 3               one to a byte first, then a shift by 8 j

So with one shift, the sixteen lanes hold sixteen codes that are not neighbours. Rather than sorting the codes, which are
many, the activations are laid in this order once, since they serve all rows of the weight:

    floats   x'[block, j, n, l]   = x[n, block, l, j]     16 lanes l of `unit` codes j, token n
    bytes    x'[block, j, n, i]   = x[n, block, i, j]     64 bytes i of unit / 4 codes j       (for `dot4`)

Behind the last feature there are zeros, so that whatever the codes there are, they count nothing.

Up to four tokens lie beside each other, a vector of each in turn. Many lie in tiles of one or two vectors of tokens
(`qkit_kernels.numba.tiles`), with features in their order:

    floats   x'[tile, k, t]                        bytes    x'[tile, k / 4, t, k mod 4]
"""

import numpy as np
from numba import carray, njit

from qkit_kernels.numba.threads import fork_join
from qkit_kernels.numba.vector import (
    LANES,
    as_float,
    as_i32,
    bf16_at,
    f16_at,
    f32_at,
    load_f32,
    offset,
    pointer,
    room_f32,
    room_i8,
    store_f32,
    transpose16,
)

UNIT = {bits: {4: 8, 2: 16}.get(bits, 4) for bits in range(2, 9)}  # codes in a lane
STRETCH = 512  # features of sixteen tokens that are turned at a time: 32 KB
DTYPES = ("float32", "float16", "bfloat16")  # of activations, in the order in which `floats_at` numbers them
INFINITY, TINY = np.int32(0x7F800000), np.finfo(np.float32).tiny  # the first as bits


@njit(nogil=True, cache=True)
def lay_floats(x, groups, laid, sums, masked=0):
    """Lay a few tokens, and sum each group of them (the shifts of zero points multiply these sums).

    Args:
        x: [tokens, features], see `vector.as_float`.
        groups: of a row of the weight.
        laid: float32 [blocks, unit, n, 16], its places of the tokens are filled.
        sums: float32 [ceil(groups / 16), n, 16], its groups are filled.
        masked: above 0, the bits of codes that are multiplied where they are: laid is [blocks, unit + 1, n, 16] then.
    """
    (tokens, features), together = x.shape, laid.shape[2]
    unit = laid.shape[1] - (1 if masked else 0)
    blocks, size, apart = laid.shape[0], features // groups, laid.shape[1] * LANES
    length = blocks * unit * LANES
    x, laid, sums, row = pointer(x), pointer(laid), pointer(sums), room_f32(length)
    for t in range(tokens):
        for k in range(features):
            row[k] = as_float(x[t * features + k])
        for g in range(groups):
            sums[place_of_sum(g, t, together)] = float_sum(row, g * size, (g + 1) * size)
        transpose(row, length, unit, LANES, laid, t, together, apart)
    if masked:
        suit_masks(laid, blocks, unit, together, masked)


@njit
def suit_masks(laid, blocks, unit, together, bits):
    """Make x what `vector.dots_in_place` takes: pointer to [blocks, unit + 1, n, 16].

    What code j counts too much, 2^(b j), is taken off x, and half of it given back to all (`masked_by`), so that neither end of
    float32 comes near. Behind the codes stands what their middle adds to a lane: -2^(b - 1) sum_j x_j, added up in the order in
    which the products will be. Powers of two are never rounded, so that codes that are all the middle give exactly 0.
    """
    half, width = masked_by(bits), together * LANES
    apart, middle = (unit + 1) * width, np.float32(2 ** (bits - 1) * 2.0**half)
    for j in range(unit):
        high = bits * j if bits * (j + 1) < 32 else 0
        factor = np.float32(2.0 ** (half - high))
        for block in range(blocks):
            place, last = block * apart + j * width, block * apart + unit * width
            for i in range(width):
                x = laid[place + i]
                laid[place + i] = x * factor
                laid[last + i] = x if j == 0 else laid[last + i] + x
    for block in range(blocks):
        last = block * apart + unit * width
        for i in range(width):
            laid[last + i] *= -middle


@njit
def masked_by(bits):
    """The power of two by which x is too large then: half of what the highest masked code is too high by."""
    return 12 if bits == 4 else 14 if bits == 2 else 4


@njit
def floats_at(x, dtype, tokens, features, room):
    """float32 [tokens, features], the numbers at the address x: where they are, or in `room` where they have 16 bits.

    Args:
        dtype: 0, 1 or 2, see `DTYPES`.
        room: pointer to float32 [tokens features] of scratch memory; not looked at with dtype 0.
    """
    if dtype == 0:
        return carray(f32_at(x), (tokens, features))
    if dtype == 1:
        halves = f16_at(x)
        for i in range(tokens * features):
            room[i] = as_float(halves[i])
    else:
        uppers = bf16_at(x)
        for i in range(tokens * features):
            room[i] = as_float(uppers[i])
    return carray(room, (tokens, features))


@njit
def add_bias(y, bias, tokens, rows):
    """y[t, r] += bias[r]; addresses of float32, that of the bias 0 where there is none."""
    if bias != 0:
        y, bias = f32_at(y), f32_at(bias)
        for t in range(tokens):
            for r in range(rows):
                y[t * rows + r] += bias[r]


@njit
def place_of_sum(group, token, together):
    """Where in [ceil(groups / 16), n, 16] the sum of a group stands."""
    return (group // LANES * together + token) * LANES + group % LANES


@njit(fastmath={"reassoc"})
def float_sum(values, first, last):
    """The sum of values[first .. last - 1], a pointer's, in an order that suits vectors."""
    total = np.float32(0)
    for k in range(first, last):
        total += values[k]
    return total


@njit
def transpose(row, size, unit, width, laid, nth, together, apart):
    """laid[block, j, nth, i] = row[block, i, j] for blocks of `width` i and `unit` j; pointers. Laid blocks are `apart`."""
    for start in range(0, size, unit * width):
        for j in range(unit):
            to = (start // (unit * width) * apart + j * width) * together + nth * width
            for i in range(width):
                laid[to + i] = row[start + i * unit + j]


@njit(nogil=True, cache=True)
def quantize(x, keep, fixed, groups, scales, laid, sums):
    """Quantize a few tokens to INT8 codes -127 .. 127, each by its absmax / 127, and lay them.

    Args:
        x: [tokens, features], see `vector.as_float`.
        keep: uint8 [features], 0 where a column is an outlier and counts as 0 here; [0]: keep all.
        fixed: a scale for all, beyond which values are clamped; 0: each token its own.
        groups: of a row of the weight.
        scales: float32 [n], is filled; NaN for a token that holds NaN, or infinity without a fixed scale.
        laid: int8 [blocks, unit / 4, n, 64], its places of the tokens are filled.
        sums: float32 [ceil(groups / 16), n, 16], its groups are filled with sums of codes.
    """
    (tokens, features), unit, together = x.shape, laid.shape[1], laid.shape[2]
    length, keep_count = laid.size // together, keep.size
    row, codes = room_f32(features), room_i8(length)
    x, keep, laid, sums = pointer(x), pointer(keep), pointer(laid), pointer(sums)
    for t in range(tokens):
        scales[t] = codes_of(offset(x, t * features), features, keep, keep_count, fixed, row, codes)
        for g in range(groups):
            sums[place_of_sum(g, t, together)] = sum_of_codes(codes, g, features // groups)
        transpose(codes, length, unit, 4 * LANES, laid, t, together, unit * 4 * LANES)


@njit(nogil=True, cache=True)
def find_outliers_rows(x, limit, found, first, last):
    """Which columns hold any |x| >= limit in some tokens; NaN is not one.

    Args:
        x: [tokens, features], see `vector.as_float`.
        limit: float32, not negative.
        found: uint8 [features], is 1 there.
        first, last: which tokens.
    """
    features, row = x.shape[1], room_f32(x.shape[1])
    x, found = pointer(x), pointer(found)
    for t in range(first, last):
        for k in range(features):
            row[k] = as_float(x[t * features + k])
        mark_outliers(row, features, limit, found)


@njit
def mark_outliers(row, size, limit, found):
    """The same of one row; pointers. Few tokens have any: first all of it is asked at once.

    What is compared are bits without the sign, as in `token_scale`.
    """
    least, largest = room_f32(1), np.int32(0)
    least[0] = limit
    limit = as_i32(least)[0]
    for k in range(size):
        largest = max(largest, np.int32(as_i32(row)[k] & np.int32(0x7FFFFFFF)))
    if largest >= limit:
        for k in range(size):
            reach = np.int32(as_i32(row)[k] & np.int32(0x7FFFFFFF))
            found[k] |= np.uint8((reach >= limit) & (reach <= INFINITY))


@njit
def codes_of(x, features, keep, keep_count, fixed, row, codes):
    """The codes of one token, whose numbers begin at x; returns its scale. row: float32 [features] of scratch memory."""
    for k in range(features):
        row[k] = as_float(x[k])
    if keep_count:
        for k in range(features):
            row[k] = row[k] if keep[k] != 0 else np.float32(0)
    scale, bad = token_scale(row, features, fixed)
    quantize_row(row, features, scale, codes)
    return np.float32(np.nan) if bad else scale


@njit
def sum_of_codes(codes, group, size):
    """The sum of the codes of one group.

    In 32 bits, which `total += ...` would not be in Numba. Of bytes that are summed in 64 LLVM 22 makes wrong code for an Arm
    whose SVE is wider than 128 bits: `sunpkhi` of a vector that fills the lower 128, so that lanes 2 and 3 of four are lost.
    """
    total = np.int32(0)
    for k in range(group * size, (group + 1) * size):
        total = np.int32(total + np.int32(codes[k]))
    return np.float32(total)


# ---- many tokens


@njit(nogil=True, cache=True)
def lay_float_tiles_rows(x, laid, first, last):
    """Lay many tokens.

    Args:
        x: [tokens, features], see `vector.as_float`.
        laid: float32 [tiles, features, lanes], is filled; lanes without a token get zeros.
        first, last: which tokens, whole tiles.
    """
    tokens, features, lanes = x.shape[0], x.shape[1], laid.shape[2]
    x, laid, rows, turned = pointer(x), pointer(laid), room_f32(LANES * STRETCH), room_f32(LANES * LANES)
    for token in range(first, last, LANES):  # sixteen at a time: as floats to nearby memory, and turned from there
        to = token // lanes * lanes * features + token % lanes
        for start in range(0, features, STRETCH):
            length = min(STRETCH, features - start)
            for t in range(LANES):
                if token + t < tokens:
                    for k in range(length):
                        rows[t * STRETCH + k] = as_float(x[(token + t) * features + start + k])
                else:
                    for k in range(length):
                        rows[t * STRETCH + k] = np.float32(0)
            for k in range(0, length, LANES):
                place = to + (start + k) * lanes
                if k + LANES <= length:
                    transpose16(rows, k, STRETCH, laid, place, lanes)
                    continue
                transpose16(rows, k, STRETCH, turned, 0, LANES)
                for i in range(length - k):
                    store_f32(laid, place + i * lanes, load_f32(turned, i * LANES))


@njit(nogil=True, cache=True)
def quantize_tiles_rows(x, keep, fixed, groups, scales, laid, sums, first, last):
    """Quantize many tokens and lay them.

    Args:
        x, keep, fixed, groups: as for `quantize`, x [tokens, features].
        scales: float32 [tiles * lanes], is filled; 1 where there is no token.
        laid: int8 [tiles, features / 4 rounded up, lanes, 4], is filled; zeros where there is no token or feature.
        sums: float32 [tiles, groups, lanes], is filled.
        first, last: which tokens, whole tiles.
    """
    tokens, features, fours, lanes = x.shape[0], x.shape[1], laid.shape[1], laid.shape[2]
    row, codes = room_f32(features), room_i8(4 * fours)
    x, keep, keep_count, scales, laid, sums = (
        pointer(x),
        pointer(keep),
        keep.size,
        pointer(scales),
        pointer(laid),
        pointer(sums),
    )
    words = as_i32(laid)
    for token in range(first, last):
        t, start = token % lanes, token // lanes
        if token < tokens:
            from_x = offset(x, token * features)
            scales[token] = codes_of(from_x, features, keep, keep_count, fixed, row, codes)
        else:
            scales[token] = np.float32(1)
            for k in range(features):
                codes[k] = np.int8(0)
        for g in range(groups):
            sums[(start * groups + g) * lanes + t] = sum_of_codes(codes, g, features // groups)
        four = as_i32(codes)
        for k in range(fours):
            words[(start * fours + k) * lanes + t] = four[k]


@njit
def token_scale(row, size, fixed):
    """absmax / 127 (1 where all is zero, never denormal) or the fixed scale; and whether the row cannot be quantized.

    The bits of a float without its sign grow with its size, and those of NaN are largest: the comparison is of integers, which
    vectors do, where the maximum of floats would ask about NaN one by one.
    """
    largest, reach = np.int32(0), room_f32(1)
    for k in range(size):
        largest = max(largest, np.int32(as_i32(row)[k] & np.int32(0x7FFFFFFF)))
    if fixed > 0:
        return fixed, largest > INFINITY
    if largest >= INFINITY:
        return np.float32(1), True
    as_i32(reach)[0] = largest
    scale = np.float32(reach[0] / np.float32(127))
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
def lay_float_tiles(team, threads, chunk, rows, x, laid):
    """`lay_float_tiles_rows` by a team of threads."""
    fork_join(lay_float_tiles_rows, (x, laid), rows, chunk, threads, team)


@njit(nogil=True, cache=True)
def find_outliers(team, threads, chunk, rows, x, limit, found):
    """`find_outliers_rows` by a team of threads: whoever writes, writes 1."""
    fork_join(find_outliers_rows, (x, limit, found), rows, chunk, threads, team)


@njit(nogil=True, cache=True)
def quantize_tiles(team, threads, chunk, rows, x, keep, fixed, groups, scales, laid, sums):
    """`quantize_tiles_rows` by a team of threads."""
    fork_join(quantize_tiles_rows, (x, keep, fixed, groups, scales, laid, sums), rows, chunk, threads, team)
