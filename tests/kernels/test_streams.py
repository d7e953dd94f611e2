"""Activations as the kernels lay them: the same order as the codes, sums of groups, and INT8 codes as torch finds them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qkit.ops import quantize_activations_int8
from qkit_kernels.streams import UNIT, lay_floats_rows, quantize_rows

NOWHERE = np.zeros(0, np.uint8)


def normal(tokens, features, seed=0):
    return np.random.default_rng(seed).standard_normal((tokens, features)).astype(np.float32)


def blocks_of(rows, lanes, unit):
    """[tokens, features] with zeros behind, as [blocks, unit, tokens, lanes]: x'[block, j, l] = x[block, l, j]."""
    tokens, features = rows.shape
    padded = np.pad(rows, ((0, 0), (0, -features % (lanes * unit))))
    return padded.reshape(tokens, -1, lanes, unit).transpose(1, 3, 0, 2)


def together(tokens):
    """How many tokens are laid together, and how many stretches of so many there are."""
    return (1, 1) if tokens == 1 else (4, -(-tokens // 4))


@st.composite
def layouts(draw):
    """bits, tokens, features, groups: groups of any size, also those that no kernel reads."""
    size, groups = draw(st.integers(1, 60)), draw(st.integers(1, 20))
    return draw(st.integers(2, 8)), draw(st.integers(1, 9)), size * groups, groups


def check_order(laid, rows, lanes, unit):
    n = laid.shape[3]
    for t in range(0, len(rows), n):
        here = rows[t : t + n]
        np.testing.assert_array_equal(laid[t // n][:, :, : len(here)], blocks_of(here, lanes, unit))


@given(layouts())
def test_floats_lie_as_the_codes_do_and_their_groups_are_summed(case):
    bits, tokens, features, groups = case
    x, unit, (n, stretches) = normal(tokens, features, seed=features), UNIT[bits], together(tokens)
    laid = np.zeros((stretches, -(-features // (16 * unit)), unit, n, 16), np.float32)
    sums = np.zeros((n * stretches, -(-groups // 16) * 16), np.float32)
    lay_floats_rows(x, groups, laid, sums, 0, tokens)
    check_order(laid, x, 16, unit)
    in_groups = x.astype(np.float64).reshape(tokens, groups, -1)
    limit = in_groups.shape[2] * 2.0**-24 * abs(in_groups).sum(2)  # a rounding for each number
    assert (abs(sums[:tokens, :groups] - in_groups.sum(2)) <= limit).all()
    assert not sums[tokens:].any() and not sums[:, groups:].any()


@given(layouts())
def test_int8_codes_lie_as_the_codes_do_and_their_groups_are_summed_exactly(case):
    bits, tokens, features, groups = case
    x, unit, (n, stretches) = normal(tokens, features, seed=features), UNIT[bits], together(tokens)
    laid = np.zeros((stretches, -(-features // (16 * unit)), unit // 4, n, 64), np.int8)
    sums, scales = np.zeros((n * stretches, -(-groups // 16) * 16), np.float32), np.zeros(n * stretches, np.float32)
    quantize_rows(x, NOWHERE, np.float32(0), groups, scales, laid, sums, 0, tokens)
    codes, expected = (part.numpy() for part in quantize_activations_int8(torch.from_numpy(x)))
    check_order(laid, codes, 64, unit // 4)
    np.testing.assert_array_equal(scales[:tokens], expected[:, 0])
    np.testing.assert_array_equal(sums[:tokens, :groups], codes.reshape(tokens, groups, -1).sum(2, dtype=np.int64))


@pytest.mark.parametrize("fixed", [0.0, 0.02])
def test_columns_that_are_not_kept_are_zeros_and_count_for_no_scale(fixed):
    x, keep = normal(3, 100), np.arange(100, dtype=np.uint8) % 3
    x[:, ::3] *= 1000
    laid, sums, scales = np.zeros((1, 2, 1, 4, 64), np.int8), np.zeros((4, 16), np.float32), np.zeros(4, np.float32)
    quantize_rows(x, keep, np.float32(fixed), 1, scales, laid, sums, 0, 3)
    calm = torch.from_numpy(np.where(keep, x, 0))
    codes, expected = quantize_activations_int8(calm, torch.tensor(fixed) if fixed else None)
    check_order(laid, codes.numpy(), 64, 1)
    np.testing.assert_array_equal(scales[:3], expected[:, 0])


def test_only_the_tokens_that_were_asked_for_are_laid():
    x, laid, sums = normal(6, 64), np.full((2, 1, 4, 4, 16), 7, np.float32), np.full((8, 16), 7, np.float32)
    lay_floats_rows(x, 1, laid, sums, 2, 5)
    of_tokens = laid.transpose(0, 3, 1, 2, 4).reshape(8, -1)
    assert (of_tokens[[0, 1, 5, 6, 7]] == 7).all() and not (of_tokens[2:5] == 7).any()
    assert (sums[[0, 1, 5, 6, 7]] == 7).all()
