"""The explorer of lesson 08, without a browser."""

import base64

import pytest

from qkit import plots
from qkit.bench.record import Roof
from qkit.bench.roofline import Layer
from qkit.widgets import RooflineExplorer

ROOF = Roof(threads=2, gigabytes_per_second=32.0, float_gops=256.0, int8_gops=1024.0)
KNOWN = Layer(4096, 4096, 4, 128, 4)


@pytest.fixture
def explorer(llama):
    return RooflineExplorer(llama, ROOF, {KNOWN: {"floats": 2e-3, "INT8": 1e-3}}, bits=4, group_size=128, tokens=1)


def test_every_control_changes_the_image(explorer):
    seen = {explorer.image.value}
    moves = (
        (explorer.tokens, 4),
        (explorer.bits, 8),
        (explorer.group_size, 32),
        (explorer.shape, (11008, 4096)),
        (explorer.bits, 32),
    )
    for control, value in moves:
        control.value = value
        assert explorer.image.value not in seen, (control.description, value)
        seen.add(explorer.image.value)


def test_what_was_measured_is_drawn_where_it_was_measured_and_nowhere_else(explorer):
    assert "Measured: nothing" in explorer.picture.alt
    explorer.tokens.value = 4
    assert "Measured: floats 2 ms, INT8 1 ms" in explorer.picture.alt
    explorer.group_size.value = 64
    assert "Measured: nothing" in explorer.picture.alt


def test_what_is_drawn_is_what_the_library_counts(explorer):
    explorer.bits.value, explorer.group_size.value, explorer.tokens.value = 2, "row", 64
    fresh = plots.LayerOnRoofline(
        ROOF, Layer(4096, 4096, 2, None, 64), None, "4096 x 4096, W2 a scale a row, 64 tokens"
    )
    assert explorer.picture.alt == fresh.alt


def test_the_shapes_are_those_of_the_model_and_two_large_ones(explorer, llama):
    shapes = {tuple(m.weight.shape) for name, m in llama.named_modules() if name.endswith("_proj")}
    assert {shape for _, shape in explorer.shape.options} == shapes | {(4096, 4096), (11008, 4096)}
    for shape in shapes:  # 128 does not divide their widths: a scale a row
        explorer.shape.value = shape
        assert "W4 a scale a row, 1 token:" in explorer.picture.alt


def test_plain_floats_have_no_groups(explorer):
    explorer.bits.value = 16
    before = explorer.picture.alt
    assert before.startswith("4096 x 4096, 16 bits, 1 token:")
    explorer.group_size.value = 32
    assert explorer.picture.alt == before


def test_the_output_carries_a_picture_and_a_stable_line(explorer):
    data, metadata = explorer._repr_mimebundle_()
    assert data["text/plain"] == "RooflineExplorer(bits=4, group_size=128, tokens=1, shape=(4096, 4096))"
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert metadata["image/png"]["alt"].startswith("4096 x 4096, W4 g128, 1 token: 8.7 MB")


def test_it_can_begin_with_a_scale_a_row(llama):
    explorer = RooflineExplorer(llama, ROOF, group_size=None)
    assert explorer.picture.alt.startswith("4096 x 4096, W4 a scale a row, 1 token")
    explorer.group_size.value = 32
    assert "W4 g32" in explorer.picture.alt
