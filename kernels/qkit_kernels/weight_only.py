"""y = x ŵᵀ with codes of 2 to 8 bits and float activations: the codes are read once and never written back as floats.

One token (`gemv`). The time is that of reading the codes, if what is done with each is little enough. Sixteen codes take
three instructions, a shift, a look-up and a multiply-add:

    total[l] += s_l  sum_j  table[code_lj] x'[j, l]         for each block of 16 lanes l (`qkit_kernels.streams`)
    y = sum_l total[l] + sum_g c_g sum_{k in g} x_k          the shifts c, of zero points, once a group

The table holds 0 .. 15 less 8, or NF4's numbers: a codebook costs no more than integers. Scales come in after each block, a
lane its own, so that any group that is whole lanes will do.

Many tokens (`gemm`). Arithmetic is what takes the time, so the codes of 16 rows become floats once for 128 tokens, a stretch
of features at a time that stays in the cache; four rows then meet four tokens: eight loads for sixteen multiply-adds.
"""

import numpy as np
from numba import njit, types
from numba.extending import overload

from qkit_kernels.grid import load_row
from qkit_kernels.streams import UNIT
from qkit_kernels.threads import fork_join
from qkit_kernels.vector import (
    BYTES,
    LANES,
    accumulate,
    fma,
    fma_each,
    has,
    load_codes,
    load_each,
    load_f32,
    load_i32,
    lookup,
    nth_signed,
    offset,
    pointer,
    pointers,
    room_f32,
    room_u8,
    signed,
    splat,
    store_f32,
    sum_f32,
    table_of,
    to_f32,
    value,
    zeros_f32,
)

INLINE = {"forceinline": True}
ROWS = 4  # of the weight, that meet four tokens: 16 sums, in half of AVX-512's registers
PANEL_ROWS, PANEL_BYTES = 16, 2048  # what is made of codes at a time; four rows are a quarter of a first-level cache
TOKENS = 128  # that meet a panel before it is dropped; theirs is a quarter of a second-level cache


@njit(nogil=True, cache=True)
def gemv_rows(x, sums, packed, grid, table, block_group, lane_group, bits, y, first, last):
    """One token.

    Args:
        x: float32 [1, blocks, unit, 1, 16], laid by `streams.lay_floats`.
        sums: float32 [1, groups and zeros up to a multiple of 16], the sum of each group of x.
        packed: uint8 [rows, bytes].
        grid: see `qkit_kernels.grid`.
        table: float32 [16] or None.
        block_group: int32 [blocks], the group of a block's first lane.
        lane_group: int32 [blocks, 16], the group of each lane counted from its block's; [0, 16] where all are 0.
        bits: Static(b).
        y: float32 [1, rows], is filled.
        first, last: which rows.
    """
    blocks, unit, groups, row_bytes, end = x.shape[1], x.shape[2], grid[0].shape[1], packed.shape[1], packed.size
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
        shifted = load_row(grid, sizes, row, groups, bits, middle, s, c)
        start, total = row * row_bytes, zeros_f32()
        readable = (min(row_bytes, end - start - 3)) // block_bytes
        for block in range(blocks):
            source, at = packed, start + block * block_bytes
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
def gemm_rows(x, packed, grid, table, block_group, lane_group, bits, y, first, last):
    """Many tokens. Arguments as for `gemv_rows`, with x float32 [tokens / 4, blocks, unit, 4, 16], y float32 [tokens, rows]."""
    tokens, blocks, unit, outputs, end = y.shape[0], x.shape[1], x.shape[2], y.shape[1], packed.size
    row_bytes, groups, vector_step = packed.shape[1], grid[0].shape[1], LANES * unit
    panel_blocks = PANEL_BYTES // (4 * vector_step)
    stride, width, room = vector_step * blocks, vector_step * panel_blocks, min(TOKENS, tokens)
    block_bytes, uniform, middle = (
        vector_step * value(bits) // 8,
        lane_group.size == 0,
        np.float32(2 ** (value(bits) - 1)),
    )
    of_row, tail = groups + LANES, room_u8(2 * BYTES)
    s, c = room_f32(PANEL_ROWS * of_row), room_f32(PANEL_ROWS * of_row)
    panel, sums = room_f32(PANEL_ROWS * width), room_f32(PANEL_ROWS * room)
    x, packed, y, table = pointer(x), pointer(packed), pointer(y), pointer(table)
    block_group, lane_group = pointer(block_group), pointer(lane_group)
    grid, sizes = pointers(grid), (grid[0].shape[0], grid[1].size, grid[2].size)
    for token in range(0, tokens, TOKENS):
        count = min(tokens - token, TOKENS)
        for row in range(first, last, PANEL_ROWS):
            rows = min(PANEL_ROWS, last - row)
            for i in range(PANEL_ROWS * room):
                sums[i] = np.float32(0)
            for i in range(rows):
                load_row(grid, sizes, row + i, groups, bits, middle, offset(s, i * of_row), offset(c, i * of_row))
            for first_block in range(0, blocks, panel_blocks):
                last_block = min(blocks, first_block + panel_blocks)
                for i in range(rows):
                    mine, my_shift = offset(s, i * of_row), offset(c, i * of_row)
                    start = (row + i) * row_bytes
                    readable = (min(row_bytes, end - start - 3)) // block_bytes
                    for block in range(first_block, last_block):
                        source, at = packed, start + block * block_bytes
                        if block >= readable:
                            source, at = copy_tail(packed, at, min(block_bytes, start + row_bytes - at), tail)
                        scales = lane_scales(mine, block, block_group, lane_group, uniform)
                        shifts = lane_scales(my_shift, block, block_group, lane_group, uniform)
                        to = panel_place(i, (block - first_block) * unit, width, LANES)
                        store_values(source, at, scales, shifts, panel, to, table, bits)
                features = (last_block - first_block) * vector_step
                at = token * stride + first_block * ROWS * vector_step
                for i in range(0, rows, ROWS):
                    add_products(offset(panel, i * width), features, x, at, stride, count, offset(sums, i * room), room)
            for t in range(count):
                for i in range(rows):
                    y[(token + t) * outputs + row + i] = sums[i * room + t]


