"""The explorer of lesson 10, without a browser."""

import base64

import pytest

import qkit
from qkit.model.surgery import clone
from qkit.widgets import FileExplorer

LAYER = "model.layers.0.mlp.down_proj"


@pytest.fixture
def saved(make_model, tmp_path):
    model = make_model("llama", hidden_size=64, intermediate_size=96, head_dim=16)
    four = clone(model)
    qkit.quantize(four, qkit.RTN(4, 32, symmetric=True))
    return model, {
        form: qkit.save(four, tmp_path / form, format=form) for form in ("gptq", "awq", "compressed-tensors")
    }


@pytest.fixture
def explorer(saved):
    return FileExplorer(*saved, layer=LAYER, row=9, column=21)


def test_every_control_changes_the_image(explorer):
    seen = {explorer.image.value}
    for control, value in ((explorer.column, 22), (explorer.row, 3), (explorer.file, "awq")):
        control.value = value
        assert explorer.image.value not in seen, (control.description, value)
        seen.add(explorer.image.value)


def test_the_codes_are_those_of_the_model(explorer, saved):
    codes = qkit.quantize_tensor(saved[0].get_submodule(LAYER).weight.detach(), qkit.RTN(4, 32, symmetric=True)).codes()
    for file in explorer.file.options:
        explorer.file.value = file
        assert f"The code {codes[9, 21]} of row 9, column 21" in explorer.picture.alt


def test_sliders_end_where_the_weight_or_the_picture_does(explorer):
    assert (explorer.row.max, explorer.column.max) == (15, 95)  # 64 x 96


def test_what_is_not_on_offer_is_refused(saved):
    with pytest.raises(ValueError, match="file='exe' is not on offer; use one of 'gptq', 'awq'"):
        FileExplorer(*saved, file="exe")


def test_the_output_carries_a_picture_and_a_stable_line(explorer):
    data, metadata = explorer._repr_mimebundle_()
    assert data["text/plain"] == "FileExplorer(file='gptq', column=21, row=9)"
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert metadata["image/png"]["alt"].startswith("layers.0.mlp.down_proj, gptq. gptq: ")
