"""The explorer of lesson 09, without a browser."""

import base64

import pytest

import qkit
from qkit.backends.triton.layout import pack_words
from qkit.widgets import WordExplorer


@pytest.fixture
def explorer(llama):
    return WordExplorer(llama, bits=4, row=9, column=21)


def test_every_control_changes_the_image(explorer):
    seen = {explorer.image.value}
    for control, value in ((explorer.column, 22), (explorer.row, 3), (explorer.bits, 2), (explorer.bits, 8)):
        control.value = value
        assert explorer.image.value not in seen, (control.description, value)
        seen.add(explorer.image.value)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_codes_are_those_of_the_weight(explorer, llama, bits):
    explorer.bits.value = bits
    codes = qkit.quantize_tensor(
        llama.model.layers[0].self_attn.q_proj.weight.detach(), bits=bits, symmetric=True
    ).codes()
    word = pack_words(codes, bits)
    assert f"The code {codes[9, 21]} of row 9, column 21" in explorer.picture.alt
    assert any(f"0x{int(w) & 0xFFFFFFFF:08x}" == explorer.picture.data["words"][0] for w in word)


def test_sliders_end_where_the_weight_or_the_picture_does(explorer, llama):
    assert (explorer.row.max, explorer.column.max) == (15, 47)  # 48 x 48
    assert WordExplorer(llama, "model.layers.0.mlp.down_proj", column=99).column.max == 99  # 48 x 100


def test_the_output_carries_a_picture_and_a_stable_line(explorer):
    data, metadata = explorer._repr_mimebundle_()
    assert data["text/plain"] == "WordExplorer(column=21, row=9, bits=4)"
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert metadata["image/png"]["alt"].startswith("layers.0.self_attn.q_proj, 4 bits. The code ")
