"""The figures of lesson 04 show what the functions computed."""

import numpy as np
import pytest
import torch

import qkit
from drawn import same_data
from qkit import plots
from qkit.methods.statistics import InputStatistics


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


def test_the_picture_shows_the_stop(weight, inputs):
    steps = plots.column_steps(weight, inputs, 3, stops=5)
    picture = plots.compensation_picture(steps, 2, "first")
    change = steps.change[2].square().mean(0).sqrt().numpy()
    assert np.allclose(picture.data["error"][:20], change[:20]) and not picture.data["error"][20:].any()
    assert np.allclose(picture.data["moved"][20:], change[20:]) and not picture.data["moved"][:20].any()
    rounded = qkit.quantize_tensor(weight, qkit.RTN(3, symmetric=True, scale_dtype="float32")).dequantize()
    assert picture.data["plain"] == pytest.approx(float((rounded - weight).square().mean().sqrt()), rel=1e-5)
    assert np.allclose(picture.data["gptq"], [100 * value for value in steps.gptq])
    assert (picture.data["column"], picture.data["rounding_now"]) == (20, 100 * steps.rounding[2])
    assert "after 20 of 40 columns" in picture.alt


def test_other_data_give_the_picture_that_is_drawn_from_them(weight, inputs):
    one, other = (plots.column_steps(weight, inputs, bits, stops=5) for bits in (4, 2))
    picture, fresh = plots.CompensationPicture(one, 1, "first"), plots.CompensationPicture(other, 4, "second")
    picture.show(other, 4, "second")
    assert picture.alt == fresh.alt
    same_data(picture, fresh)
    assert [axes.get_ylim() for axes in picture.axes] == [axes.get_ylim() for axes in fresh.axes]


def test_a_weight_without_error_can_be_drawn(inputs):
    steps = plots.column_steps(torch.zeros(3, 40), inputs, stops=3)
    assert plots.compensation_picture(steps, 1).png().startswith(b"\x89PNG")


def test_against_chunks_plots_what_it_is_given():
    picture = plots.against_chunks([1, 4], {"one": [5.0, 3.0], "two": [4.0, 2.5]}, 3.2, "rounding", "error")
    assert picture.data["values of one"].tolist() == [5.0, 3.0] and picture.data["values of two"].tolist() == [4.0, 2.5]
    assert picture.data["chunks"].tolist() == [1, 4] and picture.data["level"] == 3.2
    assert "one: 1 chunks 5.00, 4 chunks 3.00. two: 1 chunks 4.00" in picture.alt


def test_what_is_passed_on_is_drawn_in_percent(inputs):
    left = plots.cost_left(inputs.hessian)
    picture = plots.passed_on({"a layer": left}, "weights")
    assert np.allclose(picture.data["left of a layer"], 100 * left.numpy())
    assert "100% of the last column's" in picture.alt
    with pytest.raises(ValueError, match="no layer to draw"):
        plots.passed_on({})
    with pytest.raises(ValueError, match="broken"):
        plots.passed_on({"broken": left * float("nan")})
