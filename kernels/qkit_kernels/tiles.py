"""Many tokens: a panel of weights meets a tile of tokens, and everything that is used often stays in a cache or a register.

    sums[r, t] += sum_k w[r, k] x[k, t]

Tokens lie in the lanes: what is read of x is 16 tokens at one k, and a weight is one number for all of them, which the load
itself spreads over the lanes. So a tile of `ROWS` rows and one or two vectors of tokens is summed in as many registers, and no
lanes are ever added up. It is the shape that BLAS libraries use (Goto and van de Geijn, ACM TOMS 34(3), 2008), turned on its
side because it is the weights that have to be unpacked:

    panel      PANEL_ROWS rows, a stretch of features, unpacked          24 KB: first cache
    block      TOKENS tokens, the same stretch                           256 KB: second cache, for all panels of a band
    band       BAND_ROWS rows, whose sums are kept while the stretches   48 KB
               pass by: x comes from farther away once a band

A block and a band make one piece of work. Pieces are dealt out to threads one by one, all bands of a block after another.
"""

from numba import njit

from qkit_kernels.vector import (
    LANES,
    Static,
    add_each,
    add_outer,
    add_scaled_each,
    has,
    load_each,
    transpose16,
    value,
    zeros_f32,
    zeros_i32,
    zeros_tile,
)

PANEL_ROWS, BAND_ROWS, TOKENS = 12, 96, 256
FLOATS, CODES = 512, 2048  # of a stretch: 2 KB either way
ONE, TWO = Static(1), Static(2)


def tile(tokens: int) -> Static:
    """How many vectors of tokens a tile has: two keep more sums in registers, if there are 32 registers of 64 bytes."""
    return TWO if tokens > LANES and has("avx512f") else ONE


def pieces(tokens: int, rows: int) -> int:
    """How many blocks times bands there are."""
    return -(-tokens // TOKENS) * -(-rows // BAND_ROWS)


@njit(forceinline=True)
def piece(number, rows):
    """The first token and the first row of a piece."""
    bands = (rows + BAND_ROWS - 1) // BAND_ROWS
    return number // bands * TOKENS, number % bands * BAND_ROWS


@njit(forceinline=True)
def add_products(w, stride, length, x, first, vectors, sums, at, room):
    """sums[at + r room + t] += sum_k w[r stride + k] x[first + k lanes + t] for the rows and tokens of one tile; pointers."""
    totals = zeros_tile(zeros_f32(), vectors)
    for k in range(length):
        xs = load_each(x, first + k * LANES * value(vectors), vectors, zeros_f32())
        totals = add_outer(totals, w, k, stride, xs)
    add_each(sums, at, room, totals)


@njit(forceinline=True)
def dots(w, stride, k, end, x, first, vectors):
    """sum_k w[r stride + k] x[k, t], bytes k .. end - 1, for one tile: whole numbers.

    x[first + k lanes + 4 t ..] holds four features, from k on, of token t.
    """
    totals = zeros_tile(zeros_i32(), vectors)
    for four in range(k, end, 4):
        xs = load_each(x, first + four * LANES * value(vectors), vectors, zeros_i32())
        totals = add_outer(totals, w, four, stride, xs)
    return totals


@njit(forceinline=True)
def add_dots(w, stride, k, end, x, first, vectors, sums, at, room):
    """sums[r, t] += dots, int32."""
    add_each(sums, at, room, dots(w, stride, k, end, x, first, vectors))


@njit(forceinline=True)
def add_scaled_dots(w, stride, k, end, x, first, vectors, scales, group, groups, sums, at, room):
    """sums[r, t] += scales[r groups + group] dots, float32."""
    add_scaled_each(sums, at, room, dots(w, stride, k, end, x, first, vectors), scales, group, groups)


@njit
def write_out(sums, room, rows, tokens, y, at, outputs):
    """y[at + t outputs + i] = sums[i room + t]: rows and tokens change places, sixteen by sixteen and what is left one by one."""
    whole_rows, whole_tokens = rows // LANES * LANES, tokens // LANES * LANES
    for t in range(0, whole_tokens, LANES):
        for i in range(0, whole_rows, LANES):
            transpose16(sums, i * room + t, room, y, at + t * outputs + i, outputs)
    for t in range(tokens):
        for i in range(whole_rows if t < whole_tokens else 0, rows):
            y[at + t * outputs + i] = sums[i * room + t]
