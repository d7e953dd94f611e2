"""The explorers of lesson 03, without a browser."""

import base64

import pytest
import torch

from qkit import plots
from qkit.model.inputs import input_maxima
from qkit.widgets import CodebookExplorer, OutlierExplorer


@pytest.fixture
def weights():
    generator = torch.Generator().manual_seed(0)
    return {"first": torch.randn(8, 64, generator=generator), "second": torch.rand(16, 96, generator=generator)}


def test_the_threshold_moves_the_map(llama, ids):
    explorer = OutlierExplorer(llama, ids[:1], list("abcdefghijklmnopqrst"), threshold=2)
    before = explorer.image.value
    explorer.threshold.value = 1.0
    assert explorer.image.value != before
    expected = plots.outlier_map(input_maxima(llama, ids[:1]), list("abcdefghijklmnopqrst"), 1.0)
    assert explorer.picture.alt == expected.alt


def test_a_threshold_of_ones_own_is_on_the_slider(llama, ids):
    assert OutlierExplorer(llama, ids[:1], ["t"] * 20, threshold=5.5).threshold.value == 5.5


def test_layer_and_block_size_move_the_levels(weights):
    explorer = CodebookExplorer(weights)
    assert explorer.block_size.options == (32, 64, 128, 256, 512)
    seen = {explorer.image.value}
    for control, value in ((explorer.block_size, 128), (explorer.layer, "second")):
        control.value = value
        assert explorer.image.value not in seen
        seen.add(explorer.image.value)
    assert explorer.picture.alt == plots.codebook_levels(weights["second"], 128, "second").alt


def test_a_model_is_explored_by_its_linear_layers(llama):
    assert CodebookExplorer(llama, block_size=32).layer.value == "model.layers.0.self_attn.q_proj"


def test_the_output_carries_a_picture_and_a_stable_line(weights):
    data, metadata = CodebookExplorer(weights, block_size=32)._repr_mimebundle_()
    assert data["text/plain"] == "CodebookExplorer(layer='first', block_size=32)"
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert "application/vnd.jupyter.widget-view+json" in data
    assert "Histogram of first" in metadata["image/png"]["alt"]
