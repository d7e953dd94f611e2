"""Widgets without a browser: a control moves, and the picture's data follow."""

import base64

import numpy as np
import pytest
import torch

import qkit
from qkit.widgets import ErrorExplorer, HistogramExplorer, group_options


@pytest.fixture
def weights():
    generator = torch.Generator().manual_seed(0)
    return {"first": torch.randn(8, 64, generator=generator), "second": 5 * torch.randn(4, 96, generator=generator)}


@pytest.mark.parametrize("cls", [HistogramExplorer, ErrorExplorer])
def test_every_control_changes_the_image(cls, weights):
    explorer = cls(weights)
    seen = {explorer.image.value}
    moves = ((explorer.bits, 3), (explorer.group_size, 16), (explorer.symmetric, True), (explorer.layer, "second"))
    for control, value in moves:
        control.value = value
        assert explorer.image.value not in seen
        seen.add(explorer.image.value)


def test_what_is_drawn_is_what_the_library_computes(weights):
    explorer = HistogramExplorer(weights, layer="second", bits=4)
    explorer.bits.value, explorer.group_size.value = 3, 32
    expected = qkit.quantize_tensor(weights["second"], bits=3, group_size=32).dequantize()
    counts, edges = explorer.picture.data["after"], explorer.picture.data["edges"]
    assert np.abs(counts - np.histogram(expected.numpy(), edges)[0]).sum() <= 4
    assert f"SQNR {qkit.sqnr_db(weights['second'], expected):.1f} dB" in explorer.picture.alt


def test_the_output_carries_a_picture_and_a_stable_line_for_readers_without_a_kernel(weights):
    data, metadata = HistogramExplorer(weights, bits=3)._repr_mimebundle_()
    assert data["text/plain"] == "HistogramExplorer(layer='first', bits=3, group_size='row', symmetric=False)"
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert "application/vnd.jupyter.widget-view+json" in data
    assert "Histogram of first" in metadata["image/png"]["alt"]


def test_group_sizes_on_offer_divide_every_layer(weights):
    assert group_options(weights) == [("whole tensor", "tensor"), ("row", "row"), ("32", 32), ("16", 16)]


def test_a_model_is_explored_by_its_linear_layers(llama):
    explorer = ErrorExplorer(llama)
    assert all(name.startswith("model.layers.") for name in explorer.layer.options)
