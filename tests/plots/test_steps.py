"""The figures of lesson 08 show what was counted and measured."""

import numpy as np
import pytest

from qkit import plots
from qkit.bench.record import Roof
from qkit.bench.roofline import Layer

ROOF = Roof(threads=2, gigabytes_per_second=32.0, float_gops=256.0, int8_gops=1024.0)
FLOATS, CODES = Layer(1024, 1024), Layer(1024, 1024, 4, 128)
MEASURED = {"FP32": (FLOATS, 200e-6), "slow": (CODES, 1e-3), "fast": (CODES, 20e-6)}


def points(axes, marker):
    return [tuple(line.get_xydata()[0]) for line in axes.lines if line.get_marker() == marker and len(line.get_xdata())]


def test_memory_feeds_up_to_the_peak():
    assert plots.attainable(ROOF, 2) == plots.attainable(ROOF, 2, integers=True) == 64
    assert plots.attainable(ROOF, 8) == plots.attainable(ROOF, 100) == 256
    assert plots.attainable(ROOF, 100, integers=True) == 1024


def test_each_step_stands_at_its_operations_a_byte_and_a_second():
    axes = plots.steps_on_roofline(ROOF, MEASURED).axes[0]
    expected = [(layer.intensity, layer.operations / seconds / 1e9) for layer, seconds in MEASURED.values()]
    assert np.allclose(sorted(points(axes, "o")), sorted(expected))
    numbers = {text.get_text(): text.xy for text in axes.texts if text.get_text() in "123"}
    assert np.allclose([numbers[str(n)] for n in (1, 2, 3)], expected)


def test_the_roofs_are_the_machine():
    axes = plots.steps_on_roofline(ROOF, MEASURED).axes[0]
    lines = [line for line in axes.lines if len(line.get_xdata()) == 200]
    for line, peak in zip(lines, (256, 1024), strict=True):
        x, y = line.get_xydata().T
        assert np.allclose(y, np.minimum(32 * x, peak))


def test_times_are_bars_and_what_the_bytes_take_are_marks():
    picture = plots.steps_on_roofline(ROOF, MEASURED)
    axes = picture.axes[1]
    assert np.allclose([bar.get_width() for bar in axes.patches], [0.2, 1, 0.02])
    marks = next(line for line in axes.lines if line.get_marker() == "|").get_xdata()
    assert np.allclose(marks, [1e3 * layer.bytes / 32e9 for layer, _ in MEASURED.values()])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1  FP32", "2  slow", "3  fast"]
    assert "1 FP32 0.2 ms, 2 slow 1 ms, 3 fast 0.02 ms" in picture.alt and "32 GB/s" in picture.alt


def test_one_layer_shows_what_bounds_it_and_what_was_measured():
    picture = plots.LayerOnRoofline(ROOF, CODES, {"floats": 30e-6, "INT8": 25e-6}, "a layer")
    read = CODES.bytes / 32e9
    widths = [bar.get_width() for bar in picture._bars]
    assert np.allclose(widths, [1e3 * read, CODES.operations / 256e6, CODES.operations / 1024e6, 0.03, 0.025])
    rates = [CODES.operations / seconds / 1e9 for seconds in (read, read, 30e-6, 25e-6)]
    marks = [*picture._rings.values(), *picture._dots.values()]
    assert np.allclose([mark.get_xydata()[0] for mark in marks], [(CODES.intensity, rate) for rate in rates])
    assert "floats bound by its bytes" in picture.alt and "INT8 bound by its bytes" in picture.alt
    assert "Measured: floats 0.03 ms, INT8 0.025 ms" in picture.alt and picture.alt.startswith("a layer:")


def test_past_the_ridge_operations_bound_it():
    picture = plots.LayerOnRoofline(ROOF, Layer(1024, 1024, 4, 128, tokens=64))
    assert "floats bound by its operations" in picture.alt and "INT8 bound by its operations" in picture.alt
    between = plots.LayerOnRoofline(ROOF, Layer(1024, 1024, 4, 128, tokens=4))
    assert "floats bound by its operations" in between.alt and "INT8 bound by its bytes" in between.alt


def test_floats_have_no_integer_way():
    picture = plots.LayerOnRoofline(ROOF, FLOATS)
    assert "INT8" not in picture.alt and "Measured: nothing" in picture.alt
    assert picture._bars[2].get_width() == 0 and picture._texts[2].get_text() == "-"
    assert not len(picture._rings["INT8"].get_xdata())


@pytest.mark.parametrize("measured", [None, {"floats": 1e-4}])
def test_other_data_give_the_picture_that_is_drawn_from_them(measured):
    picture = plots.LayerOnRoofline(ROOF, FLOATS, {"floats": 1e-3}, "first")
    fresh = plots.LayerOnRoofline(ROOF, CODES, measured, "second")
    picture.show(CODES, measured, "second")
    assert picture.alt == fresh.alt and picture.png() == fresh.png()
