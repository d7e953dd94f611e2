"""y = x ŵᵀ with codes of 2 to 8 bits and float activations: the codes are read once and never written back as floats.

One token, or up to four (`gemv`). The time is that of reading the codes, if what is done with each is little enough. Sixteen
codes take three instructions of AVX-512, a shift, a look-up and a multiply-add, of which further tokens need only the last:

    total[l] += s_l  sum_j  table[code_lj] x'[j, l]         for each block of 16 lanes l (`qkit_kernels.numba.streams`)
    y = sum_l total[l] + sum_g c_g sum_{k in g} x_k          the shifts c, of zero points, once a group

The table holds 0 .. 15 less 8, or NF4's numbers: a codebook costs no more than integers. (AVX2 and Arm have no such look-up:
integers are multiplied where they lie, `vector.dots_in_place`, a codebook's numbers found byte by byte, `vector.dots_by_bytes`.)
Scales come in after each block, a lane its own, so that any group that is whole lanes will do.

What is read next is asked for early (`AHEAD`): the processor looks a few hundred instructions ahead by itself, and a kernel
that does two dozen with each 64 bytes has too few of them on their way. Of a page of memory the first read waits longest, and all
behind it: a line of each is asked for two pages before (`open_pages`).

Many tokens (`gemm`). Arithmetic is what takes the time, so the codes of some rows become floats once for 256 tokens, a stretch
of features at a time that stays in the cache (`qkit_kernels.numba.tiles`).
"""

from functools import cache

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic, overload

from qkit_kernels.numba.grid import load_row
from qkit_kernels.numba.streams import UNIT, add_bias, floats_at, lay_floats, masked_by
from qkit_kernels.numba.threads import deal_out, fork_join
from qkit_kernels.numba.tiles import FLOATS, PANEL_ROWS, add_products, next_panel, piece, tile_height, write_out
from qkit_kernels.numba.vector import (
    BYTES,
    CODES_AT_ONCE,
    LANES,
    dots_by_bytes,
    dots_in_place,
    f32_at,
    fma,
    fma_each,
    has,
    known,
    load_bytes,
    load_codes,
    load_each,
    load_f32,
    load_i32,
    load_lanes,
    looks_bytes_up,
    lookup,
    lookup_low,
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
    store_sums,
    table_of,
    to_f32,
    value,
    widen,
    zeros_each,
    zeros_f32,
)

INLINE = {"forceinline": True}
AHEAD = 4096  # bytes: more than a core must have on their way, and far less than its cache holds
PAGE = 4096  # bytes: of the smallest that any system has


