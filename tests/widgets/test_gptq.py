"""The explorer of lesson 04, without a browser."""

import base64

import pytest

from qkit import plots
from qkit.model.inputs import layer_statistics
from qkit.widgets import CompensationExplorer

LAYERS = ["model.layers.0.mlp.gate_proj", "model.layers.1.mlp.down_proj"]


@pytest.fixture
def explorer(llama, ids):
    return CompensationExplorer(llama, ids, LAYERS, bits=3)


def test_every_control_changes_the_image(explorer):
    seen = {explorer.image.value}
    for control, value in ((explorer.column, 12), (explorer.bits, 2), (explorer.layer, LAYERS[1])):
        control.value = value
        assert explorer.image.value not in seen
        seen.add(explorer.image.value)


def test_the_slider_follows_the_width_of_the_layer_and_keeps_its_place(explorer):
    assert (explorer.column.value, explorer.column.options[-1]) == (24, 48)
    explorer.layer.value = LAYERS[1]
    assert (explorer.column.value, explorer.column.options[-1]) == (50, 100)
    assert "after 50 of 100 columns" in explorer.picture.alt


def test_what_is_drawn_is_what_the_library_computes(explorer, llama, ids):
    explorer.layer.value, explorer.bits.value = LAYERS[1], 2
    weight = llama.get_submodule(LAYERS[1]).weight.detach()
    steps = plots.column_steps(weight, layer_statistics(llama, ids, LAYERS)[LAYERS[1]], 2)
    assert explorer.picture.alt == plots.compensation_picture(steps, 16, "layers.1.mlp.down_proj, 2 bits").alt


def test_a_layer_is_solved_once(llama, ids, monkeypatch):
    solved = []
    monkeypatch.setattr(
        "qkit.widgets.gptq.column_steps", lambda *args: solved.append(args[2]) or plots.column_steps(*args)
    )
    explorer = CompensationExplorer(llama, ids, LAYERS, bits=3)
    for column, bits in ((0, 3), (12, 2), (24, 3)):
        explorer.column.value, explorer.bits.value = column, bits
    assert solved == [3, 2]


def test_the_output_carries_a_picture_and_a_stable_line(explorer):
    data, metadata = explorer._repr_mimebundle_()
    assert data["text/plain"] == "CompensationExplorer(layer='model.layers.0.mlp.gate_proj', bits=3, column=24)"
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert "GPTQ on layers.0.mlp.gate_proj" in metadata["image/png"]["alt"]
