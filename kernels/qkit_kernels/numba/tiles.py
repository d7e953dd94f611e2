"""Many tokens: a panel of weights meets a tile of tokens, and everything that is used often stays in a cache or a register.

    sums[r, t] += sum_k w[r, k] x[k, t]

Tokens lie in the lanes: what is read of x is 16 tokens at one k, and a weight is one number for all of them, which the load
itself spreads over the lanes. So a tile of some rows (`vector.tile_rows`) and one or two vectors of tokens is summed in as many
registers, and no lanes are ever added up. It is the shape that BLAS libraries use (Goto and van de Geijn, ACM TOMS 34(3),
2008), turned on its side because it is the weights that have to be unpacked:

    panel      PANEL_ROWS rows, a stretch of features, unpacked               24 KB: first cache
    block      up to TOKENS tokens, the same stretch                          512 KB: second cache, for all panels of a band
    band       up to BAND_ROWS rows, whose sums are kept while the stretches  96 KB
               pass by: x comes from farther away once a band

A block and a band make one piece of work. Pieces are dealt out to threads one by one, all bands of a block after another.
"""

from functools import cache

from numba import njit, types
from numba.extending import intrinsic, overload

from qkit_kernels.numba.threads import CHUNKS_PER_THREAD
from qkit_kernels.numba.vector import (
    LANES,
    Static,
    add_each,
    add_outer,
    add_outer_pairs,
    add_outer_signed,
    has,
    known,
    load_each,
    pairs_together,
    tile_rows,
    transpose16,
    value,
    widen_each,
    widens,
    zeros_f32,
    zeros_i32,
    zeros_tile,
)

PANEL_ROWS, BAND_ROWS, TOKENS = 12, 96, 256
FLOATS, CODES = 512, 2048  # of a stretch: 2 KB either way
SIGNS = PANEL_ROWS * CODES  # where the signs of a panel begin, if they are apart
ONE, TWO = Static(1), Static(2)


def tile(tokens: int) -> tuple[None, ...]:
    """How many vectors of tokens a tile has: two keep more sums in registers, if there are 32 registers of 64 bytes."""
    return TWO if tokens > LANES and _many_registers() else ONE


@cache
def _many_registers() -> bool:
    """Asked once: it takes longer than a small product."""
    return has("avx512f")


def shares(tokens: int, rows: int, lanes: int, threads: int) -> tuple[tuple[int, int], int]:
    """How the work is cut: (tokens of a block, rows of a band), and how many pieces that makes.

    Blocks are as equal as whole tiles can be, and bands low enough for each thread to come several times.
    """
    blocks = -(-tokens // TOKENS)
    block, band = -(-tokens // (blocks * lanes)) * lanes, BAND_ROWS
    while band > PANEL_ROWS and blocks * -(-rows // band) < CHUNKS_PER_THREAD * threads:
        band //= 2
    return (block, band), -(-tokens // block) * -(-rows // band)


@njit(forceinline=True)
def piece(number, share, tokens, rows):
    """Of a piece: its first token and how many, its first row and how many."""
    block, band = share
    bands = (rows + band - 1) // band
    token, row = number // bands * block, number % bands * band
    return token, min(block, tokens - token), row, min(band, rows - row)


@njit(forceinline=True)
def next_panel(i, rows, start, stop, width, row_bytes, bits):
    """How many bytes behind a code of one panel that lies which takes its place in the next, to be asked for meanwhile.

    Args:
        i, rows: the panel's first row in the band, and how many rows this has.
        start, stop, width: of the features the stretch, and how many there are.
    """
    if i + PANEL_ROWS < rows:
        return PANEL_ROWS * row_bytes
    if stop < width:  # the first panel again, of the stretch after this
        return (stop - start) * bits // 8 - i * row_bytes
    return PANEL_ROWS * row_bytes - start * bits // 8  # the next band's


@intrinsic
def tile_height(_context):
    """`vector.tile_rows`, for kernels."""
    return known(types.intp, tile_rows())


@njit(forceinline=True)
def add_products(w, stride, length, x, first, vectors, sums, at, room):
    """sums[at + r room + t] += sum_k w[r stride + k] x[first + k lanes + t] for the rows and tokens of one tile; pointers."""
    totals = zeros_tile(zeros_f32(), vectors)
    for k in range(length):
        xs = load_each(x, first + k * LANES * value(vectors), vectors, zeros_f32())
        totals = add_outer(totals, w, k, stride, xs, None)
    add_each(sums, at, room, totals)


def signs_apart(bits: int) -> bool:
    """Whether a panel holds the magnitudes and behind them the signs of codes of b bits less 2^(b - 1): `add_outer_signed`.

    Without it the products of codes of 8 bits do not fit into 16 bits by twos.
    """
    return bits == 8 and widens()


def dots(w, stride, start, stop, x, vectors, bits):
    """sum_k w[r stride + k] x[k, t], codes of b bits in the bytes start .. stop - 1, for one tile: whole numbers.

    x[k lanes + 4 t ..] holds four features, from k on, of token t. Where `signs_apart`, w is the code less 2^(b - 1), and the
    sum lacks the magnitudes of those below 0.
    """
    raise NotImplementedError("dots is for kernels")


@overload(dots, jit_options={"forceinline": True})
def _dots(w, stride, start, stop, x, vectors, bits):
    together = 4 * pairs_together(bits.count) if widens() else 0  # features whose products are added in 16 bits

    def in_32_bits(w, stride, start, stop, x, vectors, bits):
        totals = zeros_tile(zeros_i32(), vectors)
        for k in range(start, stop, 4):
            xs = load_each(x, k * LANES * value(vectors), vectors, zeros_i32())
            totals = add_outer(totals, w, k, stride, xs, bits)
        return totals

    def in_16_bits(w, stride, start, stop, x, vectors, bits):
        pairs = sum_of_pairs(w, stride, start, min(start + together, stop), x, vectors)
        totals = widen_each(
            pairs, zeros_tile(zeros_i32(), vectors)
        )  # of a few rounds in a group the first adds to nothing
        for first in range(start + together, stop, together):
            pairs = sum_of_pairs(w, stride, first, min(first + together, stop), x, vectors)
            totals = widen_each(pairs, totals)
        return totals

    def by_signs(w, stride, start, stop, x, vectors, bits):
        totals = zeros_tile(zeros_i32(), vectors)
        for k in range(start, stop, 4):
            xs = load_each(x, k * LANES * value(vectors), vectors, zeros_i32())
            totals = add_outer_signed(totals, w, k, stride, SIGNS, xs)
        return totals

    if signs_apart(bits.count):
        return by_signs
    return in_16_bits if together > 4 else in_32_bits


@njit(forceinline=True)
def sum_of_pairs(w, stride, start, stop, x, vectors):
    """`dots` in sums of 16 bits, two in a lane."""
    pairs = zeros_tile(zeros_i32(), vectors)
    for k in range(start, stop, 4):
        xs = load_each(x, k * LANES * value(vectors), vectors, zeros_i32())
        pairs = add_outer_pairs(pairs, w, k, stride, xs)
    return pairs


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
