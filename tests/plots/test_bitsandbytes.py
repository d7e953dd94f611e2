"""The figures of lesson 03 show what the functions computed."""

import numpy as np
import pytest
import torch

import qkit
from qkit import plots
from qkit.model.inputs import input_maxima


@pytest.fixture
def weight():
    return torch.randn(16, 128, generator=torch.Generator().manual_seed(0)) * 0.1


@pytest.fixture
def maxima(llama, ids):
    return input_maxima(llama, ids)


def test_the_map_marks_what_reaches_the_threshold_and_counts_the_columns(maxima):
    picture = plots.outlier_map(maxima, ["token"] * 40, 1.5)
    assert np.array_equal(~picture._above.get_array().mask, maxima.by_token.numpy() >= 1.5)
    assert [bar.get_width() for bar in picture._rectangles] == maxima.outlier_columns(1.5)
    assert f"{sum(maxima.outlier_columns(1.5))} of 488 columns" in picture.alt


def test_the_map_shown_another_threshold_equals_one_drawn_with_it(maxima):
    picture, fresh = (plots.outlier_map(maxima, ["token"] * 40, threshold) for threshold in (6.0, 0.5))
    picture.show(0.5)
    assert picture.alt == fresh.alt
    assert np.array_equal(picture._above.get_array().mask, fresh._above.get_array().mask)


def test_inputs_are_called_by_block_and_layers():
    assert plots.input_label(["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"]) == "0 gate up"
    assert plots.input_label(["transformer.h.11.attn.c_attn"]) == "11 c_attn"
    assert plots.input_label(["linear"]) == "linear"


def test_the_levels_are_those_that_a_block_with_absmax_one_can_hold():
    sweep = torch.linspace(-1, 1, 4096).reshape(1, -1)
    schemes = {"NF4": qkit.NF4(4096, False), "FP4": qkit.FP4(4096, False)}
    schemes["INT4"] = qkit.RTN(4, symmetric=True, scale_dtype="float32")
    for name, levels in plots.four_bit_levels().items():
        held = qkit.quantize_tensor(sweep, schemes[name]).dequantize().unique()
        assert len(held) >= 15  # of two levels half a step away the end of INT4's range falls on one
        assert (held[:, None] - levels).abs().amin(1).max() < 1e-6


def test_sqnr_is_that_of_the_library_and_blocks_run_over_rows(weight):
    sqnr = plots.four_bit_sqnr(weight, 256)
    expected = qkit.quantize_tensor(weight, qkit.NF4(256, double_quant=False)).dequantize()
    assert sqnr["NF4"] == pytest.approx(qkit.sqnr_db(weight, expected))
    assert sqnr["NF4"] > sqnr["INT4"] > sqnr["FP4"]
    with pytest.raises(ValueError, match="block_size=4096 does not divide 2048 weights"):
        plots.four_bit_sqnr(weight, 4096)


def test_the_histogram_counts_every_weight_in_units_of_its_block(weight):
    picture = plots.codebook_levels(weight, 32)
    shares, edges, _ = picture._stairs.get_data()
    inside = weight.reshape(-1, 32) / weight.reshape(-1, 32).abs().amax(1, keepdim=True)
    assert shares.sum() == pytest.approx(1)
    assert np.abs(shares * 2048 - np.histogram(inside, edges)[0]).sum() <= 130  # -1 and 1 lie on edges: 64 blocks
    assert f"NF4 {plots.four_bit_sqnr(weight, 32)['NF4']:.1f} dB" in picture.alt


def test_other_data_give_the_picture_that_is_drawn_from_them(weight):
    picture, fresh = plots.codebook_levels(weight, 32, "first"), plots.codebook_levels(2 + weight, 64, "second")
    picture.show(2 + weight, 64, "second")
    assert picture.alt == fresh.alt
    assert np.array_equal(picture._stairs.get_data()[0], fresh._stairs.get_data()[0])


def test_zeros_can_be_drawn():
    assert plots.codebook_levels(torch.zeros(2, 64)).png().startswith(b"\x89PNG")
