"""y = x ŵᵀ with codes of 2 to 8 bits and float activations: the codes are read once and never written back as floats.

One token (`gemv`). The time is that of reading the codes, if what is done with each is little enough. Sixteen codes take
three instructions, a shift, a look-up and a multiply-add:

    total[l] += s_l  sum_j  table[code_lj] x'[j, l]         for each block of 16 lanes l (`qkit_kernels.streams`)
    y = sum_l total[l] + sum_g c_g sum_{k in g} x_k          the shifts c, of zero points, once a group

The table holds 0 .. 15 less 8, or NF4's numbers: a codebook costs no more than integers. Scales come in after each block, a
lane its own, so that any group that is whole lanes will do.

What is read next is asked for early (`AHEAD`): the processor looks a hundred or two instructions ahead by itself, and a kernel
that does a dozen with each 64 bytes has too few of them on their way.

Many tokens (`gemm`). Arithmetic is what takes the time, so the codes of some rows become floats once for 128 tokens, a stretch
of features at a time that stays in the cache (`qkit_kernels.tiles`).
"""

import numpy as np
from numba import njit, types
from numba.extending import overload

from qkit_kernels.grid import load_row
from qkit_kernels.streams import UNIT
from qkit_kernels.threads import fork_join
from qkit_kernels.tiles import BAND_ROWS, FLOATS, PANEL_ROWS, TOKENS, add_products, write_out
from qkit_kernels.vector import (
    BYTES,
    LANES,
    fma,
    has,
    load_bytes,
    load_codes,
    load_f32,
    load_i32,
    lookup,
    nth_signed,
    offset,
    pointer,
    pointers,
    prefetch,
    room_f32,
    room_u8,
    signed,
    splat,
    store_f32,
    sum_f32,
    table_of,
    tile_rows,
    to_f32,
    value,
    widen,
    zeros_f32,
)

INLINE = {"forceinline": True}
AHEAD = 4096  # bytes: 0.1 microseconds of a core's share of the memory


@njit(nogil=True, cache=True)
def gemv_rows(x, sums, packed, grid, table, block_group, lane_group, bits, y, first, last):
    """One token.

    Args:
        x: float32 [blocks, unit, 16], laid by `streams.lay_floats`.
        sums: float32 [groups and zeros up to a multiple of 16], the sum of each group of x.
        packed: uint8 [rows, bytes].
        grid: see `qkit_kernels.grid`.
        table: float32 [16] or None.
        block_group: int32 [blocks], the group of a block's first lane.
        lane_group: int32 [blocks, 16], the group of each lane counted from its block's; [0, 16] where all are 0.
        bits: Static(b).
        y: float32 [1, rows], is filled.
        first, last: which rows.
    """
    blocks, unit, groups, row_bytes, end = x.shape[0], x.shape[1], grid[0].shape[1], packed.shape[1], packed.size
    block_bytes, uniform, middle = (
        LANES * unit * value(bits) // 8,
        lane_group.size == 0,
        np.float32(2 ** (value(bits) - 1)),
    )
    s, c, tail = room_f32(groups + LANES), room_f32(groups + LANES), room_u8(2 * BYTES)
    x, sums, packed, y, table = pointer(x), pointer(sums), pointer(packed), pointer(y), pointer(table)
    block_group, lane_group = pointer(block_group), pointer(lane_group)
    grid, sizes = pointers(grid), (grid[0].shape[0], grid[1].size, grid[2].size)
    for row in range(first, last):
        shifted = load_row(grid, sizes, row, groups, 0, groups, bits, middle, s, c)
        start, total = row * row_bytes, zeros_f32()
        readable = (min(row_bytes, end - start - 3)) // block_bytes
        for block in range(blocks):
            source, at = packed, start + block * block_bytes
            prefetch(packed, at + AHEAD)
            if block >= readable:
                source, at = copy_tail(packed, at, min(block_bytes, start + row_bytes - at), tail)
            dot = block_dot(source, at, x, block * LANES * unit, table, bits)
            total = fma(dot, lane_scales(s, block, block_group, lane_group, uniform), total)
        if shifted:
            for g in range(0, groups, LANES):
                total = fma(load_f32(c, g), load_f32(sums, g), total)
        y[row] = sum_f32(total)


