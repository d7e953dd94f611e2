"""What stands between the products of a model's step, by the Triton kernels under the interpreter, against float64."""

import pytest
import torch

import exact_step
from exact_step import off
from products import random

pytest.importorskip("triton", reason="Triton is not installed: pip install 'qkit[gpu]'")

from qkit.backends import torch as plain
from qkit.backends.triton import between

DTYPES = [torch.float32, torch.float16]  # the interpreter's bfloat16 is silently wrong
EPS = 1e-5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (3, 100), (2, 128), (1, 2048), (5, 33)], ids=str)
def test_a_sum_and_its_norm(shape, dtype):
    x, more = (random(*shape, seed=seed).to(dtype) for seed in (1, 2))
    weight = random(1, shape[1], seed=3)[0].to(dtype)
    total, norm = between.add_norm(x, more, weight, EPS)
    assert torch.equal(total, x + more)
    assert norm.dtype == dtype and off(norm, exact_step.normed(total, weight, EPS)) < 3


def test_the_norm_of_nothing_is_nothing_and_of_nan_is_nan():
    x, weight = torch.zeros(2, 40), torch.ones(40)
    x[1, 3] = torch.nan
    total, norm = between.add_norm(x, torch.zeros_like(x), weight, EPS)
    assert not total[0].any() and not norm[0].any() and norm[1].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (3, 100), (2, 1024), (1, 1500)], ids=str)
def test_a_gate_whose_halves_lie_side_by_side(shape, dtype):
    both = 4 * random(shape[0], 2 * shape[1]).to(dtype)
    gate, up = both.chunk(2, 1)
    found = between.gated(gate, up)
    assert found.is_contiguous()
    assert found.dtype == dtype and off(found, exact_step.gated(gate, up)) < 3


def test_a_gate_far_from_zero():
    gate = torch.tensor([[-1e4, -88.0, 88.0, 1e4, torch.inf, torch.nan]])
    found = between.gated(gate, torch.ones_like(gate))[0]
    assert found[:4].tolist() == pytest.approx([0.0, 0.0, 88.0, 1e4], abs=1e-30)
    assert found[4] == torch.inf and found[5].isnan()


def attention(groups, heads, length, dim, dtype):
    query = 3 * random(groups * heads, dim).view(groups, heads, dim)
    keys, values = (random(groups * length, dim, seed=seed).view(groups, length, dim) for seed in (2, 3))
    return query.to(dtype), keys.to(dtype), values.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seen", [1, 31, 33, 70])
@pytest.mark.parametrize("shape", [(4, 3, 70, 32), (1, 1, 96, 16), (2, 17, 128, 64)], ids=str)
def test_attention_over_what_has_been_written(shape, seen, dtype):
    query, keys, values = attention(*shape, dtype)
    there = torch.arange(shape[2]) < seen
    keys[:, ~there], values[:, ~there] = 9.0, 9.0  # what an earlier run left there
    found = between.attend(query, keys, values, there, 0.3)
    assert found.dtype == dtype
    assert (
        off(found, exact_step.attended(query, keys, values, there, 0.3)) < 8
    )  # shares are rounded, and up to 70 summed


def test_attention_says_when_a_number_was_none():
    query, keys, values = attention(2, 2, 70, 16, torch.float32)
    keys[0, 5] = torch.nan
    found = between.attend(query, keys, values, torch.ones(70, dtype=torch.bool), 0.3)
    assert found[0].isnan().all() and found[1].isfinite().all()


@pytest.mark.parametrize(
    "shape", [(2, 2, between.MOST * between.POSITIONS + 1, 16), (2, 2, 40, 12), (2, 2, 40, 8)], ids=str
)
def test_what_the_kernel_does_not_take_is_attended_to_all_the_same(shape):
    query, keys, values = attention(*shape, torch.float32)
    there = torch.arange(shape[2]) < 35
    expected = plain.attend(query, keys, values, there, 0.3)
    assert torch.equal(between.attend(query, keys, values, there, 0.3), expected)


def test_columns_of_something_else_are_read_where_they_lie():
    query, keys, values = attention(2, 2, 40, 16, torch.float32)
    both = torch.arange(80) < 31
    for seen in (both[::2], torch.ones(1, dtype=torch.bool).expand(40)):
        expected = plain.attend(query, keys, values, seen, 0.3)
        torch.testing.assert_close(between.attend(query, keys, values, seen, 0.3), expected)
    x, weight = random(40, 3).T, random(40, 2)[:, 0]
    for found, expected in zip(between.add_norm(x, x, weight, EPS), plain.add_norm(x, x, weight, EPS), strict=True):
        torch.testing.assert_close(found, expected)
    gate, up = random(40, 3).T, random(3, 80)[:, ::2]
    torch.testing.assert_close(between.gated(gate, up), plain.gated(gate, up))


def test_numbers_of_two_kinds_are_left_to_torch():
    x, weight = random(2, 40).half(), random(1, 40)[0]
    for found, expected in zip(between.add_norm(x, x, weight, EPS), plain.add_norm(x, x, weight, EPS), strict=True):
        assert found.dtype == expected.dtype and torch.equal(found, expected)
    assert torch.equal(between.gated(x, x.float()), plain.gated(x, x.float()))
    query, keys, _ = attention(2, 2, 40, 16, torch.float32)
    wide, seen = random(80, 24).view(2, 40, 24), torch.arange(40) < 31
    assert torch.equal(between.attend(query, keys, wide, seen, 0.3), plain.attend(query, keys, wide, seen, 0.3))