@njit(forceinline=True)
def panel_place(row, vector, width, lanes):
    """Where vector `vector` of a row stands in a panel: four rows lie together, a vector of each in turn."""
    return row // ROWS * ROWS * width + (vector * ROWS + row % ROWS) * lanes


@njit(forceinline=True)
def add_products(w, features, x, first, stride, count, sums, room):
    """sums[i, t] += w[i] x[t] for four rows and all tokens, four at a time."""
    zero = zeros_f32()
    for t in range(0, count, 4):
        totals0 = totals1 = totals2 = totals3 = (zero, zero, zero, zero)
        at = first + t * stride
        for k in range(0, ROWS * features, ROWS * LANES):
            xs = load_each(x, at + k, LANES, zero)
            totals0 = fma_each(load_f32(w, k), xs, totals0)
            totals1 = fma_each(load_f32(w, k + LANES), xs, totals1)
            totals2 = fma_each(load_f32(w, k + 2 * LANES), xs, totals2)
            totals3 = fma_each(load_f32(w, k + 3 * LANES), xs, totals3)
        accumulate(sums, t, totals0)
        accumulate(sums, room + t, totals1)
        accumulate(sums, 2 * room + t, totals2)
        accumulate(sums, 3 * room + t, totals3)


def store_values(packed, at, scales, shifts, panel, to, table, bits):
    """ŵ = s (q - middle) + c of one block to panel[to] and after it."""
    raise NotImplementedError("store_values is for kernels")


@overload(store_values, jit_options=INLINE)
def _store_values(packed, at, scales, shifts, panel, to, table, bits):
    unit, step = UNIT[bits.value], bits.value
    if table is not types.none or (step in (2, 4) and has("avx512f")):

        def values(packed, at, scales, shifts, panel, to, table, bits):
            codes, numbers = load_codes(packed, at, bits), table_of(table, bits)
            for j in range(unit):
                store_f32(panel, to + ROWS * LANES * j, fma(lookup(numbers, codes >> step * j), scales, shifts))

        return values

    def values(packed, at, scales, shifts, panel, to, table, bits):
        codes = signed(load_codes(packed, at, bits), bits)
        for j in range(unit):
            store_f32(panel, to + ROWS * LANES * j, fma(to_f32(nth_signed(codes, j, bits)), scales, shifts))

    return values


@njit(nogil=True, cache=True)
def gemm(team, threads, chunk, rows, x, packed, grid, table, block_group, lane_group, bits, y):
    """`gemm_rows` by a team of threads."""
    args = (x, packed, grid, table, block_group, lane_group, bits, y)
    fork_join(gemm_rows, args, rows, chunk, threads, team)