@njit(nogil=True, cache=True)
def gemv_rows(x, sums, packed, grid, table, block_group, lane_group, bits, together, y, first, last):
    """A few tokens.

    Args:
        x: float32 [blocks, unit, n, 16], or one more than unit for codes that are `masked`, laid by `streams.lay_floats`.
        sums: float32 [ceil(groups / 16), n, 16], the sum of each group of x, zeros behind.
        packed: uint8 [rows, bytes].
        grid: see `qkit_kernels.numba.grid`.
        table: float32 [16] or None.
        block_group: int32 [blocks], the group of a block's first lane.
        lane_group: int32 [blocks, 16], the group of each lane counted from its block's; [0, 16] where all are 0.
        bits: Static(b).
        together: Static(n), how many tokens.
        y: float32 [n, rows], is filled.
        first, last: which rows.
    """
    blocks, groups, row_bytes, end, outputs = x.shape[0], grid[0].shape[1], packed.shape[1], packed.size, y.shape[1]
    block_bytes, reach = 2 * codes_in_lane(bits) * value(bits), reach_of(lane_group)
    middle, less = np.float32(2 ** (value(bits) - 1)), splat(np.float32(2.0 ** -masked_by(value(bits))))
    s, c, tail = room_f32(groups + LANES), room_f32(groups + LANES), room_u8(2 * BYTES)
    x, sums, packed, y, table = pointer(x), pointer(sums), pointer(packed), pointer(y), pointer(table)
    lanes = (s, pointer(block_group), pointer(lane_group), reach)
    grid, sizes = pointers(grid), (grid[0].shape[0], grid[1].size, grid[2].size)
    for row in range(first, last):
        open_pages(packed, row * row_bytes, row_bytes)
        shifted = load_row(grid, sizes, row, groups, 0, groups, bits, middle, s, c)
        start, totals = row * row_bytes, zeros_each(zeros_f32(), together)
        readable = max(0, min(blocks, min(row_bytes, end - start - 3) // block_bytes))
        totals = add_blocks(packed, start, 0, readable, x, lanes, totals, table, bits, together)
        for block in range(readable, blocks):  # the last, or the last two
            at = start + block * block_bytes
            copy_tail(packed, at, min(block_bytes, start + row_bytes - at), tail)
            totals = add_blocks(tail, -block * block_bytes, block, block + 1, x, lanes, totals, table, bits, together)
        if masked_bits(table, bits):
            totals = fma_each(less, totals, zeros_each(zeros_f32(), together))
        if shifted:
            for g in range(0, groups, LANES):
                totals = fma_each(load_f32(c, g), load_each(sums, g * value(together), together, zeros_f32()), totals)
        store_sums(y, row, outputs, totals)


@njit(forceinline=True)
def open_pages(packed, start, row_bytes):
    """Ask for one line of each page that lies two pages behind a row that begins at `start`.

    So the page's place in memory is looked up, and the processor's own guessing begins there, before all reads wait for it.
    """
    for at in range(0, row_bytes, PAGE):
        prefetch(packed, start + at + 2 * PAGE)


@njit(forceinline=True)
def add_blocks(packed, start, first, last, x, lanes, totals, table, bits, together):
    """totals + the products of the blocks first .. last - 1 of a row that begins at `start`, each times its lanes' scales."""
    size, step = 2 * codes_in_lane(bits) * value(bits), LANES * places_of(table, bits) * value(together)
    for block in range(first, last):
        prefetch(packed, start + block * size + AHEAD)
        dots = block_dots(packed, start + block * size, x, block * step, table, bits, together)
        totals = fma_each(lane_scales(lanes, block), dots, totals)
    return totals


@intrinsic
def codes_in_lane(_context, bits):
    """UNIT[b]."""
    return known(types.intp, UNIT[bits.count], bits)


@cache
def masked(bits: int, plain: bool) -> int:
    """The bits of codes that are multiplied where they are, without a table (`vector.dots_in_place`); 0: they are not.

    AVX-512 looks 2 and 4 bits up in a register, in one instruction. Of 8 bits the middle, 128, would round small weights away.

    Args:
        plain: the codes stand for themselves, not for the numbers of a codebook.
    """
    return bits if plain and (bits == 3 or (bits < 5 and not has("avx512f"))) else 0


@intrinsic
def places_of(_context, table, bits):
    """Vectors of x a block and token: one a code of a lane, and one more for codes that are masked."""
    places = UNIT[bits.count] + (1 if masked(bits.count, table is types.none) else 0)
    return known(types.intp, places, table, bits)


@intrinsic
def masked_bits(_context, table, bits):
    """`masked`, for kernels."""
    return known(types.intp, masked(bits.count, table is types.none), table, bits)


def block_dots(packed, at, x, first, table, bits, together):
    """sum_j table[code_lj] x'[j, l] of one block, lane by lane; table None: the codes themselves, less 2^(b - 1)."""
    raise NotImplementedError("block_dots is for kernels")


@overload(block_dots, jit_options=INLINE)
def _block_dots(packed, at, x, first, table, bits, together):
    unit, step = UNIT[bits.count], bits.count
    if table is not types.none and step == 4 and looks_bytes_up():

        def dots(packed, at, x, first, table, bits, together):
            return dots_by_bytes(load_i32(packed, at), table_of(table, bits), x, first, together)

        return dots

    if table is not types.none or (step in (2, 4) and has("avx512f")):

        def dots(packed, at, x, first, table, bits, together):
            numbers, totals, apart = table_of(table, bits), zeros_each(zeros_f32(), together), LANES * value(together)
            for byte in range(4):  # a load from one byte on shifts all lanes by 8, and costs no shift
                codes = load_i32(packed, at + byte)
                for j in range(unit // 4):
                    xs = load_each(x, first + apart * (unit // 4 * byte + j), together, zeros_f32())
                    totals = fma_each(lookup(numbers, codes >> step * j), xs, totals)
            return totals

        return dots

    if masked(step, table is types.none):

        def dots(packed, at, x, first, table, bits, together):
            return dots_in_place(load_lanes(packed, at, bits), x, first, together, bits)

        return dots

    def dots(packed, at, x, first, table, bits, together):
        codes, totals, apart = (
            signed(load_codes(packed, at, bits), bits),
            zeros_each(zeros_f32(), together),
            value(together),
        )
        for j in range(unit):
            xs = load_each(x, first + LANES * apart * j, together, zeros_f32())
            totals = fma_each(to_f32(nth_signed(codes, j, bits)), xs, totals)
        return totals

    return dots


@njit
def reach_of(lane_group):
    """How many groups any block has to do with, at most: 1 where groups are whole blocks, else 8 or 16."""
    reach = 1 if lane_group.size == 0 else 8
    for group in lane_group.flat:
        reach = reach if group < 8 else 16
    return reach


@njit(forceinline=True)
def lane_scales(lanes, block):
    """The scale of each lane of a block: one for all where groups are whole blocks, else each lane looks its own up."""
    s, block_group, lane_group, reach = lanes
    first = block_group[block]
    if reach == 1:
        return splat(s[first])
    if reach == 8:
        return lookup_low(load_f32(s, first), load_i32(lane_group, LANES * block))
    return lookup(load_f32(s, first), load_i32(lane_group, LANES * block))


@njit
def copy_tail(packed, at, count, tail):
    """The last bytes of a row, to where a whole block and 3 bytes behind it can be read."""
    for i in range(count):
        tail[i] = packed[at + i]


@njit(nogil=True, cache=True)
def gemv(team, threads, chunk, rows, x, sums, packed, grid, table, block_group, lane_group, bits, together, y):
    """`gemv_rows` by a team of threads."""
    args = (x, sums, packed, grid, table, block_group, lane_group, bits, together, y)
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
    packed,
    grid,
    table,
    block_group,
    lane_group,
    bits,
    together,
):
    """x ŵᵀ + bias in one call: to lay out the inputs of a small layer takes Python longer than the layer.

    Args:
        x: address of [tokens, features], contiguous; tokens are at most n.
        dtype: of x, see `streams.floats_at`.
        bias: address of float32 [rows]; 0: none.
        y: address of float32 [n, rows], is filled.
        team, threads, chunk: see `threads.team_of`.
        packed .. together: as for `gemv_rows`.
    """
    rows, n = packed.shape[0], value(together)
    blocks, places, groups = block_group.size, places_of(table, bits), grid[0].shape[1]
    sixteens = (groups + LANES - 1) // LANES
    laid = carray(room_f32(blocks * places * n * LANES), (blocks, places, n, LANES))
    sums = carray(room_f32(sixteens * n * LANES), (sixteens, n, LANES))
    given = floats_at(x, dtype, tokens, features, room_f32(0 if dtype == 0 else tokens * features))
    lay_floats(given, groups, laid, sums, masked_bits(table, bits))
    args = (laid, sums, packed, grid, table, block_group, lane_group, bits, together, carray(f32_at(y), (n, rows)))
    deal_out(gemv_rows, args, rows, chunk, threads, team)
    add_bias(y, bias, tokens, rows)


# ---- many tokens


@njit(nogil=True, cache=True)
def gemm_rows(x, packed, grid, table, bits, vectors, share, y, first, last):
    """Many tokens.

    Args:
        x: float32 [tiles, features, lanes], laid by `streams.lay_float_tiles`.
        packed, grid, table, bits: as for `gemv_rows`.
        vectors: Static(n), of tokens in a tile.
        share: (tokens of a block, rows of a band), see `tiles.shares`.
        y: float32 [tokens, rows], is filled.
        first, last: which pieces.
    """
    (tokens, outputs), (_, features, lanes), (room, height) = y.shape, x.shape, share
    groups, row_bytes, end = grid[0].shape[1], packed.shape[1], packed.size
    size, middle = features // groups, middle_of(table, bits)
    panel, sums, tail = room_f32(PANEL_ROWS * FLOATS), room_f32(height * room), room_u8(2 * BYTES)
    s, c = room_f32(FLOATS + 2), room_f32(FLOATS + 2)
    x, packed, y, table = pointer(x), pointer(packed), pointer(y), pointer(table)
    grid, sizes = pointers(grid), (grid[0].shape[0], grid[1].size, grid[2].size)
    for number in range(first, last):
        token, meeting, band, rows = piece(number, share, tokens, outputs)
        for i in range(height * room):
            sums[i] = np.float32(0)
        for start in range(0, features, FLOATS):
            length = min(FLOATS, features - start)
            g0, g1 = start // size, (start + length - 1) // size + 1
            for i in range(0, rows, PANEL_ROWS):
                here = min(PANEL_ROWS, rows - i)
                ahead = next_panel(i, rows, start, start + length, features, row_bytes, value(bits))
                for r in range(here):
                    row = band + i + r
                    bytes_of_row = (row * row_bytes, (row + 1) * row_bytes, end, ahead)
                    load_row(grid, sizes, row, groups, g0, g1, bits, middle, s, c)
                    unpack(
                        packed, bytes_of_row, start, length, size, s, c, offset(panel, r * FLOATS), tail, table, bits
                    )
                for t in range(0, meeting, lanes):
                    at = (token + t) * features + start * lanes
                    for r in range(0, here, tile_height()):
                        of_rows, to = offset(panel, r * FLOATS), (i + r) * room + t
                        add_products(of_rows, FLOATS, length, x, at, vectors, sums, to, room)
        write_out(sums, room, rows, meeting, y, token * outputs + band, outputs)


def unpack(packed, place, start, length, size, s, c, panel, tail, table, bits):
    """s v + c of the features start .. start + length - 1, where v is a code, or what the table has for it.

    Args:
        packed: pointer to all bytes.
        place: where those of the row begin and end, where all of them end, and how far away is what will be unpacked next.
        size: of a group; the first of s and c, pointers to float32, are those of the group of `start`.
        panel: pointer to float32, is filled up to the next multiple of 64.
        tail: pointer to two vectors of scratch memory.
    """
    raise NotImplementedError("unpack is for kernels")


@overload(unpack, jit_options=INLINE)
def _unpack(packed, place, start, length, size, s, c, panel, tail, table, bits):
    def floats(packed, place, start, length, size, s, c, panel, tail, table, bits):
        (at, stop, end, ahead), block = place, 8 * value(bits)  # bytes of 64 codes
        whole, group, scale, shift = size % CODES_AT_ONCE == 0, 0, splat(np.float32(1)), zeros_f32()
        until = size - start % size if whole else length  # where the next group begins
        if whole:
            scale, shift = splat(s[0]), splat(c[0])
        for k in range(0, length, CODES_AT_ONCE):
            if k == until:
                group, until = group + 1, until + size
                scale, shift = splat(s[group]), splat(c[group])
            source, first = packed, at + (start + k) // CODES_AT_ONCE * block
            prefetch(packed, first + ahead)
            if first + block > end:
                copy_tail(packed, first, stop - first, tail)
                source, first = tail, 0
            store_floats(load_bytes(source, first, bits), panel, k, scale, shift, table, bits)
        if not whole:
            scale_groups(panel, start, length, size, s, c)

    return floats


def store_floats(codes, panel, k, scale, shift, table, bits):
    """64 numbers scale v + shift to panel[k ..]."""
    raise NotImplementedError("store_floats is for kernels")


@overload(store_floats, jit_options=INLINE)
def _store_floats(codes, panel, k, scale, shift, table, bits):
    def store(codes, panel, k, scale, shift, table, bits):
        first, second, third, fourth = widen(codes)
        store_f32(panel, k, fma(number_of(first, table, bits), scale, shift))
        store_f32(panel, k + LANES, fma(number_of(second, table, bits), scale, shift))
        store_f32(panel, k + 2 * LANES, fma(number_of(third, table, bits), scale, shift))
        store_f32(panel, k + 3 * LANES, fma(number_of(fourth, table, bits), scale, shift))

    return store


def number_of(codes, table, bits):
    """What sixteen codes stand for before they are scaled: themselves, or entries of the table."""
    raise NotImplementedError("number_of is for kernels")


@overload(number_of, jit_options=INLINE)
def _number_of(codes, table, bits):
    if table is not types.none:
        return lambda codes, table, bits: lookup(table_of(table, bits), codes)
    return lambda codes, table, bits: to_f32(codes)


@intrinsic
def middle_of(_context, table, bits):
    """What `load_row` is to take for the middle, so that c is the shift of whole codes; a table has none."""
    return known(types.float32, 0 if table is types.none else 2 ** (bits.count - 1), table, bits)


@njit
def scale_groups(panel, start, length, size, s, c):
    """panel[k] = s panel[k] + c, groups of any size."""
    first = start // size
    for g in range(first, (start + length - 1) // size + 1):
        scale, shift = s[g - first], c[g - first]
        for k in range(max(g * size, start) - start, min((g + 1) * size, start + length) - start):
            panel[k] = panel[k] * scale + shift


@njit(nogil=True, cache=True)
def gemm(team, threads, chunk, pieces, x, packed, grid, table, bits, vectors, share, y):
    """`gemm_rows` by a team of threads."""
    fork_join(gemm_rows, (x, packed, grid, table, bits, vectors, share, y), pieces, chunk, threads, team)
