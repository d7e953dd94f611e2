"""The figures of lesson 04 show what the functions computed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import qkit
from qkit import plots
from qkit.methods.gptq import gptq
from qkit.model.calibration import InputStatistics


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
    assert plots.output_error(weight, w_hat, inputs.hessian) == pytest.approx(float(expected), rel=1e-4)
    assert plots.output_error(weight, weight, inputs.hessian) == 0


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_steps_begin_at_the_original_and_end_at_what_the_library_computes(weight, inputs, bits):
    steps = plots.column_steps(weight, inputs, bits, stops=9)
    assert steps.columns == (0, 5, 10, 15, 20, 25, 30, 35, 40)
    solved = gptq(weight, inputs, replace(qkit.GPTQ.paper(bits, None), scale_dtype="float32")).q.dequantize()
    rounded = qkit.quantize_tensor(weight, qkit.RTN(bits, symmetric=True, scale_dtype="float32")).dequantize()
    assert steps.change[0].abs().max() == 0
    assert torch.allclose(steps.change[-1], solved - weight, atol=1e-6)
    assert steps.gptq[0] == steps.rounding[0] == 0
    assert steps.gptq[-1] == pytest.approx(plots.output_error(weight, solved, inputs.hessian), rel=1e-4)
    assert steps.rounding[-1] == pytest.approx(plots.output_error(weight, rounded, inputs.hessian), rel=1e-4)


def test_rounded_columns_stay_and_few_rows_are_kept(weight, inputs):
    steps = plots.column_steps(weight, inputs, 3, stops=5, rows=4)
    assert steps.change.shape == (5, 4, 40)
    assert torch.equal(steps.change[2][:, :20], steps.change[4][:, :20])


def test_the_picture_shows_the_stop(weight, inputs):
    steps = plots.column_steps(weight, inputs, 3, stops=5)
    picture = plots.compensation_picture(steps, 2, "first")
    assert np.array_equal(picture._image.get_array(), steps.change[2].numpy())
    assert np.allclose(picture._curves[1].get_ydata(), [100 * value for value in steps.gptq])
    assert picture._dots[0].get_xydata().tolist() == [[20, 100 * steps.rounding[2]]]
    assert "after 20 of 40 columns" in picture.alt


def test_other_data_give_the_picture_that_is_drawn_from_them(weight, inputs):
    one, other = (plots.column_steps(weight, inputs, bits, stops=5) for bits in (4, 2))
    picture, fresh = plots.CompensationPicture(one, 1, "first"), plots.CompensationPicture(other, 4, "second")
    picture.show(other, 4, "second")
    assert picture.alt == fresh.alt
    assert np.array_equal(picture._image.get_array(), fresh._image.get_array())
    assert picture._axes.get_ylim() == fresh._axes.get_ylim()


def test_a_weight_without_error_can_be_drawn(inputs):
    steps = plots.column_steps(torch.zeros(3, 40), inputs, stops=3)
    assert plots.compensation_picture(steps, 1).png().startswith(b"\x89PNG")


def test_against_chunks_plots_what_it_is_given():
    picture = plots.against_chunks([1, 4], {"one": [5.0, 3.0], "two": [4.0, 2.5]}, 3.2, "rounding", "error")
    assert [list(line.get_ydata()) for line in picture.axes[0].lines] == [[5.0, 3.0], [4.0, 2.5], [3.2, 3.2]]
    assert "one: 1 chunks 5.00, 4 chunks 3.00. two: 1 chunks 4.00" in picture.alt
