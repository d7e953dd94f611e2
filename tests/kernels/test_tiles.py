"""How the work for many tokens is cut: every token meets every row once, whatever their numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from qkit_kernels.numba.tiles import BAND_ROWS, PANEL_ROWS, TOKENS, next_panel, piece, shares, write_out
from qkit_kernels.numba.vector import pointer


@njit
def cut(number, share, tokens, rows):
    return piece(number, share, tokens, rows)


@given(st.integers(1, 1500), st.integers(1, 1500), st.sampled_from([16, 32]), st.integers(1, 64))
def test_every_token_meets_every_row_once(tokens, rows, lanes, threads):
    share, pieces = shares(tokens, rows, lanes, threads)
    block, band = share
    assert block % lanes == 0 and block <= TOKENS and band % PANEL_ROWS == 0 and band <= BAND_ROWS
    met = np.zeros((tokens, rows), np.int64)
    for number in range(pieces):
        token, count, row, height = cut(number, share, tokens, rows)
        assert 0 < count <= block and 0 < height <= band
        met[token : token + count, row : row + height] += 1
    assert (met == 1).all()


@pytest.mark.parametrize(("tokens", "block"), [(16, 16), (256, 256), (257, 160), (300, 160), (513, 192)])
def test_blocks_are_as_equal_as_whole_tiles_can_be(tokens, block):
    assert shares(tokens, 96, 32 if tokens > 16 else 16, 1)[0][0] == block


def test_bands_are_lower_where_threads_would_have_nothing_to_do():
    assert shares(128, 4096, 32, 2) == ((128, 96), 43)
    assert shares(128, 384, 32, 2) == ((128, 48), 8)
    assert shares(128, 384, 32, 32) == ((128, 12), 32)


@njit
def ahead(i, rows, start, stop, width, row_bytes, bits):
    return next_panel(i, rows, start, stop, width, row_bytes, bits)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize(("rows", "width"), [(96, 4096), (24, 2048), (12, 5000), (96, 100)])
def test_what_is_asked_for_ahead_is_what_the_next_panel_begins_with(rows, width, bits):
    """Two bands, in the order of the kernels: the first code of each panel but the first was asked for by the one before."""
    row_bytes, stretch, asked = -(-width * bits // 8), 2048, 0
    for band in (0, rows):
        for start in range(0, width, stretch):
            for i in range(0, rows, PANEL_ROWS):
                at = (band + i) * row_bytes + start * bits // 8
                assert asked == at
                asked = at + ahead(i, rows, start, min(start + stretch, width), width, row_bytes, bits)


@njit
def write(sums, room, rows, tokens, y, at, outputs):
    write_out(pointer(sums), room, rows, tokens, pointer(y), at, outputs)


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 33, 96])
@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 32, 47])
def test_rows_and_tokens_change_places(rows, tokens):
    room, outputs = 48, rows + 5
    sums = np.random.default_rng(0).standard_normal((rows, room)).astype(np.float32)
    y, expected = (np.full((tokens + 1, outputs), 7, np.float32) for _ in range(2))
    expected[:tokens, 2 : 2 + rows] = sums[:, :tokens].T
    write(sums, room, rows, tokens, y, 2, outputs)
    np.testing.assert_array_equal(y, expected)
