"""y = x ŵᵀ with INT8 activations: codes times codes, 64 at a time, summed in int32.

    y[t, o] = s_x[t] ( sum_g s[o, g] sum_{k in g} q[o, k] x[t, k]  +  sum_g c[o, g] sum_{k in g} x[t, k] )

The inner sum is exact. `dot4` takes unsigned codes of weights as they are stored and signed codes of activations, so that what a
zero point does comes in with the sums of the activations, once a group. Where a row has one scale and no zero point (W8A8,
LLM.int8) everything up to the last line is whole numbers: y = s_x s (sum q x - 2^(b-1) sum x), and equal to the last bit to
whatever else computes it.

LLM.int8 in one pass: outlier columns of x are zeros among the codes, and are multiplied as floats with the codes of the row that
has just been read.

The shape of `gemv` and `gemm` is that of `qkit_kernels.weight_only`.
"""

import numpy as np
from numba import njit
from numba.extending import overload

from qkit_kernels.grid import load_row
from qkit_kernels.streams import UNIT
from qkit_kernels.threads import fork_join
from qkit_kernels.vector import (
    BYTES,
    LANES,
    accumulate,
    as_i32,
    dot4,
    dot4_each,
    fma,
    fma_each,
    load_codes,
    load_each,
    load_f32,
    load_i32,
    nth_bytes,
    offset,
    pointer,
    pointers,
    room_f32,
    room_u8,
    scale_each,
    store_i32,
    sum_f32,
    sum_i32,
    to_f32,
    value,
    zeros_f32,
    zeros_i32,
)
from qkit_kernels.weight_only import (
    INLINE,
    PANEL_BYTES,
    PANEL_ROWS,
    ROWS,
    TOKENS,
    copy_tail,
    lane_scales,
    panel_place,
)


@njit(nogil=True, cache=True)
def gemv_rows(x, x_scales, sums, outliers, packed, grid, block_group, lane_group, bits, y, first, last):
    """One token.

    Args:
        x: int8 [1, blocks, unit / 4, 1, 64], laid by `streams.quantize`.
        x_scales: float32 [1].
        sums: float32 [1, groups and zeros up to a multiple of 16], the sum of each group of x.
        outliers: (columns int64 [n], float32 [n, 1]): columns that are zeros in x, and what they really hold; 8 bits only.
        packed: uint8 [rows, bytes].
        grid: see `qkit_kernels.grid`.
        block_group: int32 [blocks], the group of a block's first lane.
        lane_group: int32 [blocks, 16], the group of each lane counted from its block's; [0, 16] where all are 0.
        bits: Static(b).
        y: float32 [1, rows], is filled.
        first, last: which rows.
    """
    blocks, streams, groups, row_bytes, end = x.shape[1], x.shape[2], grid[0].shape[1], packed.shape[1], packed.size
    block_bytes, uniform = 8 * streams * value(bits), lane_group.size == 0
    one_scale = groups == 1 and grid[1].size == 0 and grid[2].size == 0
    s, c, tail = room_f32(groups + LANES), room_f32(groups + LANES), room_u8(2 * BYTES)
    columns, count, floats = pointer(outliers[0]), outliers[0].size, pointer(outliers[1])
    x, x_scale, x_sum = pointer(x), x_scales[0], np.int32(sums[0, 0])
    sums, packed, y = pointer(sums), pointer(packed), pointer(y)
    block_group, lane_group = pointer(block_group), pointer(lane_group)
    grid, sizes = pointers(grid), (grid[0].shape[0], grid[1].size, grid[2].size)
    for row in range(first, last):
        shifted = load_row(grid, sizes, row, groups, bits, np.float32(0), s, c)
        start, exact, total = row * row_bytes, zeros_i32(), zeros_f32()
        readable = (min(row_bytes, end - start - 3)) // block_bytes
        for block in range(blocks):
            source, at = packed, start + block * block_bytes
            if block >= readable:
                source, at = copy_tail(packed, at, min(block_bytes, start + row_bytes - at), tail)
            if one_scale:
                exact = add_block(source, at, x, block * BYTES * streams, exact, bits)
            else:
                dot = to_f32(add_block(source, at, x, block * BYTES * streams, zeros_i32(), bits))
                total = fma(dot, lane_scales(s, block, block_group, lane_group, uniform), total)
        if one_scale:
            y[row] = whole_product(sum_i32(exact), x_sum, x_scale, s[0], value(bits))
            for i in range(count):
                y[row] += floats[i] * (np.float32(packed[start + columns[i]]) - np.float32(128)) * s[0]
        else:
            if shifted:
                for g in range(0, groups, LANES):
                    total = fma(load_f32(c, g), load_f32(sums, g), total)
            y[row] = sum_f32(total) * x_scale


