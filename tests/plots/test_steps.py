"""The figures of lesson 08 show what was counted and measured."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.text import Annotation

from qkit import plots
from qkit.bench.record import Roof
from qkit.bench.roofline import Layer

ROOF = Roof(threads=2, gigabytes_per_second=32.0, float_gops=256.0, int8_gops=1024.0)
FLOATS, CODES = Layer(1024, 1024), Layer(1024, 1024, 4, 128)
MEASURED = {"FP32": (FLOATS, 200e-6), "slow": (CODES, 1e-3), "fast": (CODES, 20e-6)}


def test_each_step_stands_at_its_operations_a_byte_and_a_second_and_has_its_number():
    picture = plots.steps_on_roofline(ROOF, MEASURED)
    expected = [(layer.intensity, layer.operations / seconds / 1e9) for layer, seconds in MEASURED.values()]
    assert np.allclose(np.stack([picture.data["intensity"], picture.data["rates"]], 1), expected)
    numbers = {text.get_text(): text.xy for text in picture.axes[0].texts if text.get_text() in "123"}
    assert np.allclose([numbers[str(n)] for n in (1, 2, 3)], expected)


def test_numbers_of_steps_that_take_the_same_time_do_not_lie_on_one_another():
    seconds = (1e-3, 500e-6, 100e-6, 99e-6, 98e-6, 97e-6, 20e-6, 20e-6, 20e-6)
    picture = plots.steps_on_roofline(ROOF, {f"step {n}": (CODES, s) for n, s in enumerate(seconds, 1)})
    picture.canvas.draw()
    texts = [text for text in picture.axes[0].texts if isinstance(text, Annotation)]
    numbers = [int(number) for text in texts for number in text.get_text().split(", ")]
    assert sorted(numbers) == list(range(1, 10)) and len(texts) < 9
    boxes = [text.get_window_extent() for text in texts]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


@pytest.mark.parametrize("most", [0.25, 0.293, 0.9, 5.0, 70.0])
def test_an_axis_of_times_has_two_ticks_at_least(most):
    picture = plots.grouped_times({"one": {"a": 0.229e-3}, "two": {"a": 1e-3 * most}}, "two cases")
    picture.canvas.draw()
    axis = picture.axes[0].xaxis
    low, high = axis.get_view_interval()
    inside = [
        (place, text.get_text()) for place, text in zip(axis.get_majorticklocs(), axis.get_ticklabels(), strict=True)
    ]
    inside = [(place, text) for place, text in inside if low <= place <= high]
    assert 2 <= len(inside) <= 9 and all(float(text) == pytest.approx(place) for place, text in inside)


def test_the_roofs_are_the_machine():
    data = plots.steps_on_roofline(ROOF, MEASURED).data
    for way, peak in (("floats", 256), ("INT8", 1024)):
        assert np.allclose(data[f"attainable, {way}"], np.minimum(32 * data["intensities"], peak))


def test_times_are_bars_and_what_the_bytes_take_are_marks():
    picture = plots.steps_on_roofline(ROOF, MEASURED)
    assert np.allclose(picture.data["milliseconds"], [0.2, 1, 0.02])
    assert np.allclose(picture.data["floors"], [1e3 * layer.bytes / 32e9 for layer, _ in MEASURED.values()])
    assert [label.get_text() for label in picture.axes[1].get_yticklabels()] == ["1  FP32", "2  slow", "3  fast"]
    assert "1 FP32 0.2 ms, 2 slow 1 ms, 3 fast 0.02 ms" in picture.alt and "32 GB/s" in picture.alt


def test_the_times_alone_are_those_beside_the_roofline_and_the_first_number_can_be_another():
    alone, beside = plots.step_times(ROOF, MEASURED, first=0), plots.steps_on_roofline(ROOF, MEASURED, first=0)
    for name in ("names", "milliseconds", "floors"):
        assert list(alone.data[name]) == list(beside.data[name])
    assert [label.get_text() for label in alone.axes[0].get_yticklabels()] == ["0  FP32", "1  slow", "2  fast"]
    assert alone.alt.startswith("0 FP32 0.2 ms, 1 slow 1 ms, 2 fast 0.02 ms. What the bytes take at least: FP32")


def test_what_a_page_is_compared_by_holds_no_time():
    cases = {"one": {"a": 1e-3, "b": 2.345e-3}, "two": {"a": 5e-3, "b": 6e-3}}
    pictures = (
        plots.steps_on_roofline(ROOF, MEASURED),
        plots.step_times(ROOF, MEASURED),
        plots.LayerOnRoofline(ROOF, CODES, {"floats": 30e-6}, "a layer"),
        plots.grouped_times(cases, "two cases"),
        plots.listing("vpdpbusd %zmm1\njne 1", "a loop"),
    )
    for picture in pictures:
        text = picture._repr_mimebundle_()[0]["text/plain"]
        assert text == picture.constant and not {" ms,", "2.3", "0.03", "vpdpbusd"} & set(text.split())
    assert "2.34" in pictures[3].alt and "vpdpbusd" in pictures[4].alt


def test_times_of_cases_are_bars_in_one_unit_and_cases_have_the_same_names():
    picture = plots.grouped_times({"one": {"a": 1e-3, "b": 2e-3}, "two": {"a": 5e-6, "b": 6e-6}}, "cases", unit="us")
    assert list(picture.data["one"]) == [1000, 2000] and np.allclose(picture.data["two"], [5, 6])
    with pytest.raises(ValueError, match="each case needs the same names"):
        plots.grouped_times({"one": {"a": 1e-3}, "two": {"b": 1e-3}}, "cases")
    with pytest.raises(ValueError, match="'a, one' took 0 seconds"):
        plots.grouped_times({"one": {"a": 0}}, "cases")


def test_a_listing_is_its_lines_and_marks_those_that_hold_a_word():
    picture = plots.listing("\tvmov\t%zmm1\n\n\tvpdpbusd\t%zmm1", "a loop", ["vpdpbusd"])
    assert list(picture.data["lines"]) == ["vmov %zmm1", "vpdpbusd %zmm1"]
    colours = {text.get_text(): text.get_color() for text in picture.axes[0].texts}
    assert colours == {"vmov %zmm1": "black", "vpdpbusd %zmm1": plots.RED}
    with pytest.raises(ValueError, match="there is no line in 'a loop'"):
        plots.listing(" \n", "a loop")


def test_one_layer_shows_what_bounds_it_and_what_was_measured():
    picture = plots.LayerOnRoofline(ROOF, CODES, {"floats": 30e-6, "INT8": 25e-6}, "a layer")
    read = CODES.bytes / 32e9
    assert np.allclose(
        picture.data["milliseconds"], [1e3 * read, CODES.operations / 256e6, CODES.operations / 1024e6, 0.03, 0.025]
    )
    assert picture.data["intensity"] == CODES.intensity
    assert np.allclose(picture.data["at best"], CODES.operations / read / 1e9)
    assert np.allclose(picture.data["measured"], [CODES.operations / seconds / 1e9 for seconds in (30e-6, 25e-6)])
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
    assert np.isnan(picture.data["milliseconds"]).tolist() == [False, False, True, True, True]
    assert np.isnan(picture.data["at best"]).tolist() == [False, True]
    assert [text.get_text() for text in picture.axes[1].texts][2:] == ["-", "-", "-"]


@pytest.mark.parametrize("measured", [None, {"floats": 1e-4}])
def test_other_data_give_the_picture_that_is_drawn_from_them(measured):
    picture = plots.LayerOnRoofline(ROOF, FLOATS, {"floats": 1e-3}, "first")
    fresh = plots.LayerOnRoofline(ROOF, CODES, measured, "second")
    picture.show(CODES, measured, "second")
    assert picture.alt == fresh.alt and picture.png() == fresh.png()
