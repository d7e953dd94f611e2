"""y = x ŵᵀ with INT8 activations: codes times codes, 64 at a time, summed in int32.

    y[t, o] = s_x[t] ( sum_g s[o, g] sum_{k in g} q[o, k] x[t, k]  +  sum_g c[o, g] sum_{k in g} x[t, k] )

The inner sum is exact. `dot4` takes unsigned codes of weights as they are stored and signed codes of activations, so that what a
zero point does comes in with the sums of the activations, once a group. Where a row has one scale and no zero point (W8A8,
LLM.int8) everything up to the last line is whole numbers: y = s_x s (sum q x - 2^(b-1) sum x), and equal to the last bit to
whatever else computes it. AVX2 without VNNI takes 128 off codes of 8 bits first, q - 128 = w, and multiplies |w| by x with the
sign of w, so that two products fit into 16 bits (`vector.dot4_signed_each`, `vector.add_outer_signed`).

LLM.int8 in one pass: outlier columns of x are zeros among the codes, and are multiplied as floats with the codes of the rows that
have just been read.

The shape of `gemv` is that of `qkit_kernels.numba.weight_only`, that of `gemm` stands in `qkit_kernels.numba.tiles`. Where there
is AMX, `qkit_kernels.numba.amx` makes the same sums of many tokens.
"""

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic, overload

from qkit_kernels.numba.grid import load_row
from qkit_kernels.numba.streams import UNIT, add_bias, floats_at, mark_outliers, quantize
from qkit_kernels.numba.threads import deal_out, fork_join
from qkit_kernels.numba.tiles import (
    CODES,
    FLOATS,
    ONE,
    PANEL_ROWS,
    SIGNS,
    add_products,
    dots,
    next_panel,
    piece,
    signs_apart,
    tile_height,
    write_out,
)
from qkit_kernels.numba.vector import (
    BYTES,
    CODES_AT_ONCE,
    LANES,
    Static,
    add_each,
    add_numbers_each,
    add_scaled_each,
    as_i32,
    as_i64,
    ask,
    dot4_each,
    dot4_signed_each,
    f32_at,
    fma_each,
    known,
    load_bytes,
    load_codes,
    load_each,
    load_f32,
    load_i32,
    magnitudes,
    nth_bytes,
    offset,
    pointer,
    pointers,
    prefetch,
    room_f32,
    room_i8,
    room_u8,
    scale_each,
    signs_of,
    splat,
    store_f32,
    store_i32,
    store_sums,
    sum_i32,
    to_f32,
    value,
    zeros_each,
    zeros_f32,
    zeros_i32,
)
from qkit_kernels.numba.weight_only import AHEAD, INLINE, codes_in_lane, copy_tail, lane_scales, open_pages, reach_of

SEVEN = Static(7)  # bits, or so little more that two products with -1 fit into 16
GROUPS = CODES // 4 + 1  # that may have to do with a stretch: fours at the least, and one that began before


