"""y = x ŵᵀ for many tokens on Hopper (sm_90), in Gluon: `many` with the work of its warps shared out by hand.

    y[m, n] = r[n] sum_k x[m, k] ŵ[n, k]

What
    Three kinds of warps live in a program. A producer orders copies of x, of words and of their scales from memory to shared
    memory, STAGES blocks of 128 columns ahead. Two groups of four warps take 64 rows of the weight each, make floats of their
    codes in registers and hand them to the tensor cores: `wgmma` may read its left operand from registers.

Why
    Triton's own pipeline keeps all warps of a program in step with barriers: while they unpack, nobody multiplies. Here nobody
    waits but for what it needs.

How the order is kept
    A block's place in shared memory is `full` when its bytes have come, and `free` when both groups have multiplied by it. With
    TURNS the groups multiply one after the other: left alone they fall into step, unpack at the same time, and the tensor cores
    have nothing to do meanwhile. For few tokens the product is so short that to hand the turn over costs more than it saves.

What bounds it
    From 128 tokens on, what comes from the L2 cache: each tile of 128 rows reads all of x, 5.2 to 5.5 TB/s in all on an H100.
    cuBLAS has two programs share what one of them reads (multicast in a cluster), which Triton 3.6 cannot.

A program takes piece after piece (`pieces`), so that the first blocks of the next are on their way while the sums of the last are
written.
"""

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from qkit_kernels.triton.pieces import piece, slot, stretch, tile_of
from qkit_kernels.triton.words import quarter, table_bytes, table_pairs, values

WARPS = 4  # of a group, which has 64 rows of the weight
REGISTERS = 168  # a thread, before the groups take those that the producer gives back: 65536 among 384, in eights
copy_in = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared  # its name up to Triton 3.7


@gluon.constexpr_function
def words_layout(bits):
    """Who holds which word of int32 [8 (row of eight), 32 bits]: lane 4 g + t those of rows 2 g and 2 g + 1.

    wgmma wants rows g and g + 8 of a lane; which rows of the weight they are is free. Neighbours here are neighbours in y.
    """
    return gl.DistributedLinearLayout(
        reg_bases=[*([0, 1 << b] for b in range({4: 2, 2: 1, 1: 0}[bits])), [0, 4 * bits]],
        lane_bases=[[0, bits], [0, 2 * bits], [0, 8 * bits], [0, 16 * bits], [1, 0]],
        warp_bases=[[2, 0], [4, 0]],
        block_bases=[],
        shape=[8, 32 * bits],
    )


@gluon.constexpr_function
def scales_layout():
    """The same of their scales, int32 [8, 8]: four lanes t share one."""
    return gl.DistributedLinearLayout(
        reg_bases=[[0, 1]],
        lane_bases=[[0, 0], [0, 0], [0, 2], [0, 4], [1, 0]],
        warp_bases=[[2, 0], [4, 0]],
        block_bases=[],
        shape=[8, 8],
    )


@gluon.constexpr_function
def quarter_layout():
    """Words of 32 columns, [8 (g), 4 (warp), 2 (row), 4 (t)]."""
    return gl.DistributedLinearLayout(
        reg_bases=[[0, 0, 1, 0]],
        lane_bases=[[0, 0, 0, 1], [0, 0, 0, 2], [1, 0, 0, 0], [2, 0, 0, 0], [4, 0, 0, 0]],
        warp_bases=[[0, 1, 0, 0], [0, 2, 0, 0]],
        block_bases=[],
        shape=[8, 4, 2, 4],
    )


@gluon.jit
def by_lane(v, WIDTH: gl.constexpr):
    """[8 (row of eight), 8 WIDTH] -> [8 (g), 4 (warp), 2 (row), WIDTH]: registers change names, nothing moves."""
    v = gl.reshape(v, (4, 2, 4, 2, WIDTH))
    return gl.reshape(gl.permute(v, (1, 2, 0, 3, 4)), (8, 4, 2, WIDTH))