def add_block(packed, at, x, first, total, bits):
    """total + the products of one block, four neighbours in a lane."""
    raise NotImplementedError("add_block is for kernels")


@overload(add_block, jit_options=INLINE)
def _add_block(packed, at, x, first, total, bits):
    streams = UNIT[bits.value] // 4

    def add(packed, at, x, first, total, bits):
        codes = load_codes(packed, at, bits)
        for j in range(streams):
            total = dot4(total, nth_bytes(codes, j, bits), load_i32(x, first + BYTES * j))
        return total

    return add


@njit(forceinline=True)
def whole_product(total, x_sum, x_scale, w_scale, bits):
    """s_x s_w (sum q x - 2^(b-1) sum x): the whole number exactly, then two roundings. int32 wraps, and wraps back."""
    exact = np.int32(total - np.int32(2 ** (bits - 1)) * x_sum)
    return np.float32(exact) * x_scale * w_scale


@njit(nogil=True, cache=True)
def gemv(team, threads, chunk, rows, x, x_scales, sums, outliers, packed, grid, block_group, lane_group, bits, y):
    """`gemv_rows` by a team of threads."""
    args = (x, x_scales, sums, outliers, packed, grid, block_group, lane_group, bits, y)
    fork_join(gemv_rows, args, rows, chunk, threads, team)


# ---- many tokens


@njit(nogil=True, cache=True)
def gemm_rows(x, x_scales, sums, outliers, packed, grid, block_group, lane_group, bits, y, first, last):
    """Many tokens. Arguments as for `gemv_rows`, with x int8 [tokens / 4, blocks, unit / 4, 4, 64], y float32 [tokens, rows]."""
    tokens, blocks, streams, outputs, end = y.shape[0], x.shape[1], x.shape[2], y.shape[1], packed.size
    row_bytes, groups, pad, room = packed.shape[1], grid[0].shape[1], sums.shape[1], grid[0].shape[1] + LANES
    vector_step = BYTES * streams
    panel_blocks = PANEL_BYTES // vector_step
    stride, width, taken = vector_step * blocks, vector_step * panel_blocks, min(TOKENS, tokens)
    block_bytes, uniform = 8 * streams * value(bits), lane_group.size == 0
    one_scale = groups == 1 and grid[1].size == 0 and grid[2].size == 0
    s, c, tail = room_f32(PANEL_ROWS * room), room_f32(PANEL_ROWS * room), room_u8(2 * BYTES)
    panel, products = room_u8(PANEL_ROWS * width), room_f32(PANEL_ROWS * taken)
    exact = as_i32(products)  # the same memory, where sums are whole numbers
    columns, count, floats = pointer(outliers[0]), outliers[0].size, pointer(outliers[1])
    floats_sum = room_f32(PANEL_ROWS * taken)  # of the outliers
    x, x_scales, sums, packed, y = pointer(x), pointer(x_scales), pointer(sums), pointer(packed), pointer(y)
    block_group, lane_group = pointer(block_group), pointer(lane_group)
    grid, sizes = pointers(grid), (grid[0].shape[0], grid[1].size, grid[2].size)
    for token in range(0, tokens, TOKENS):
        meeting = min(tokens - token, TOKENS)
        for row in range(first, last, PANEL_ROWS):
            rows, shifted = min(PANEL_ROWS, last - row), False
            for i in range(rows):
                mine, my_shift = offset(s, i * room), offset(c, i * room)
                shifted = load_row(grid, sizes, row + i, groups, bits, np.float32(0), mine, my_shift)
            for i in range(PANEL_ROWS * taken):
                exact[i] = np.int32(0)
            for first_block in range(0, blocks, panel_blocks):
                last_block = min(blocks, first_block + panel_blocks)
                for i in range(rows):
                    start = (row + i) * row_bytes
                    readable = (min(row_bytes, end - start - 3)) // block_bytes
                    for block in range(first_block, last_block):
                        source, at = packed, start + block * block_bytes
                        if block >= readable:
                            source, at = copy_tail(packed, at, min(block_bytes, start + row_bytes - at), tail)
                        store_block(
                            source, at, panel, panel_place(i, (block - first_block) * streams, width, BYTES), bits
                        )
                at = token * stride + first_block * ROWS * vector_step
                if one_scale:
                    length = (last_block - first_block) * vector_step
                    for i in range(0, rows, ROWS):
                        mine = offset(exact, i * taken)
                        add_whole(offset(panel, i * width), length, x, at, stride, meeting, mine, taken)
                    continue
                for i in range(0, rows, 2):  # two rows at a time share the loads of four tokens
                    w_at, s0, s1 = panel_place(i, 0, width, BYTES), offset(s, i * room), offset(s, (i + 1) * room)
                    for t in range(0, meeting, 4):
                        totals0 = totals1 = (zeros_f32(), zeros_f32(), zeros_f32(), zeros_f32())
                        for block in range(first_block, last_block):
                            k = (block - first_block) * ROWS * vector_step
                            dots0, dots1 = block_products(panel, w_at + k, x, at + t * stride + k, bits)
                            scales0 = lane_scales(s0, block, block_group, lane_group, uniform)
                            scales1 = lane_scales(s1, block, block_group, lane_group, uniform)
                            totals0, totals1 = scale_each(dots0, scales0, totals0), scale_each(dots1, scales1, totals1)
                        if shifted and last_block == blocks:
                            for g in range(0, groups, LANES):
                                of_groups = load_each(sums, (token + t) * pad + g, pad, zeros_f32())
                                totals0 = fma_each(load_f32(c, i * room + g), of_groups, totals0)
                                totals1 = fma_each(load_f32(c, (i + 1) * room + g), of_groups, totals1)
                        accumulate(products, i * taken + t, totals0)
                        accumulate(products, (i + 1) * taken + t, totals1)
            if count:
                for i in range(PANEL_ROWS * taken):
                    floats_sum[i] = np.float32(0)
            for i in range(rows):
                for n in range(count):
                    code = packed[(row + i) * row_bytes + columns[n]]
                    w = (np.float32(code) - np.float32(128)) * s[i * room]
                    for t in range(meeting):
                        floats_sum[i * taken + t] += floats[n * tokens + token + t] * w
            for t in range(meeting):
                to, x_scale = (token + t) * outputs + row, x_scales[token + t]
                if one_scale:
                    x_sum = np.int32(sums[(token + t) * pad])
                    for i in range(rows):
                        whole = whole_product(exact[i * taken + t], x_sum, x_scale, s[i * room], value(bits))
                        y[to + i] = whole + floats_sum[i * taken + t]
                else:
                    for i in range(rows):
                        y[to + i] = products[i * taken + t] * x_scale


