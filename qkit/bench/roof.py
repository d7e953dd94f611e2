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
from qkit_kernels.threads import fork_join, run
from qkit_kernels.vector import (
    BYTES,
    LANES,
    dot4,
    fma,
    load_f32,
    load_i32,
    offset,
    pointer,
    sum_f32,
    sum_i32,
    zeros_f32,
    zeros_i32,
)

READ_BYTES = 2**28  # 256 MB, eight times a large cache
PAGE = 2**16  # bytes that are dealt out at a time
CHAINS = 8  # independent sums, so that no operation waits for the one before
TURNS = 2**16  # of an arithmetic loop: 0.2 ms or so
CHUNKS = 32  # such loops
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
def multiply_floats_rows(data, sums, first, last):
    """`CHAINS` chains of float32 multiply-adds; two loads from the nearest cache serve all of them."""
    for row in range(first, last):
        p = pointer(data)
        w0, w1 = load_f32(p, 0), load_f32(p, LANES)
        w2, w3 = load_f32(p, 2 * LANES), load_f32(p, 3 * LANES)
        a = b = c = d = e = f = g = h = zeros_f32()
        for turn in range(TURNS):
            x, y = load_f32(p, LANES * (turn & 3)), load_f32(p, LANES * (4 + (turn & 3)))
            a, b, c, d = fma(w0, x, a), fma(w1, x, b), fma(w2, x, c), fma(w3, x, d)
            e, f, g, h = fma(w0, y, e), fma(w1, y, f), fma(w2, y, g), fma(w3, y, h)
        sums[row] = sum_f32(((a + b) + (c + d)) + ((e + f) + (g + h)))


@njit(nogil=True)
def multiply_floats(team, threads, chunk, rows, data, sums):
    """`multiply_floats_rows` by a team of threads."""
    fork_join(multiply_floats_rows, (data, sums), rows, chunk, threads, team)


@njit(nogil=True)
def multiply_bytes_rows(data, sums, first, last):
    """The same with `dot4`: 64 products of bytes each."""
    for row in range(first, last):
        p = pointer(data)
        w0, w1 = load_i32(p, 0), load_i32(p, BYTES)
        w2, w3 = load_i32(p, 2 * BYTES), load_i32(p, 3 * BYTES)
        a = b = c = d = e = f = g = h = zeros_i32()
        for turn in range(TURNS):
            x, y = load_i32(p, BYTES * (turn & 3)), load_i32(p, BYTES * (4 + (turn & 3)))
            a, b, c, d = dot4(a, w0, x), dot4(b, w1, x), dot4(c, w2, x), dot4(d, w3, x)
            e, f, g, h = dot4(e, w0, y), dot4(f, w1, y), dot4(g, w2, y), dot4(h, w3, y)
        sums[row] = sum_i32(((a + b) + (c + d)) + ((e + f) + (g + h)))


@njit(nogil=True)
def multiply_bytes(team, threads, chunk, rows, data, sums):
    """`multiply_bytes_rows` by a team of threads."""
    fork_join(multiply_bytes_rows, (data, sums), rows, chunk, threads, team)


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
    """Bandwidth and peaks with as many threads as torch has; 256 MB are read, and given back."""
    pages = READ_BYTES // PAGE
    data, sums = np.ones(READ_BYTES, np.uint8), np.zeros(pages, np.int32)
    reading = _seconds(read, read_rows, (data, sums), pages)
    floats, totals = np.ones(8 * LANES, np.float32), np.zeros(CHUNKS, np.float32)
    products = 2 * CHAINS * TURNS * CHUNKS
    adding = _seconds(multiply_floats, multiply_floats_rows, (floats, totals), CHUNKS)
    dotting = _seconds(multiply_bytes, multiply_bytes_rows, (data[: 8 * BYTES], sums[:CHUNKS]), CHUNKS)
    return Roof(
        threads=torch.get_num_threads(),
        gigabytes_per_second=READ_BYTES / reading / 1e9,
        float_gops=LANES * products / adding / 1e9,
        int8_gops=BYTES * products / dotting / 1e9,
    )
