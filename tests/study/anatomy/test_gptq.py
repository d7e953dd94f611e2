"""GPTQ stopped on the way is GPTQ."""

from dataclasses import replace

import pytest
import torch

import qkit
from qkit.methods.gptq import gptq
from qkit.methods.statistics import InputStatistics
from qkit.study.anatomy.gptq import column_steps, cost_left, output_error


@pytest.fixture
def weight():
    return torch.randn(12, 40, generator=torch.Generator().manual_seed(0)) * 0.1


@pytest.fixture
def x():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(200, 40, generator=generator) @ torch.randn(40, 40, generator=generator)


@pytest.fixture
def inputs(x):
    statistics = InputStatistics.empty(40, wants=frozenset({"square"}))
    statistics.add(x)
    return statistics


def test_the_output_error_is_that_of_the_outputs(weight, x, inputs):
    w_hat = qkit.quantize_tensor(weight, bits=3).dequantize()
    expected = ((weight - w_hat) @ x.T).square().sum() / (weight @ x.T).square().sum()
    assert output_error(weight, w_hat, inputs.hessian) == pytest.approx(float(expected), rel=1e-4)
    assert output_error(weight, weight, inputs.hessian) == 0


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_steps_begin_at_the_original_and_end_at_what_the_library_computes(weight, inputs, bits):
    steps = column_steps(weight, inputs, bits, stops=9)
    assert steps.columns == (0, 5, 10, 15, 20, 25, 30, 35, 40)
    solved = gptq(
        weight, inputs, replace(qkit.GPTQ.paper(bits, None, symmetric=True), scale_dtype="float32")
    ).q.dequantize()
    rounded = qkit.quantize_tensor(weight, qkit.RTN(bits, symmetric=True, scale_dtype="float32")).dequantize()
    assert steps.change[0].abs().max() == 0
    assert torch.allclose(steps.change[-1], solved - weight, atol=1e-6)
    assert steps.gptq[0] == steps.rounding[0] == 0
    assert steps.gptq[-1] == pytest.approx(output_error(weight, solved, inputs.hessian), rel=1e-4)
    assert steps.rounding[-1] == pytest.approx(output_error(weight, rounded, inputs.hessian), rel=1e-4)


def test_rounded_columns_stay_and_few_rows_are_kept(weight, inputs):
    steps = column_steps(weight, inputs, 3, stops=5, rows=4)
    assert steps.change.shape == (5, 4, 40)
    assert torch.equal(steps.change[2][:, :20], steps.change[4][:, :20])


def test_every_stop_is_where_the_column_loop_of_the_paper_is(weight, inputs):
    """Algorithm 1 written once more, as it stands in the paper, without batches."""
    steps = column_steps(weight, inputs, 3, stops=41)
    hessian = inputs.hessian.double()
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(40, dtype=torch.float64)
    upper = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    scale = weight.abs().amax(1, keepdim=True) * 2 / 7
    now = weight.double()
    for column, change in zip(steps.columns, steps.change, strict=True):
        assert torch.allclose(change, (now - weight).float(), atol=1e-6)
        if column < 40:
            w = now[:, column : column + 1].clone()
            now[:, column : column + 1] = scale * (torch.round(w / scale) + 4).clamp(0, 7).sub(4)
            error = (w - now[:, column : column + 1]) / upper[column, column]
            now[:, column + 1 :] -= error * upper[column, column + 1 :]


def test_inputs_that_were_never_there_move_nothing(weight, x):
    x[:, [0, 7, 39]] = 0
    inputs = InputStatistics.empty(40, wants=frozenset({"square"}))
    inputs.add(x)
    steps = column_steps(weight, inputs, 3, stops=41)
    solved = gptq(
        weight, inputs, replace(qkit.GPTQ.paper(3, None, symmetric=True), scale_dtype="float32")
    ).q.dequantize()
    assert torch.equal(steps.change[-1], solved - weight)
    for column in (0, 7, 39):  # rounding them changes no other, and nothing changes them before
        assert torch.equal(steps.change[column][:, column + 1 :], steps.change[column + 1][:, column + 1 :])
        assert not steps.change[column][:, column].any()


def test_a_layer_that_saw_only_zeros_is_rounded(weight):
    inputs = InputStatistics.empty(40, wants=frozenset({"square"}))
    inputs.add(torch.zeros(3, 40))
    steps = column_steps(weight, inputs, 3, stops=3)
    assert steps.gptq == steps.rounding == (0.0, 0.0, 0.0) and steps.moved(1) == 0
    with pytest.raises(ValueError, match="stops=1 leaves out an end"):
        column_steps(weight, inputs, stops=1)


def test_what_is_left_of_a_columns_cost_is_what_the_best_change_of_those_after_it_leaves(inputs):
    """By least squares instead of Cholesky: the change of the free columns that makes the output error of column j least."""
    hessian = inputs.hessian.double()
    hessian = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(40)
    left = cost_left(inputs.hessian)
    for j in (0, 7, 38):
        free = torch.linalg.solve(hessian[j + 1 :, j + 1 :], hessian[j + 1 :, j])
        least = hessian[j, j] - hessian[j, j + 1 :] @ free
        assert left[j] == pytest.approx(float(least / hessian[j, j]), rel=1e-6)
    assert left[39] == pytest.approx(1)
