"""Who makes which part of y: tiles of y, dealt out to as many programs as a card runs at once.

A product of 224 tiles takes two rounds of a card that has 132 multiprocessors, and in the second 40 of them have nothing to do.
So all blocks of all tiles stand in one row, and each program takes an equal stretch of it (Stream-K; Osama et al. 2023, Work-
centric parallel decomposition for dense matrix-matrix multiplication on the GPU).

    tiles       |----- 0 -----|----- 1 -----|----- 2 -----|
    stretches   |--- program 3 --|--- 2 ---|--- 1 ---|--- 0 ---|       (of equal length)

Who begins a tile finishes it: it adds what the others made of it, always in the same order. They made that first, at the
beginning of their stretches, when it had all of its own still before it, so that it hardly ever waits; and since it waits for
programs of lower numbers only, which started earlier, it cannot wait for one that finds no place on the card.
"""

import triton
import triton.language as tl


@triton.jit
def stretch(program, programs, tiles, KB, SPLIT: tl.constexpr):
    """Blocks begin .. end - 1 that a program takes, KB to a tile and counted on from tile to tile; whole tiles unless SPLIT."""
    place = programs - 1 - program
    if SPLIT:
        begin, end = place * (tiles * KB) // programs, (place + 1) * (tiles * KB) // programs
    else:
        begin, end = place * tiles // programs * KB, (place + 1) * tiles // programs * KB
    return begin, end


@triton.jit
def piece(tile, begin, end, KB):
    """What of a tile's blocks lies in a stretch: from the first to behind the last."""
    return tl.maximum(begin - tile * KB, 0), tl.minimum(end - tile * KB, KB)


@triton.jit
def others(tile, program, programs, tiles, KB):
    """Who else works on a tile that a program begins, by number: program - 1 down to the one that has its last block."""
    place = ((tile + 1) * KB * programs - 1) // (tiles * KB)
    return program - 1, programs - 1 - place


@triton.jit
def tile_of(tile, across, along, TOGETHER: tl.constexpr):
    """Which rows and which tokens: TOGETHER tiles of rows share the tokens that are in the cache."""
    band = tile // (TOGETHER * along)
    size = tl.minimum(across - band * TOGETHER, TOGETHER)
    inside = tile % (TOGETHER * along)
    return band * TOGETHER + inside % size, inside // size


@triton.jit
def say_done(flag_ptr):
    """What all threads of a program, or of a group of its warps, have written is there for whom `wait_for` lets through."""
    tl.debug_barrier()
    tl.atomic_xchg(flag_ptr, 1, sem="release")


@triton.jit
def wait_for(flag_ptr):
    """Until the flag is up."""
    while tl.atomic_add(flag_ptr, 0, sem="acquire") == 0:
        pass
    tl.debug_barrier()