def block_dot(packed, at, x, first, table, bits):
    """sum_j table[code_lj] x'[j, l] of one block, lane by lane; table None: the codes themselves, less 2^(b - 1)."""
    raise NotImplementedError("block_dot is for kernels")


@overload(block_dot, jit_options=INLINE)
def _block_dot(packed, at, x, first, table, bits):
    unit, step = UNIT[bits.value], bits.value
    if table is not types.none or (step in (2, 4) and has("avx512f")):

        def dot(packed, at, x, first, table, bits):
            numbers, even, odd = table_of(table, bits), zeros_f32(), zeros_f32()
            for byte in range(4):  # a load from one byte on shifts all lanes by 8, and costs no shift
                codes = load_i32(packed, at + byte)
                for j in range(0, unit // 4, 2):  # two sums, so that half as many additions wait for one another
                    place = first + LANES * (unit // 4 * byte + j)
                    even = fma(lookup(numbers, codes >> step * j), load_f32(x, place), even)
                    odd = fma(lookup(numbers, codes >> step * (j + 1)), load_f32(x, place + LANES), odd)
            return even + odd

        return dot

    def dot(packed, at, x, first, table, bits):
        codes, total = signed(load_codes(packed, at, bits), bits), zeros_f32()
        for j in range(unit):
            total = fma(to_f32(nth_signed(codes, j, bits)), load_f32(x, first + LANES * j), total)
        return total

    return dot


@njit(forceinline=True)
def lane_scales(s, block, block_group, lane_group, uniform):
    """The scale of each lane of a block: one for all where groups are whole blocks, else each lane looks its own up."""
    first = block_group[block]
    return splat(s[first]) if uniform else lookup(load_f32(s, first), load_i32(lane_group, LANES * block))


@njit
def copy_tail(packed, at, count, tail):
    """The last bytes of a row, to where a whole block and 3 bytes behind it can be read; returns the new place."""
    for i in range(count):
        tail[i] = packed[at + i]
    return tail, 0


@njit(nogil=True, cache=True)
def gemv(team, threads, chunk, rows, x, sums, packed, grid, table, block_group, lane_group, bits, y):
    """`gemv_rows` by a team of threads."""
    args = (x, sums, packed, grid, table, block_group, lane_group, bits, y)
    fork_join(gemv_rows, args, rows, chunk, threads, team)


# ---- many tokens


@njit(nogil=True, cache=True)
def gemm_rows(x, packed, grid, table, bits, vectors, y, first, last):
    """Many tokens.

    Args:
        x: float32 [tiles, features, lanes], laid by `streams.lay_float_tiles`.
        packed, grid, table, bits: as for `gemv_rows`.
        vectors: Static(n), of tokens in a tile.
        y: float32 [tokens, rows], is filled.
        first, last: which rows.
    """
    (tokens, outputs), tiles, features, lanes = y.shape, x.shape[0], x.shape[1], x.shape[2]
    groups, row_bytes, end, room = grid[0].shape[1], packed.shape[1], packed.size, min(TOKENS, tiles * lanes)
    panel, sums = room_f32(PANEL_ROWS * FLOATS), room_f32(BAND_ROWS * room)
    middle = middle_of(table, bits)
    s, c, tail = room_f32(FLOATS + 2), room_f32(FLOATS + 2), room_u8(2 * BYTES)
    x, packed, y, table = pointer(x), pointer(packed), pointer(y), pointer(table)
    grid, sizes = pointers(grid), (grid[0].shape[0], grid[1].size, grid[2].size)
    for token in range(0, tokens, TOKENS):
        meeting = min(tokens - token, TOKENS)
        for band in range(first, last, BAND_ROWS):
            rows = min(BAND_ROWS, last - band)
            for i in range(BAND_ROWS * room):
                sums[i] = np.float32(0)
            for start in range(0, features, FLOATS):
                length = min(FLOATS, features - start)
                for i in range(0, rows, PANEL_ROWS):
                    for r in range(min(PANEL_ROWS, rows - i)):
                        row = band + i + r
                        to = offset(panel, r * FLOATS)
                        unpack(
                            packed, row * row_bytes, (row + 1) * row_bytes, end, start, length, to, tail, table, bits
                        )
                        scale_row(grid, sizes, row, groups, features // groups, start, length, to, s, c, bits, middle)
                    for t in range(0, meeting, lanes):
                        at = (token + t) * features + start * lanes
                        for r in range(0, min(PANEL_ROWS, rows - i), tile_height(vectors)):
                            mine = offset(panel, r * FLOATS)
                            add_products(mine, FLOATS, length, x, at, vectors, sums, (i + r) * room + t, room)
            write_out(sums, room, rows, meeting, y, token * outputs + band, outputs)


def tile_height(vectors):
    """Rows of a tile."""
    raise NotImplementedError("tile_height is for kernels")


@overload(tile_height, jit_options=INLINE)
def _tile_height(vectors):
    rows = tile_rows()
    return lambda vectors: rows


def unpack(packed, at, stop, end, start, length, panel, tail, table, bits):
    """The codes of features start .. start + length - 1 as floats: entries of the table, or the codes themselves.

    Args:
        packed: pointer to all bytes, `end` of them; the row's are at .. stop - 1.
        panel: pointer to float32, is filled up to the next multiple of 64.
    """
    raise NotImplementedError("unpack is for kernels")


@overload(unpack, jit_options=INLINE)
def _unpack(packed, at, stop, end, start, length, panel, tail, table, bits):
    def floats(packed, at, stop, end, start, length, panel, tail, table, bits):
        size = 8 * value(bits)  # bytes of 64 codes
        for k in range(0, length, BYTES):
            source, place = packed, at + (start + k) // 64 * size
            prefetch(packed, place + FLOATS * value(bits) // 8)  # the stretch after this
            if place + size > end:
                source, place = copy_tail(packed, place, stop - place, tail)
            store_floats(load_bytes(source, place, bits), panel, k, table, bits)

    return floats


def store_floats(codes, panel, k, table, bits):
    """64 codes as floats to panel[k ..]."""
    raise NotImplementedError("store_floats is for kernels")


@overload(store_floats, jit_options=INLINE)
def _store_floats(codes, panel, k, table, bits):
    if table is not types.none:

        def store(codes, panel, k, table, bits):
            numbers, (a, b, c, d) = table_of(table, bits), widen(codes)
            store_f32(panel, k, lookup(numbers, a))
            store_f32(panel, k + LANES, lookup(numbers, b))
            store_f32(panel, k + 2 * LANES, lookup(numbers, c))
            store_f32(panel, k + 3 * LANES, lookup(numbers, d))

        return store

    def store(codes, panel, k, table, bits):
        a, b, c, d = widen(codes)
        store_f32(panel, k, to_f32(a))
        store_f32(panel, k + LANES, to_f32(b))
        store_f32(panel, k + 2 * LANES, to_f32(c))
        store_f32(panel, k + 3 * LANES, to_f32(d))

    return store


def middle_of(table, bits):
    """What is taken off codes before they are scaled: 2^(b - 1); off the numbers of a table, nothing."""
    raise NotImplementedError("middle_of is for kernels")


@overload(middle_of, jit_options=INLINE)
def _middle_of(table, bits):
    middle = np.float32(0 if table is not types.none else 2 ** (bits.value - 1))
    return lambda table, bits: middle


@njit
def scale_row(grid, sizes, row, groups, size, start, length, panel, s, c, bits, middle):
    """panel[k] = s (panel[k] - middle) + c, each group its own."""
    first, last = start // size, (start + length - 1) // size
    load_row(grid, sizes, row, groups, first, last + 1, bits, np.float32(2 ** (value(bits) - 1)), s, c)
    for g in range(first, last + 1):
        scale, shift = s[g - first], c[g - first]
        for k in range(max(g * size, start) - start, min((g + 1) * size, start + length) - start):
            panel[k] = (panel[k] - middle) * scale + shift


@njit(nogil=True, cache=True)
def gemm(team, threads, chunk, rows, x, packed, grid, table, bits, vectors, y):
    """`gemm_rows` by a team of threads."""
    fork_join(gemm_rows, (x, packed, grid, table, bits, vectors, y), rows, chunk, threads, team)