def store_block(packed, at, panel, to, bits):
    """The codes of a block to bytes, in the order of the streams."""
    raise NotImplementedError("store_block is for kernels")


@overload(store_block, jit_options=INLINE)
def _store_block(packed, at, panel, to, bits):
    streams = UNIT[bits.value] // 4

    def store(packed, at, panel, to, bits):
        codes = load_codes(packed, at, bits)
        for j in range(streams):
            store_i32(panel, to + ROWS * BYTES * j, nth_bytes(codes, j, bits))

    return store


def block_products(w, at, x, first, bits):
    """One block of two rows times the same block of four tokens: twice four vectors of whole numbers."""
    raise NotImplementedError("block_products is for kernels")


@overload(block_products, jit_options=INLINE)
def _block_products(w, at, x, first, bits):
    streams = UNIT[bits.value] // 4

    def products(w, at, x, first, bits):
        zero = zeros_i32()
        dots0 = dots1 = (zero, zero, zero, zero)
        for j in range(streams):
            step = ROWS * BYTES * j
            xs = load_each(x, first + step, BYTES, zero)
            dots0 = dot4_each(load_i32(w, at + step), xs, dots0)
            dots1 = dot4_each(load_i32(w, at + BYTES + step), xs, dots1)
        return dots0, dots1

    return products


@njit(forceinline=True)
def add_whole(w, length, x, first, stride, count, sums, room):
    """sums[i, t] += w[i] x[t] for four rows and all tokens, four at a time: whole numbers."""
    zero = zeros_i32()
    for t in range(0, count, 4):
        totals0 = totals1 = totals2 = totals3 = (zero, zero, zero, zero)
        at = first + t * stride
        for k in range(0, ROWS * length, ROWS * BYTES):
            xs = load_each(x, at + k, BYTES, zero)
            totals0 = dot4_each(load_i32(w, k), xs, totals0)
            totals1 = dot4_each(load_i32(w, k + BYTES), xs, totals1)
            totals2 = dot4_each(load_i32(w, k + 2 * BYTES), xs, totals2)
            totals3 = dot4_each(load_i32(w, k + 3 * BYTES), xs, totals3)
        accumulate(sums, t, totals0)
        accumulate(sums, room + t, totals1)
        accumulate(sums, 2 * room + t, totals2)
        accumulate(sums, 3 * room + t, totals3)


@njit(nogil=True, cache=True)
def gemm(team, threads, chunk, rows, x, x_scales, sums, outliers, packed, grid, block_group, lane_group, bits, y):
    """`gemm_rows` by a team of threads."""
    args = (x, x_scales, sums, outliers, packed, grid, block_group, lane_group, bits, y)
    fork_join(gemm_rows, args, rows, chunk, threads, team)