@gluon.jit
def words_of(smem, group: gl.constexpr, B: gl.constexpr):
    """A group's words of one plane, [8, 4, 2, 4 B]."""
    return by_lane(smem.slice(8 * group, 8).load(words_layout(B)), 4 * B)


@gluon.jit
def scales_of(smem, group: gl.constexpr, i: gl.constexpr, S: gl.constexpr):
    """Scales of columns 32 i .. 32 i + 31, [8, 4, 2, 4]."""
    v = smem.slice(8 * group, 8)
    if S > 1:
        v = v.slice(i * S // 4 * 8, 8, dim=1)
    v = gl.convert_layout(by_lane(v.load(scales_layout()), 1), quarter_layout(), assert_trivial=True)
    return tl.broadcast_to(v, (8, 4, 2, 4))


@gluon.jit
def part(w, i: gl.constexpr, B: gl.constexpr):
    """`quarter`, under the name of its layout."""
    return gl.convert_layout(quarter(w, i, B), quarter_layout(), assert_trivial=True)


@gluon.jit
def weights(
    words0, words1, words2, grids, offs, group: gl.constexpr, fixed, fixed_off, low, high,
    A: gl.constexpr, B: gl.constexpr, C: gl.constexpr, S: gl.constexpr, SPAN: gl.constexpr, BIAS: gl.constexpr,
    OFFSET: gl.constexpr, TABLE: gl.constexpr, BF16: gl.constexpr, PTX: gl.constexpr, LEFT: gl.constexpr,
):  # fmt: skip
    """A group's 64 rows of one block as the left operand of wgmma, [64, 128] in 16 bits."""
    w0 = words_of(words0, group, A)
    w1, w2 = w0, w0
    if B:
        w1 = words_of(words1, group, B)
    if C:
        w2 = words_of(words2, group, C)
    quarters = ()
    for i in gl.static_range(4):
        grid, off = fixed, fixed_off
        if SPAN:
            grid = scales_of(grids, group, i, S)
            off = grid
            if OFFSET:
                off = scales_of(offs, group, i, S)
        w = values(
            part(w0, i, A), part(w1, i, B if B else A), part(w2, i, C if C else A), grid, off,
            low, high, A, B, C, BIAS, OFFSET, TABLE, BF16, PTX,
        )  # fmt: skip
        quarters = quarters + (w,)
    w = gl.join(gl.join(quarters[0], quarters[2]), gl.join(quarters[1], quarters[3]))  # g warp r t l u h i1 i0
    w = gl.reshape(gl.permute(w, (1, 2, 0, 7, 8, 6, 5, 3, 4)), (64, 128))  # warp r g, i h u t l
    return gl.convert_layout(w, LEFT, assert_trivial=True)


@gluon.jit
def produce(
    x_desc, more_desc, words0_desc, words1_desc, words2_desc, grid_desc, off_desc,
    xs, mores, words0, words1, words2, grids, offs, full, free,
    M, N, KB, tiles,
    BM: gl.constexpr, MORE: gl.constexpr, A: gl.constexpr, B: gl.constexpr, C: gl.constexpr, S: gl.constexpr,
    SPAN: gl.constexpr, OFFSET: gl.constexpr, STAGES: gl.constexpr, TOGETHER: gl.constexpr, SPLIT: gl.constexpr,
):  # fmt: skip
    """One warp: orders each block of each piece as soon as a place for it is free."""
    across, along = gl.cdiv(N, 128), gl.cdiv(M, BM + MORE)
    begin, end = stretch(gl.program_id(0), gl.num_programs(0), tiles, KB, SPLIT)
    step = 0
    for tile in range(begin // KB, gl.cdiv(end, KB)):
        n, m = tile_of(tile, across, along, TOGETHER)
        token = m * (BM + MORE)
        start, stop = piece(tile, begin, end, KB)
        for block in range(start, stop):
            stage = step % STAGES
            ready = full.index(stage)
            mbarrier.wait(free.index(stage), ((step // STAGES) & 1) ^ 1)
            mbarrier.expect(
                ready,
                x_desc.block_type.nbytes
                + (more_desc.block_type.nbytes if MORE else 0)
                + words0_desc.block_type.nbytes
                + (words1_desc.block_type.nbytes if B else 0)
                + (words2_desc.block_type.nbytes if C else 0)
                + (grid_desc.block_type.nbytes * (2 if OFFSET else 1) if SPAN else 0),
            )
            copy_in(words0_desc, [n * 16, block * (32 * A)], ready, words0.index(stage))
            if B:
                copy_in(words1_desc, [n * 16, block * (32 * B)], ready, words1.index(stage))
            if C:
                copy_in(words2_desc, [n * 16, block * (32 * C)], ready, words2.index(stage))
            if SPAN:
                at = block // SPAN * (8 * S)
                copy_in(grid_desc, [n * 16, at], ready, grids.index(stage))
                if OFFSET:
                    copy_in(off_desc, [n * 16, at], ready, offs.index(stage))
            gdc_wait()  # x was put in order by the kernel before, which may still run
            copy_in(x_desc, [token, block * 128], ready, xs.index(stage))
            if MORE:
                copy_in(more_desc, [token + BM, block * 128], ready, mores.index(stage))
            step += 1


@gluon.jit
def store(y, y_ptr, rows, tokens, stride_ym, T: gl.constexpr):
    """A group's sums [64, T], rows in the order of `words_layout`, to y [tokens, rows], of which those that there are."""
    y = gl.reshape(y.to(y_ptr.dtype.element_ty), (4, 2, 8, T))  # warp r g, and g r in memory
    y = gl.reshape(gl.permute(y, (0, 2, 1, 3)), (64, T))
    row = gl.arange(0, 64, gl.SliceLayout(1, y.type.layout))
    token = gl.arange(0, T, gl.SliceLayout(0, y.type.layout))
    live = (row < rows)[:, None] & (token < tokens)[None, :]
    gl.store(y_ptr + (token * stride_ym)[None, :] + row[:, None], y, mask=live)


@gluon.jit
def keep(
    acc, rows_ptr, y_ptr, part_ptr, row0, token0, M, N, stride_ym, partial,
    group: gl.constexpr, FIRST: gl.constexpr, T: gl.constexpr, SPLIT: gl.constexpr,
):  # fmt: skip
    """A group's sums [64, T] of rows row0 .. and tokens token0 .., to y [M, N] or, from token FIRST on, to the part of a tile."""
    row = gl.arange(0, 64, gl.SliceLayout(1, acc.type.layout))
    row = row0 + row // 16 * 16 + row % 8 * 2 + row // 8 % 2
    y = acc * gl.load(rows_ptr + row, mask=row < N, other=0.0)[:, None]
    if SPLIT and partial:
        store(y, part_ptr + FIRST * 128 + group * 64, 64, T, 128, T)
    else:
        store(y, y_ptr + token0.to(gl.int64) * stride_ym + row0, N - row0, M - token0, stride_ym, T)


@gluon.jit
def consume(
    xs, mores, words0, words1, words2, grids, offs, full, free, turns, grid_ptr, off_ptr, rows_ptr, table_ptr, pairs, y_ptr,
    parts_ptr, M, N, KB, tiles, stride_ym,
    group: gl.constexpr, BM: gl.constexpr, MORE: gl.constexpr,
    A: gl.constexpr, B: gl.constexpr, C: gl.constexpr, S: gl.constexpr, SPAN: gl.constexpr, BIAS: gl.constexpr,
    OFFSET: gl.constexpr, TABLE: gl.constexpr, BF16: gl.constexpr, PTX: gl.constexpr,
    STAGES: gl.constexpr, TOGETHER: gl.constexpr, TURNS: gl.constexpr, SPLIT: gl.constexpr, FILL: gl.constexpr,
):  # fmt: skip
    """Four warps: 64 rows of each piece."""
    sums: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BM, 16])
    left: gl.constexpr = gl.DotOperandLayout(0, sums, 2)
    more_sums: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, MORE if MORE else 8, 16])
    more_left: gl.constexpr = gl.DotOperandLayout(0, more_sums, 2)
    words: gl.constexpr = quarter_layout()
    g = gl.arange(0, 8, gl.SliceLayout(1, gl.SliceLayout(2, gl.SliceLayout(3, words))))[:, None, None, None]
    warp = gl.arange(0, 4, gl.SliceLayout(0, gl.SliceLayout(2, gl.SliceLayout(3, words))))[None, :, None, None]
    r = gl.arange(0, 2, gl.SliceLayout(0, gl.SliceLayout(1, gl.SliceLayout(3, words))))[None, None, :, None]
    t = gl.arange(0, 4, gl.SliceLayout(0, gl.SliceLayout(1, gl.SliceLayout(2, words))))[None, None, None, :]
    if FILL == "":
        low, high = table_bytes(table_ptr, g + 0 * (warp + r + t), TABLE)
    else:
        low, high = (pairs + 4 * (4 * g + t) + 0 * (warp + r),), ()
    row = warp * 16 + g * 2 + r + 0 * t
    across, along = gl.cdiv(N, 128), gl.cdiv(M, BM + MORE)
    begin, end = stretch(gl.program_id(0), gl.num_programs(0), tiles, KB, SPLIT)
    step = 0
    for tile in range(begin // KB, gl.cdiv(end, KB)):
        n, m = tile_of(tile, across, along, TOGETHER)
        start, stop = piece(tile, begin, end, KB)
        row0, token0 = n * 128 + group * 64, m * (BM + MORE)
        fixed, fixed_off = row, row
        if SPAN == 0:
            fixed = gl.load(grid_ptr + row0 + row)
            fixed_off = fixed
            if OFFSET:
                fixed_off = gl.load(off_ptr + row0 + row)
        acc = gl.zeros((64, BM), gl.float32, sums)
        more = acc
        if MORE:
            more = gl.zeros((64, MORE), gl.float32, more_sums)
        for _ in range(start, stop):
            stage = step % STAGES
            mbarrier.wait(full.index(stage), (step // STAGES) & 1)
            w = weights(
                words0.index(stage), words1.index(stage), words2.index(stage), grids.index(stage), offs.index(stage), group,
                fixed, fixed_off, low, high, A, B, C, S, SPAN, BIAS, OFFSET, TABLE, BF16, PTX, left,
            )  # fmt: skip
            if TURNS:
                mbarrier.wait(turns.index(group), (step & 1) ^ (1 - group))
            acc = warpgroup_mma(w, xs.index(stage).permute((1, 0)), acc, is_async=True)
            if MORE:
                w = gl.convert_layout(w, more_left, assert_trivial=True)
                more = warpgroup_mma(w, mores.index(stage).permute((1, 0)), more, is_async=True)
            if TURNS:
                mbarrier.arrive(turns.index(1 - group))
            if MORE:
                acc, more = warpgroup_mma_wait(0, deps=[acc, more])
            else:
                acc = warpgroup_mma_wait(0, deps=[acc])
            mbarrier.arrive(free.index(stage))
            step += 1
        part_ptr = parts_ptr + slot(gl.program_id(0), start) * ((BM + MORE) * 128)
        partial = stop - start < KB
        keep(acc, rows_ptr, y_ptr, part_ptr, row0, token0, M, N, stride_ym, partial, group, 0, BM, SPLIT)
        if MORE:
            keep(more, rows_ptr, y_ptr, part_ptr, row0, token0 + BM, M, N, stride_ym, partial, group, BM, MORE, SPLIT)


@gluon.jit
def many_hopper(
    x_desc, more_desc, words0_desc, words1_desc, words2_desc, grid_desc, off_desc,
    grid_ptr, off_ptr, rows_ptr, table_ptr, y_ptr, parts_ptr, M, N, KB, tiles, stride_ym,
    BM: gl.constexpr, MORE: gl.constexpr, A: gl.constexpr, B: gl.constexpr, C: gl.constexpr, S: gl.constexpr,
    SPAN: gl.constexpr, BIAS: gl.constexpr, OFFSET: gl.constexpr, TABLE: gl.constexpr, BF16: gl.constexpr,
    PTX: gl.constexpr, STAGES: gl.constexpr, TOGETHER: gl.constexpr, TURNS: gl.constexpr, SPLIT: gl.constexpr,
    FILL: gl.constexpr,
):  # fmt: skip
    """A program's pieces of y, in tiles of 128 rows by BM + MORE tokens.

    Args:
        x_desc: of x [M, 128 KB] as `reorder` leaves it, blocks [BM, 128]; more_desc the same in blocks [MORE, 128]. A tensor has
            powers of two to its sides; 160 tokens are 128 and 32 more.
        words0_desc, words1_desc, words2_desc: of each plane, int32 [N8, KB 32 bits], blocks [16, 32 bits].
        grid_desc, off_desc: of scales and offsets, int32 [N8, groups S 8], blocks [16, 8 S].
        parts_ptr: float32 [2 programs, BM + MORE, 128], for parts of tiles; read by `add_up`.
        tiles: how many there are.
        SPLIT: see `stretch`.
    The others are those of `few`.
    """
    gdc_launch_dependents()
    xs = gl.allocate_shared_memory(x_desc.dtype, [STAGES] + x_desc.block_type.shape, x_desc.layout)
    words0 = gl.allocate_shared_memory(gl.int32, [STAGES] + words0_desc.block_type.shape, words0_desc.layout)
    mores, words1, words2, grids, offs = xs, words0, words0, words0, words0
    if MORE:
        mores = gl.allocate_shared_memory(x_desc.dtype, [STAGES] + more_desc.block_type.shape, more_desc.layout)
    if B:
        words1 = gl.allocate_shared_memory(gl.int32, [STAGES] + words1_desc.block_type.shape, words1_desc.layout)
    if C:
        words2 = gl.allocate_shared_memory(gl.int32, [STAGES] + words2_desc.block_type.shape, words2_desc.layout)
    if SPAN:
        grids = gl.allocate_shared_memory(gl.int32, [STAGES] + grid_desc.block_type.shape, grid_desc.layout)
        if OFFSET:
            offs = gl.allocate_shared_memory(gl.int32, [STAGES] + off_desc.block_type.shape, off_desc.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    turns = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(2):
        mbarrier.init(turns.index(i), count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(free.index(i), count=2)
    pairs = tiles  # stands for those that are not there
    if FILL != "":
        pairs = table_pairs(table_ptr, FILL)
    gl.warp_specialize(
        [
            (consume, (
                xs, mores, words0, words1, words2, grids, offs, full, free, turns, grid_ptr, off_ptr, rows_ptr, table_ptr, pairs,
                y_ptr, parts_ptr, M, N, KB, tiles, stride_ym, 0, BM, MORE,
                A, B, C, S, SPAN, BIAS, OFFSET, TABLE, BF16, PTX, STAGES, TOGETHER, TURNS, SPLIT, FILL,
            )),
            (consume, (
                xs, mores, words0, words1, words2, grids, offs, full, free, turns, grid_ptr, off_ptr, rows_ptr, table_ptr, pairs,
                y_ptr, parts_ptr, M, N, KB, tiles, stride_ym, 1, BM, MORE,
                A, B, C, S, SPAN, BIAS, OFFSET, TABLE, BF16, PTX, STAGES, TOGETHER, TURNS, SPLIT, FILL,
            )),
            (produce, (
                x_desc, more_desc, words0_desc, words1_desc, words2_desc, grid_desc, off_desc,
                xs, mores, words0, words1, words2, grids, offs, full, free,
                M, N, KB, tiles, BM, MORE, A, B, C, S, SPAN, OFFSET, STAGES, TOGETHER, SPLIT,
            )),
        ],
        [4, 1],
        [232, 40],
    )  # fmt: skip
