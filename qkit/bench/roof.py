"""What the machine can do at best: bytes and operations a second, each measured by a kernel that does nothing else.

A layer that reads B bytes and does W operations takes at least max(B / bandwidth, W / peak) seconds. Drawn as operations a
second against operations a byte, that is the roofline: a slope that memory sets, and flat roofs that arithmetic sets, one for
float32 multiply-adds and one for INT8 (`vpdpbusd` where the CPU has it).
"""

import time

import numpy as np
import torch
from numba import njit

from qkit.bench.record import Roof
from qkit_kernels.numba.threads import fork_join, run
from qkit_kernels.numba.tiles import TOKENS, add_products, dots, tile
from qkit_kernels.numba.vector import (
    BYTES,
    LANES,
    Static,
    add_each,
    load_i32,
    offset,
    pointer,
    sum_i32,
    tile_rows,
    zeros_i32,
)

READ_BYTES = 2**27  # 128 MB, as much as the layers that are measured rotate over
PAGE = 2**16  # bytes that are dealt out at a time
STRETCH = 256  # features of a tile: 32 KB of x
TURNS = 64  # of an arithmetic loop: 0.1 ms or so
SUMS = 2 * LANES  # of one loop
CHUNKS = 32  # such loops
CODES = Static(4)  # bits of the bytes that are multiplied: older processors multiply 8 more slowly
REPEATS = 9


@njit(nogil=True)
def read_rows(data, sums, first, last):
    """sums[row] = the 32-bit words of page `row` added up (they wrap around), so that every byte has to be read."""
    for row in range(first, last):
        page, zero = offset(pointer(data), row * PAGE), zeros_i32()
        a = b = c = d = zero
        for k in range(0, PAGE, 4 * BYTES):
            a, b = a + load_i32(page, k), b + load_i32(page, k + BYTES)
            c, d = c + load_i32(page, k + 2 * BYTES), d + load_i32(page, k + 3 * BYTES)
        sums[row] = sum_i32((a + b) + (c + d))


@njit(nogil=True)
def read(team, threads, chunk, rows, data, sums):
    """`read_rows` by a team of threads."""
    fork_join(read_rows, (data, sums), rows, chunk, threads, team)


@njit(nogil=True)
def multiply_floats_rows(data, sums, vectors, first, last):
    """Tiles of `qkit_kernels.numba.tiles`, fed from the nearest cache: as many sums as a kernel keeps in registers."""
    for row in range(first, last):
        for _ in range(TURNS):
            add_products(pointer(data), STRETCH, STRETCH, pointer(data), 0, vectors, pointer(sums), row * SUMS, 0)


@njit(nogil=True)
def multiply_floats(team, threads, chunk, rows, data, sums, vectors):
    """`multiply_floats_rows` by a team of threads."""
    fork_join(multiply_floats_rows, (data, sums, vectors), rows, chunk, threads, team)


@njit(nogil=True)
def multiply_bytes_rows(data, sums, vectors, first, last):
    """The same with `dot4`: 64 products of bytes each."""
    for row in range(first, last):
        for _ in range(TURNS):
            add_each(
                pointer(sums),
                row * SUMS,
                0,
                dots(pointer(data), 4 * STRETCH, 0, 4 * STRETCH, pointer(data), vectors, CODES),
            )


@njit(nogil=True)
def multiply_bytes(team, threads, chunk, rows, data, sums, vectors):
    """`multiply_bytes_rows` by a team of threads."""
    fork_join(multiply_bytes_rows, (data, sums, vectors), rows, chunk, threads, team)


def _seconds(team, rows, args: tuple, count: int) -> float:
    """The median time of one call, after one that compiles."""
    run(team, rows, args, count)
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run(team, rows, args, count)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def measure_roof() -> Roof:
    """Bandwidth and peaks with as many threads as torch has; 128 MB are read, and given back."""
    pages = READ_BYTES // PAGE
    data, sums = np.ones(READ_BYTES, np.uint8), np.zeros(pages, np.int32)
    reading = _seconds(read, read_rows, (data, sums), pages)
    vectors = tile(TOKENS)
    floats = np.ones(SUMS * STRETCH, np.float32)
    products = TURNS * STRETCH * CHUNKS * tile_rows() * len(vectors)
    totals = np.zeros(CHUNKS * SUMS, np.float32)
    adding = _seconds(multiply_floats, multiply_floats_rows, (floats, totals, vectors), CHUNKS)
    args = (floats.view(np.uint8), totals.view(np.int32), vectors)
    dotting = _seconds(multiply_bytes, multiply_bytes_rows, args, CHUNKS)
    return Roof(
        threads=torch.get_num_threads(),
        gigabytes_per_second=READ_BYTES / reading / 1e9,
        float_gops=2 * LANES * products / adding / 1e9,
        int8_gops=2 * BYTES * products / dotting / 1e9,
    )
