"""The explorer of lesson 06, without a browser."""

import base64

from qkit import plots
from qkit.widgets import SmoothQuantExplorer


def test_every_control_changes_the_image_and_it_is_the_librarys(llama, ids):
    explorer = SmoothQuantExplorer(llama, ids, tokens=16)
    seen = {explorer.image.value}
    moves = (
        (explorer.alpha, 0.5),
        (explorer.layer, explorer.layer.options[3]),
        (explorer.activations, "per-tensor"),
    )
    for control, value in moves:
        control.value = value
        assert explorer.image.value not in seen
        seen.add(explorer.image.value)
    inputs = plots.smooth_inputs(llama, ids, tokens=16)
    assert explorer.picture.alt == plots.migration(inputs[3], 0.5, static=True).alt
    explorer.alpha.value = "none"
    assert explorer.picture.alt == plots.migration(inputs[3], None, static=True).alt


def test_losses_are_computed_once_for_each_input(llama, ids, monkeypatch):
    searched, losses = [], plots.SmoothInput.losses
    monkeypatch.setattr(plots.SmoothInput, "losses", lambda one, static: searched.append(static) or losses(one, static))
    explorer = SmoothQuantExplorer(llama, ids, tokens=16)
    for alpha in (0.1, 0.2, "none"):
        explorer.alpha.value = alpha
    explorer.activations.value = "per-tensor"
    assert searched == [False, True]


def test_the_output_carries_a_picture_and_a_stable_line(llama, ids):
    data, metadata = SmoothQuantExplorer(llama, ids, layer=3, alpha=0.5, tokens=16)._repr_mimebundle_()
    name = "layers.0: mlp.up_proj → mlp.down_proj"
    assert data["text/plain"] == f"SmoothQuantExplorer(layer='{name}', alpha=0.5, activations='per-token')"
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert name in metadata["image/png"]["alt"]
