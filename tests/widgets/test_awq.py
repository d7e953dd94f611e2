"""The explorer of lesson 05, without a browser."""

import base64

import pytest

import qkit
from qkit import plots
from qkit.widgets import AWQExplorer


@pytest.fixture
def searched(llama, ids):
    return llama, qkit.search_scales(llama, qkit.AWQ(bits=3, group_size=4, grid=4), calibration=ids.repeat(8, 1))


def test_every_control_changes_the_image_and_it_is_the_librarys(searched):
    model, scaling = searched
    explorer = AWQExplorer(model, scaling, group_size=4)
    seen = {explorer.image.value}
    for control, value in ((explorer.alpha, 0.5), (explorer.layer, explorer.layer.options[3])):
        control.value = value
        assert explorer.image.value not in seen
        seen.add(explorer.image.value)
    assert explorer.picture.alt == plots.alpha_search(model, scaling[3], 0.5, 4).alt
    explorer.alpha.value = "no scaling"
    assert explorer.picture.alt == plots.alpha_search(model, scaling[3], None, 4).alt


def test_the_output_carries_a_picture_and_a_stable_line(searched):
    data, metadata = AWQExplorer(*searched, fold=1, alpha=0.25, group_size=4)._repr_mimebundle_()
    name = "layers.0: self_attn.v_proj → self_attn.o_proj"
    assert data["text/plain"] == f"AWQExplorer(layer='{name}', alpha=0.25)"
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert name in metadata["image/png"]["alt"]


def test_scales_of_another_search_are_refused(llama, ids):
    smooth = qkit.search_scales(llama, qkit.SmoothQuant(0.5), calibration=ids.repeat(8, 1))
    with pytest.raises(ValueError, match="was not searched by AWQ"):
        AWQExplorer(llama, smooth)
    with pytest.raises(ValueError, match="was not searched by AWQ"):
        AWQExplorer(llama, qkit.Scaling())
