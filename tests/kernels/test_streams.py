"""Activations as the kernels lay them: the same order as the codes, sums of groups, and INT8 codes as torch finds them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qkit.ops import quantize_activations_int8
from qkit_kernels.numba.streams import UNIT, lay_float_tiles_rows, lay_floats, quantize, quantize_tiles_rows

NOWHERE = np.zeros(0, np.uint8)
ZERO = np.float32(0)


def normal(tokens, features, seed=0):
    return np.random.default_rng(seed).standard_normal((tokens, features)).astype(np.float32)


def blocks_of(rows, lanes, unit):
    """[tokens, features] with zeros behind, as [blocks, unit, tokens, lanes]: x'[block, j, l] = x[block, l, j]."""
    padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % (lanes * unit))))
    return padded.reshape(len(rows), -1, lanes, unit).transpose(1, 3, 0, 2)


def in_order(sums, groups):
    """[ceil(groups / 16), n, 16] as [n, groups]; behind them there is nothing."""
    found = sums.transpose(1, 0, 2).reshape(sums.shape[1], -1)
    assert not found[:, groups:].any()
    return found[:, :groups]


def tiles_of(rows, lanes):
    """[tokens, ...] with zeros below, as [tiles, lanes, ...]."""
    padded = np.pad(rows, ((0, -len(rows) % lanes), *[(0, 0)] * (rows.ndim - 1)))
    return padded.reshape(-1, lanes, *rows.shape[1:])


@st.composite
def layouts(draw):
    """bits, tokens, features, groups, lanes: groups of any size, also those that no kernel reads."""
    size, groups = draw(st.integers(1, 60)), draw(st.integers(1, 20))
    return draw(st.integers(2, 8)), draw(st.integers(1, 40)), size * groups, groups, draw(st.sampled_from([16, 32]))


def check_sums(sums, x, groups):
    in_groups = x.astype(np.float64).reshape(len(x), groups, -1)
    limit = in_groups.shape[2] * 2.0**-24 * abs(in_groups).sum(2)  # a rounding for each number
    assert (abs(sums - in_groups.sum(2)) <= limit).all()


@settings(deadline=None)
@given(layouts(), st.integers(1, 4))
def test_a_few_tokens_lie_as_the_codes_do_and_their_groups_are_summed(case, tokens):
    bits, _, features, groups, _ = case
    x, unit = normal(tokens, features, seed=features), UNIT[bits]
    laid = np.full((-(-features // (16 * unit)), unit, 4, 16), 7, np.float32)
    sums = np.zeros((-(-groups // 16), 4, 16), np.float32)
    lay_floats(x, groups, laid, sums)
    np.testing.assert_array_equal(laid[:, :, :tokens], blocks_of(x, 16, unit))
    check_sums(in_order(sums, groups)[:tokens], x, groups)
    assert (laid[:, :, tokens:] == 7).all() and not sums[:, tokens:].any()


@settings(deadline=None)
@given(layouts(), st.integers(1, 4))
def test_the_int8_codes_of_a_few_tokens_lie_as_the_codes_do_and_are_summed_exactly(case, tokens):
    bits, _, features, groups, _ = case
    x, unit = normal(tokens, features, seed=features), UNIT[bits]
    laid = np.full((-(-features // (16 * unit)), unit // 4, 4, 64), 7, np.int8)
    sums, scales = np.zeros((-(-groups // 16), 4, 16), np.float32), np.zeros(4, np.float32)
    quantize(x, NOWHERE, ZERO, groups, scales, laid, sums)
    codes, expected = (part.numpy() for part in quantize_activations_int8(torch.from_numpy(x)))
    np.testing.assert_array_equal(laid[:, :, :tokens], blocks_of(codes, 64, unit // 4))
    np.testing.assert_array_equal(scales[:tokens], expected[:, 0])
    of_groups = codes.reshape(tokens, groups, -1).sum(2, dtype=np.int64)
    np.testing.assert_array_equal(in_order(sums, groups)[:tokens], of_groups)
    assert (laid[:, :, tokens:] == 7).all() and not sums[:, tokens:].any()


@settings(deadline=None)
@given(layouts())
def test_many_tokens_lie_in_the_lanes_of_tiles(case):
    _, tokens, features, _, lanes = case
    x = normal(tokens, features, seed=features)
    laid = np.full((-(-tokens // lanes), features, lanes), 7, np.float32)
    lay_float_tiles_rows(x, laid, 0, laid.shape[0] * lanes)
    np.testing.assert_array_equal(laid, tiles_of(x, lanes).transpose(0, 2, 1))


@settings(deadline=None)
@given(layouts())
def test_the_int8_codes_of_many_tokens_lie_in_fours(case):
    _, tokens, features, groups, lanes = case
    x, tiles = normal(tokens, features, seed=features), -(-tokens // lanes)
    laid, sums = (
        np.full((tiles, -(-features // 4), lanes, 4), 7, np.int8),
        np.full((tiles, groups, lanes), 7, np.float32),
    )
    scales = np.full(tiles * lanes, 7, np.float32)
    quantize_tiles_rows(x, NOWHERE, ZERO, groups, scales, laid, sums, 0, tiles * lanes)
    codes, expected = (part.numpy() for part in quantize_activations_int8(torch.from_numpy(x)))
    fours = np.pad(codes, ((0, 0), (0, -features % 4))).reshape(tokens, -1, 4)
    np.testing.assert_array_equal(laid, tiles_of(fours, lanes).transpose(0, 2, 1, 3))
    of_groups = codes.reshape(tokens, groups, -1).sum(2, dtype=np.int64)
    np.testing.assert_array_equal(sums, tiles_of(of_groups, lanes).transpose(0, 2, 1))
    np.testing.assert_array_equal(scales[:tokens], expected[:, 0])
    assert (scales[tokens:] == 1).all()


@pytest.mark.parametrize("fixed", [0.0, 0.02])
def test_columns_that_are_not_kept_are_zeros_and_count_for_no_scale(fixed):
    x, keep = normal(3, 100), np.arange(100, dtype=np.uint8) % 3
    x[:, ::3] *= 1000
    laid, sums, scales = np.zeros((1, 25, 16, 4), np.int8), np.zeros((1, 1, 16), np.float32), np.zeros(16, np.float32)
    quantize_tiles_rows(x, keep, np.float32(fixed), 1, scales, laid, sums, 0, 16)
    calm = torch.from_numpy(np.where(keep, x, 0))
    codes, expected = quantize_activations_int8(calm, torch.tensor(fixed) if fixed else None)
    np.testing.assert_array_equal(laid[0, :, :3].transpose(1, 0, 2).reshape(3, 100), codes.numpy())
    np.testing.assert_array_equal(scales[:3], expected[:, 0])


def test_only_the_tokens_that_were_asked_for_are_laid():
    x, laid = normal(40, 64), np.full((3, 64, 16), 7, np.float32)
    lay_float_tiles_rows(x, laid, 16, 32)
    assert (laid[[0, 2]] == 7).all()
    np.testing.assert_array_equal(laid[1], x[16:32].T)
