"""The figures of lesson 03 show what the functions computed."""

import numpy as np
import pytest
import torch

from drawn import same_data
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
    assert np.array_equal(picture.data["above"], maxima.by_token.numpy() >= 1.5)
    assert picture.data["columns"].tolist() == maxima.outlier_columns(1.5)
    assert f"{sum(maxima.outlier_columns(1.5))} of 488 columns" in picture.alt


def test_the_map_shown_another_threshold_equals_one_drawn_with_it(maxima):
    picture, fresh = (plots.outlier_map(maxima, ["token"] * 40, threshold) for threshold in (6.0, 0.5))
    picture.show(0.5)
    assert picture.alt == fresh.alt
    same_data(picture, fresh)


def test_inputs_are_called_by_block_and_layers():
    assert plots.input_label(["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"]) == "0 gate up"
    assert plots.input_label(["transformer.h.11.attn.c_attn"]) == "11 c_attn"
    assert plots.input_label(["linear"]) == "linear"


def test_the_histogram_counts_every_weight_in_units_of_its_block(weight):
    picture = plots.codebook_levels(weight, 32)
    shares, edges = picture.data["shares"], picture.data["edges"]
    inside = weight.reshape(-1, 32) / weight.reshape(-1, 32).abs().amax(1, keepdim=True)
    assert shares.sum() == pytest.approx(1)
    assert np.abs(shares * 2048 - np.histogram(inside, edges)[0]).sum() <= 130  # -1 and 1 lie on edges: 64 blocks
    assert f"NF4 {plots.four_bit_sqnr(weight, 32)['NF4']:.1f} dB" in picture.alt


def test_other_data_give_the_picture_that_is_drawn_from_them(weight):
    picture, fresh = plots.codebook_levels(weight, 32, "first"), plots.codebook_levels(2 + weight, 64, "second")
    picture.show(2 + weight, 64, "second")
    assert picture.alt == fresh.alt
    same_data(picture, fresh)


def test_zeros_can_be_drawn():
    assert plots.codebook_levels(torch.zeros(2, 64)).png().startswith(b"\x89PNG")


def test_the_use_of_levels_is_drawn_in_percent_and_needs_a_share_for_each():
    picture = plots.levels_used({"a layer": torch.tensor([0.1, 0.9])}, torch.tensor([-1.0, 1.0]), "two levels")
    assert picture.data["use by a layer"].tolist() == pytest.approx([10, 90]) and picture.data["even"] == 50
    assert "a layer from 10.0% to 90.0%; all alike would be 50.00%" in picture.alt
    with pytest.raises(ValueError, match="'b' has 3 shares for 2 levels"):
        plots.levels_used({"b": torch.ones(3)}, torch.tensor([-1.0, 1.0]))
    with pytest.raises(ValueError, match="no use of levels"):
        plots.levels_used({}, torch.tensor([-1.0, 1.0]))


def test_channels_are_ranked_by_their_largest_and_those_that_reach_the_threshold_are_counted():
    picture = plots.channel_ranks({"one": torch.tensor([0.5, 9.0, 6.0])}, title="a layer")
    assert picture.data["channels of one"].tolist() == [9.0, 6.0, 0.5]
    assert "one: 2 of 3 reach 6, the largest is 9" in picture.alt
    with pytest.raises(ValueError, match="no input to draw"):
        plots.channel_ranks({})
    with pytest.raises(ValueError, match="one"):
        plots.channel_ranks({"one": torch.tensor([float("nan"), 1.0])})
