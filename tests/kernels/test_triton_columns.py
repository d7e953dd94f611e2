"""GPTQ's column loop by the Triton kernel under the interpreter: the plain loop's codes and errors, to the last bit."""

import pytest
import torch

from grids import ALL_BITS, thinned
from products import random
from qkit.methods.gptq import inverse_cholesky
from qkit.numerics.mapping import choose_scale, value_range

pytest.importorskip("triton", reason="Triton is not installed: pip install 'qkit[gpu]'")

from qkit.backends import torch as plain
from qkit.backends.triton import columns


def job(rows, features, size, bits=4, symmetric=False, dtype=torch.float16):
    """Arguments of the column loop, in an order that mixes the groups."""
    w = random(rows, features).double()
    order = torch.randperm(features, generator=torch.Generator().manual_seed(1))
    x = random(2 * features + 50, features, seed=2).double() + 1
    upper, _ = inverse_cholesky(x.T @ x / len(x), 0.01)
    w[rows // 2, :size] = 0  # a group of zeros
    scale, zero = choose_scale(*value_range(w.reshape(rows, -1, size)), bits, symmetric, scale_dtype=dtype)
    return w[:, order], upper, order // size, scale[..., 0], zero[..., 0], 2**bits - 1


def block(args, width):
    w, upper, group, scale, zero, q_max = args
    here = group[:width]
    return w[:, :width], upper[:width, :width], scale[:, here], zero[:, here], q_max


SHAPES = ((1, 160, 32), (9, 131, 131), (5, 256, 64), (3, 1, 1), (6, 40, 8), (4, 128, 128))


@pytest.mark.parametrize("shape", thinned(SHAPES, [(1, 160, 32), (9, 131, 131), (3, 1, 1), (6, 40, 8)]), ids=str)
def test_the_kernel_is_the_plain_loop(shape):
    args = job(*shape)
    codes = columns.gptq_columns(*args)
    assert torch.equal(codes, plain.gptq_columns(*args))
    for width in {min(shape[1], 128), min(shape[1], 37)}:  # 37: neither a power of two nor even
        made, expected = columns.round_block(*block(args, width)), plain.round_columns(*block(args, width))
        assert all(map(torch.equal, made, expected))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", ALL_BITS)
def test_every_grid(bits, symmetric):
    args = job(6, 72, 24, bits, symmetric, torch.float32 if bits % 2 else torch.float16)
    made, expected = columns.round_block(*block(args, 72)), plain.round_columns(*block(args, 72))
    assert all(map(torch.equal, made, expected)) and made[0].unique().numel() > 2


def test_groups_whose_grid_is_taken_on_the_way():
    found = {}
    for loop in (columns.gptq_columns, plain.gptq_columns):
        w, upper, _, scale, zero, q_max = job(5, 200, 40)
        scale, zero, group = torch.ones_like(scale), torch.zeros_like(zero), torch.arange(200) // 40

        def regrid(w, j):
            return choose_scale(w[:, j : j + 40].amin(1), w[:, j : j + 40].amax(1), 4) if j % 40 == 0 else None

        found[loop] = loop(w, upper, group, scale, zero, q_max, regrid), scale, zero
    assert all(map(torch.equal, *found.values())) and (scale != 1).all()


@pytest.mark.filterwarnings("ignore:(overflow|invalid value):RuntimeWarning")
def test_weights_far_outside_the_grid_and_an_error_beyond_float32():
    args = job(4, 32, 32, dtype=torch.float32)
    for factor in (1e-30, 1e12, 1e39):
        w, upper, *rest = block(args, 32)
        made, expected = columns.round_block(w * factor, upper, *rest), plain.round_columns(w * factor, upper, *rest)
        assert all(map(torch.equal, made, expected))


@pytest.mark.filterwarnings("ignore:(overflow|invalid value):RuntimeWarning")
def test_rows_are_alone():
    """Neither a number that is none nor one that is infinite leaves its row; no row is anything without its own weights."""
    w, *rest = block(job(6, 48, 16), 48)
    expected = plain.round_columns(w, *rest)
    broken = w.clone()
    broken[1, 5], broken[4, 0] = torch.nan, torch.inf
    codes, errors = columns.round_block(broken, *rest)
    whole = [0, 2, 3, 5]
    assert torch.equal(codes[whole], expected[0][whole]) and torch.equal(errors[whole], expected[1][whole])
    assert torch.equal(codes[1, :5], expected[0][1, :5]) and errors[1, 5:].isnan().all() and errors[4].isnan().any()
    assert all(map(torch.equal, columns.round_block(w[2:3], rest[0], *(t[2:3] for t in rest[1:3]), rest[3]),
                   (part[2:3] for part in expected)))  # fmt: skip
