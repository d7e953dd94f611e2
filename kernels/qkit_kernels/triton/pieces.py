"""Who makes which part of y: tiles of y, dealt out to as many programs as a card runs at once.

A product of 224 tiles takes two rounds of a card that has 132 multiprocessors, and in the second 40 of them have nothing to do.
So all blocks of all tiles stand in one row, and each program takes an equal stretch of it (Stream-K; Osama et al. 2023, Work-
centric parallel decomposition for dense matrix-matrix multiplication on the GPU). A tile that two programs meet in is made in
parts, which `add_up` adds, always in the same order. What it costs are the parts, written and read again as float32; where that
is more than what idle multiprocessors would cost, tiles stay whole.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def stretch(program, programs, tiles, KB, SPLIT: tl.constexpr):
    """Blocks begin .. end - 1 that a program takes, KB to a tile and counted on from tile to tile; whole tiles unless SPLIT."""
    if SPLIT:
        begin, end = program * (tiles * KB) // programs, (program + 1) * (tiles * KB) // programs
    else:
        begin, end = program * tiles // programs * KB, (program + 1) * tiles // programs * KB
    return begin, end


@triton.jit
def piece(tile, begin, end, KB):
    """What of a tile's blocks lies in a stretch: from the first to behind the last."""
    return tl.maximum(begin - tile * KB, 0), tl.minimum(end - tile * KB, KB)


@triton.jit
def tile_of(tile, across, along, TOGETHER: tl.constexpr):
    """Which rows and which tokens (or the other way round): TOGETHER tiles across share what is in the cache along."""
    band = tile // (TOGETHER * along)
    size = tl.minimum(across - band * TOGETHER, TOGETHER)
    inside = tile % (TOGETHER * along)
    return band * TOGETHER + inside % size, inside // size


@triton.jit
def slot(program, start):
    """Where a program keeps its part of a tile: 2 program if others began the tile, the next if it did; it does either once."""
    return 2 * program + 1 - tl.minimum(start, 1)


@triton.jit
def add_up(
    parts_ptr, y_ptr, M, N, KB, programs, tiles, stride_ym,
    BN: tl.constexpr, BM: tl.constexpr, TOGETHER: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """y of the tiles that were made in parts: float32 [2 programs, BM, BN], summed from the first program's to the last's."""
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    tile = tl.program_id(0)
    first = ((tile * KB + 1) * programs - 1) // (tiles * KB)
    last = ((tile + 1) * KB * programs - 1) // (tiles * KB)
    if first < last:
        i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        total = tl.load(parts_ptr + (2 * first + 1) * (BM * BN) + i)
        for program in range(first + 1, last + 1):
            total += tl.load(parts_ptr + 2 * program * (BM * BN) + i)
        n, m = tile_of(tile, tl.cdiv(N, BN), tl.cdiv(M, BM), TOGETHER)
        row, token = n * BN + i % BN, m * BM + i // BN
        place = y_ptr + token.to(tl.int64) * stride_ym + row
        tl.store(place, total.to(y_ptr.dtype.element_ty), mask=(row < N) & (token < M))
