"""Maps of channels show the largest of each few neighbours, and nothing is lost between the pixels."""

import numpy as np
import pytest
import torch

from qkit import plots


def test_a_single_large_channel_is_seen_however_many_there_are():
    layer = torch.ones(1536)
    layer[247] = 30
    picture = plots.channel_maps({"a model": [layer, layer * 5]}, "outliers")
    assert picture.data["a model"].shape == (2, 192)
    assert np.array_equal(picture.data["a model"].max(1), [30, 30]) and picture.data["a model"].argmax() == 247 // 8
    assert picture.alt == (
        "outliers. a model, 2 layers of 1536 channels: the largest channel of a layer is 30 to 30 times its median."
    )


def test_few_channels_have_a_cell_each():
    values = torch.tensor([1.0, 2, 4])
    assert plots.channel_maps({"a": [values]}, "few").data["a"].tolist() == [[0.5, 1, 2]]


def test_layers_of_different_widths_and_none_are_refused():
    with pytest.raises(ValueError, match="the layers of 'a' have 3, 4 channels; draw them apart"):
        plots.channel_maps({"a": [torch.ones(3), torch.ones(4)]}, "two")
    with pytest.raises(ValueError, match="a map without layers"):
        plots.channel_maps({"a": []}, "none")