@njit(nogil=True, cache=True)
def gemv_rows(x, x_scales, sums, outliers, packed, grid, block_group, lane_group, bits, together, y, first, last):
    """A few tokens.

    Args:
        x: int8 [blocks, unit / 4, n, 64], laid by `streams.quantize`.
        x_scales: float32 [n].
        sums: float32 [ceil(groups / 16), n, 16], the sum of each group of x, zeros behind.
        outliers: (columns int64 [m], float32 [1, m, n]): columns that are zeros in x, and what they really hold; 8 bits only.
        packed: uint8 [rows, bytes].
        grid: see `qkit_kernels.numba.grid`.
        block_group: int32 [blocks], the group of a block's first lane.
        lane_group: int32 [blocks, 16], the group of each lane counted from its block's; [0, 16] where all are 0.
        bits: Static(b).
        together: Static(n), how many tokens.
        y: float32 [n, rows], is filled.
        first, last: which rows.
    """
    blocks, groups, row_bytes, end, outputs = x.shape[0], grid[0].shape[1], packed.shape[1], packed.size, y.shape[1]
    block_bytes, reach, tokens = 2 * codes_in_lane(bits) * value(bits), reach_of(lane_group), value(together)
    one_scale, taken = groups == 1 and grid[1].size == 0 and grid[2].size == 0, taken_off(bits)
    s, c, tail, found = room_f32(groups + LANES), room_f32(groups + LANES), room_u8(2 * BYTES), room_f32(tokens)
    whole, middle = as_i32(found), 2 ** (value(bits) - 1) - taken  # the same memory, where sums are whole numbers
    columns, count, floats = pointer(outliers[0]), outliers[0].size, pointer(outliers[1])
    x, x_scales, sums, packed, y = pointer(x), pointer(x_scales), pointer(sums), pointer(packed), pointer(y)
    lanes = (s, pointer(block_group), pointer(lane_group), reach)
    grid, sizes = pointers(grid), (grid[0].shape[0], grid[1].size, grid[2].size)
    for row in range(first, last):
        open_pages(packed, row * row_bytes, row_bytes)
        shifted = load_row(grid, sizes, row, groups, 0, groups, bits, np.float32(taken), s, c)
        start, exact, totals = row * row_bytes, zeros_each(zeros_i32(), together), zeros_each(zeros_f32(), together)
        readable = max(0, min(blocks, min(row_bytes, end - start - 3) // block_bytes))
        if one_scale:
            exact = add_blocks(packed, start, 0, readable, x, exact, bits, together)
        else:
            totals = add_scaled_blocks(packed, start, 0, readable, x, lanes, totals, bits, together)
        for block in range(readable, blocks):  # the last, or the last two
            at = start + block * block_bytes
            copy_tail(packed, at, min(block_bytes, start + row_bytes - at), tail)
            if one_scale:
                exact = add_blocks(tail, -block * block_bytes, block, block + 1, x, exact, bits, together)
                continue
            totals = add_scaled_blocks(tail, -block * block_bytes, block, block + 1, x, lanes, totals, bits, together)
        if one_scale:
            store_sums(whole, 0, 1, exact)
            for t in range(tokens):
                product = whole_product(whole[t], np.int32(sums[t * LANES]), x_scales[t], s[0], middle)
                for i in range(count):
                    w = (np.float32(packed[start + columns[i]]) - np.float32(128)) * s[0]
                    product += floats[i * tokens + t] * w
                y[t * outputs + row] = product
        else:
            if shifted:
                for g in range(0, groups, LANES):
                    totals = fma_each(load_f32(c, g), load_each(sums, g * tokens, together, zeros_f32()), totals)
            store_sums(found, 0, 1, totals)
            for t in range(tokens):
                y[t * outputs + row] = found[t] * x_scales[t]


def add_block(packed, at, x, first, totals, bits, together):
    """totals + the products of one block, four neighbours in a lane."""
    raise NotImplementedError("add_block is for kernels")


@overload(add_block, jit_options=INLINE)
def _add_block(packed, at, x, first, totals, bits, together):
    streams = UNIT[bits.count] // 4

    def add_signed(packed, at, x, first, totals, bits, together):
        return dot4_signed_each(load_codes(packed, at, bits), load_each(x, first, together, zeros_i32()), totals)

    if signs_apart(bits.count):
        return add_signed

    def add(packed, at, x, first, totals, bits, together):
        codes = load_codes(packed, at, bits)
        for j in range(streams):
            xs = load_each(x, first + BYTES * value(together) * j, together, zeros_i32())
            totals = dot4_each(nth_bytes(codes, j, bits), xs, totals, bits)
        return totals

    return add


@njit(forceinline=True)
def add_blocks(packed, start, first, last, x, totals, bits, together):
    """totals + the products of the blocks first .. last - 1 of a row that begins at `start`, whole numbers."""
    step, size = BYTES * (codes_in_lane(bits) // 4) * value(together), 2 * codes_in_lane(bits) * value(bits)
    for block in range(first, last):
        ask(packed, start + block * size + AHEAD)
        totals = add_block(packed, start + block * size, x, block * step, totals, bits, together)
    return totals


@njit(forceinline=True)
def add_scaled_blocks(packed, start, first, last, x, lanes, totals, bits, together):
    """The same, each block times its lanes' scales, float32."""
    step, size = BYTES * (codes_in_lane(bits) // 4) * value(together), 2 * codes_in_lane(bits) * value(bits)
    for block in range(first, last):
        ask(packed, start + block * size + AHEAD)
        zeros = zeros_each(zeros_i32(), together)
        dots = add_block(packed, start + block * size, x, block * step, zeros, bits, together)
        totals = scale_each(lane_scales(lanes, block), dots, totals)
    return totals


@njit(forceinline=True)
def whole_product(total, x_sum, x_scale, w_scale, middle):
    """s_x s_w (total - middle sum x): the whole number exactly, then two roundings. int32 wraps, and wraps back."""
    exact = np.int32(total - np.int32(middle) * x_sum)
    return np.float32(exact) * x_scale * w_scale


@njit(nogil=True, cache=True)
def gemv(
    team, threads, chunk, rows, x, x_scales, sums, outliers, packed, grid, block_group, lane_group, bits, together, y
):
    """`gemv_rows` by a team of threads."""
    args = (x, x_scales, sums, outliers, packed, grid, block_group, lane_group, bits, together, y)
    fork_join(gemv_rows, args, rows, chunk, threads, team)


@njit(nogil=True, cache=True)
def layer(
    x,
    dtype,
    tokens,
    features,
    bias,
    y,
    team,
    threads,
    chunk,
    fixed,
    limit,
    packed,
    grid,
    block_group,
    lane_group,
    bits,
    together,
):
    """x ŵᵀ + bias with INT8 activations in one call, see `weight_only.layer`.

    Args:
        fixed: the scale of all activations, or 0.
        limit: columns with any |x| of at least this stay floats; below 0: none. 8 bits and one scale a row only.
    """
    rows, n = packed.shape[0], value(together)
    blocks, fours, groups = block_group.size, codes_in_lane(bits) // 4, grid[0].shape[1]
    sixteens = (groups + LANES - 1) // LANES
    laid = carray(room_i8(blocks * fours * n * BYTES), (blocks, fours, n, BYTES))
    sums = carray(room_f32(sixteens * n * LANES), (sixteens, n, LANES))
    scales = carray(room_f32(n), (n,))
    given = floats_at(x, dtype, tokens, features, room_f32(0 if dtype == 0 else tokens * features))
    searched = features if limit >= 0 else 0
    keep, columns, count = room_u8(searched), as_i64(room_u8(8 * searched)), 0
    if searched:
        for t in range(tokens):
            mark_outliers(offset(pointer(given), t * features), features, np.float32(limit), keep)
        for k in range(features):
            if keep[k]:
                columns[count] = k
                count += 1
            keep[k] = 1 - keep[k]
    floats = room_f32(count * n)
    for i in range(count):
        for t in range(tokens):
            floats[i * n + t] = given[t, columns[i]]
    outliers = carray(columns, (count,)), carray(floats, (1, count, n))
    quantize(given, carray(keep, (features if count else 0,)), np.float32(fixed), groups, scales, laid, sums)
    places = carray(f32_at(y), (n, rows))
    args = (laid, scales, sums, outliers, packed, grid, block_group, lane_group, bits, together, places)
    deal_out(gemv_rows, args, rows, chunk, threads, team)
    add_bias(y, bias, tokens, rows)


# ---- many tokens


@njit(nogil=True, cache=True)
def gemm_rows(x, x_scales, x_sums, outliers, packed, grid, bits, vectors, share, y, first, last):
    """Many tokens.

    Args:
        x: int8 [tiles, features / 4 rounded up, lanes, 4], laid by `streams.quantize_tiles`.
        x_scales: float32 [tiles * lanes].
        x_sums: float32 [tiles, groups, lanes], the sum of each group of x.
        outliers: (columns int64 [n], float32 [tiles, n, lanes]), as for `gemv_rows`.
        packed, grid, bits: as for `gemv_rows`.
        vectors: Static(n), of tokens in a tile.
        share: (tokens of a block, rows of a band), see `tiles.shares`.
        y: float32 [tokens, rows], is filled.
        first, last: which pieces.
    """
    (tokens, outputs), width, lanes, (room, height) = y.shape, 4 * x.shape[1], x.shape[2], share
    groups, row_bytes, end = grid[0].shape[1], packed.shape[1], packed.size
    one_scale, size = groups == 1 and grid[1].size == 0 and grid[2].size == 0, max(1, width // groups)
    taken = taken_off(bits)
    panel, tail = room_u8(2 * SIGNS if taken else SIGNS), room_u8(2 * BYTES)
    missing = as_i32(room_f32(PANEL_ROWS * GROUPS if taken else 0))  # from sums of groups, where signs are apart
    s, c = room_f32(PANEL_ROWS * GROUPS), room_f32(PANEL_ROWS * GROUPS)  # of the groups of a stretch
    columns, count, floats = pointer(outliers[0]), outliers[0].size, pointer(outliers[1])
    sums, row_scales = room_f32(height * room), room_f32(height)
    exact = as_i32(sums)  # the same memory, where a row has one scale and sums are whole numbers
    starts = as_i32(room_f32(room))  # what they begin with, zeros otherwise
    wild = room_f32(height * room if count else 0)  # the outliers' share
    x, x_scales, x_sums, packed, y = pointer(x), pointer(x_scales), pointer(x_sums), pointer(packed), pointer(y)
    grid, sizes = pointers(grid), (grid[0].shape[0], grid[1].size, grid[2].size)
    for number in range(first, last):
        token, meeting, band, rows = piece(number, share, tokens, outputs)
        laid = (meeting + lanes - 1) // lanes * lanes
        if one_scale:
            whole_starts(x_sums, token, laid, 2 ** (value(bits) - 1) - taken, starts)
        for i in range(height):
            for t in range(0, laid, LANES):
                store_i32(exact, i * room + t, load_i32(starts, t))
        for start in range(0, width, CODES):
            stop = min(start + CODES, width)
            g0, g1 = start // size, (stop - 1) // size + 1
            new = g0 if g0 * size == start else g0 + 1  # the first group that begins in this stretch
            for i in range(0, rows, PANEL_ROWS):
                here, shifted = min(PANEL_ROWS, rows - i), False
                ahead = next_panel(i, rows, start, stop, width, row_bytes, value(bits))
                for r in range(here):
                    row, of_groups = band + i + r, r * GROUPS
                    scales, shifts = offset(s, of_groups), offset(c, of_groups)
                    shifted = load_row(grid, sizes, row, groups, g0, g1, bits, np.float32(taken), scales, shifts)
                    row_scales[i + r] = scales[0]
                    bytes_of_row = (row * row_bytes, (row + 1) * row_bytes, end, ahead)
                    codes = offset(panel, r * CODES)
                    unpack(packed, bytes_of_row, start, stop, codes, tail, bits)
                    if taken:
                        for g in range(g0, g1):
                            k, after = max(g * size, start) - start, min((g + 1) * size, stop) - start
                            missing[r * GROUPS + g - g0] = sum_of_negatives(codes, k, after)
                for t in range(0, meeting, lanes):
                    of_x = offset(x, (token + t) * width + start * lanes)
                    for r in range(0, here, tile_height()):
                        of_rows, to = offset(panel, r * CODES), (i + r) * room + t
                        if one_scale:
                            found = dots(of_rows, CODES, 0, stop - start, of_x, vectors, bits)
                            if taken:
                                found = add_numbers_each(found, missing, r * GROUPS, GROUPS)
                            add_each(exact, to, room, found)
                            continue
                        for g in range(g0, g1):
                            k, after = max(g * size, start) - start, min((g + 1) * size, stop) - start
                            found = dots(of_rows, CODES, k, after, of_x, vectors, bits)
                            if taken:
                                found = add_numbers_each(found, missing, r * GROUPS + g - g0, GROUPS)
                            add_scaled_each(sums, to, room, found, s, r * GROUPS + g - g0, GROUPS)
                        if shifted:
                            shifts, of_sums = offset(c, r * GROUPS + new - g0), ((token + t) * groups) + new * lanes
                            add_products(shifts, GROUPS, g1 - new, x_sums, of_sums, vectors, sums, to, room)
        if count:
            codes = (packed, row_bytes, band, columns, count)
            add_outliers(codes, row_scales, rows, floats, token, meeting, lanes, vectors, wild, room)
        finish(sums, exact, one_scale, wild, count, row_scales, x_scales, token, laid, rows, room)
        write_out(sums, room, rows, meeting, y, token * outputs + band, outputs)


def unpack(packed, place, start, stop, panel, tail, bits):
    """The codes of the features start .. stop - 1, one to a byte; `place` and `tail` as for `weight_only.unpack`."""
    raise NotImplementedError("unpack is for kernels")


@overload(unpack, jit_options=INLINE)
def _unpack(packed, place, start, stop, panel, tail, bits):
    def codes(packed, place, start, stop, panel, tail, bits):
        (at, end_of_row, end, ahead), size = place, 8 * value(bits)  # bytes of 64 codes
        for k in range(start, stop, CODES_AT_ONCE):
            source, first = packed, at + k // CODES_AT_ONCE * size
            prefetch(packed, first + ahead)
            if first + size > end:
                copy_tail(packed, first, end_of_row - first, tail)
                source, first = tail, 0
            found = load_bytes(source, first, bits)
            if taken_off(bits):
                store_i32(panel, k - start, magnitudes(found))
                store_i32(panel, SIGNS + k - start, signs_of(found))
            else:
                store_i32(panel, k - start, found)

    return codes


@intrinsic
def taken_off(_context, bits):
    """What the numbers of a panel are less than the codes, where their signs are apart; else 0."""
    taken = 2 ** (bits.count - 1) if signs_apart(bits.count) else 0
    return known(types.intp, taken, bits)


@njit
def sum_of_negatives(codes, first, last):
    """The magnitudes of those below 0, of codes first .. last - 1 of a panel: the signs of these are bytes of -1."""
    totals, whole = zeros_each(zeros_i32(), ONE), first + (last - first) // BYTES * BYTES
    for k in range(first, whole, BYTES):
        totals = dot4_each(load_i32(codes, k), load_each(codes, SIGNS + k, ONE, zeros_i32()), totals, SEVEN)
    total = np.int32(-sum_i32(totals[0]))
    for k in range(whole, last):
        total = np.int32(total + np.int32(codes[k] & codes[SIGNS + k]))
    return total


@njit
def whole_starts(x_sums, token, laid, middle, starts):
    """-middle sum x: what codes without a sign count too much, whole numbers. int32 wraps around, and wraps back."""
    for t in range(laid):
        starts[t] = np.int32(np.int32(-middle) * np.int32(x_sums[token + t]))


@njit
def add_outliers(codes, scales, rows, x, token, meeting, lanes, vectors, wild, room):
    """wild[i, t] = sum_n w[i, column n] x[n, t] in float32; columns are whole bytes."""
    packed, row_bytes, band, columns, count = codes
    panel = room_f32(PANEL_ROWS * FLOATS)
    for i in range(rows * room):
        wild[i] = np.float32(0)
    for n in range(0, count, FLOATS):
        length = min(FLOATS, count - n)
        for i in range(0, rows, PANEL_ROWS):
            here = min(PANEL_ROWS, rows - i)
            for r in range(here):
                for k in range(length):
                    code = np.float32(packed[(band + i + r) * row_bytes + columns[n + k]])
                    panel[r * FLOATS + k] = (code - np.float32(128)) * scales[i + r]
            for t in range(0, meeting, lanes):
                at = (token + t) * count + n * lanes
                for r in range(0, here, tile_height()):
                    of_rows, to = offset(panel, r * FLOATS), (i + r) * room + t
                    add_products(of_rows, FLOATS, length, x, at, vectors, wild, to, room)


@njit
def finish(sums, exact, one_scale, wild, count, scales, x_scales, token, laid, rows, room):
    """What has been summed up, times the scales: s_x s_w sum + wild, or s_x sum."""
    for i in range(rows):
        scale = splat(scales[i])
        for t in range(0, laid, LANES):
            at, x_scale = i * room + t, load_f32(x_scales, token + t)
            if one_scale:
                found = to_f32(load_i32(exact, at)) * x_scale * scale
                store_f32(sums, at, found + load_f32(wild, at) if count else found)
            else:
                store_f32(sums, at, load_f32(sums, at) * x_scale)


@njit(nogil=True, cache=True)
def gemm(team, threads, chunk, pieces, x, x_scales, x_sums, outliers, packed, grid, bits, vectors, share, y):
    """`gemm_rows` by a team of threads."""
    args = (x, x_scales, x_sums, outliers, packed, grid, bits, vectors, share, y)
    fork_join(gemm_rows, args, pieces, chunk, threads, team)
