"""The figures of lesson 07 show the points, the frontier and the choices that they were given."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qkit
from qkit import plots

POINTS = {
    "RTN W3 g128": (8.1, 1.9),
    "GPTQ W4 g128": (9.7, 0.2),
    "NF4 b64 dq": (9.7, 0.3),
    "LLM.int8": (15.9, 0.006),
    "RTN W8 per channel": (15.8, 0.002),
}


def test_the_frontier_leaves_out_what_another_beats():
    assert plots.frontier(POINTS) == ["RTN W3 g128", "GPTQ W4 g128", "RTN W8 per channel"]


@given(st.dictionaries(st.text(max_size=3), st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1))
def test_the_frontier_is_what_nothing_dominates(points):
    kept = {points[name] for name in plots.frontier(points)}
    for a in points.values():
        dominated = any(b[0] <= a[0] and b[1] <= a[1] and b != a for b in points.values())
        assert (a in kept) != dominated


@pytest.mark.parametrize(
    ("megabytes", "best"), [(5, None), (8.1, "RTN W3 g128"), (15, "GPTQ W4 g128"), (99, "RTN W8 per channel")]
)
def test_the_best_that_fits_is_ringed_and_named(megabytes, best):
    picture = plots.LossAgainstBytes(POINTS, megabytes=megabytes)
    assert plots.best_that_fits(POINTS, megabytes) == best
    ring = picture._ring.get_xydata().tolist()
    assert ring == ([list(POINTS[best])] if best else [])
    assert (f"best measured: {best}" if best else "nothing fits") in picture.alt


def test_every_point_is_drawn_and_the_line_joins_the_frontier():
    axes = plots.loss_against_bytes(POINTS).axes[0]
    single = [tuple(line.get_xydata()[0]) for line in axes.lines if len(line.get_xdata()) == 1]
    assert set(POINTS.values()) <= set(single)
    joined = next(line for line in axes.lines if line.get_linestyle() == ":")
    assert joined.get_xydata().tolist() == [list(POINTS[name]) for name in plots.frontier(POINTS)]


def test_a_piece_of_advice_is_starred_where_it_was_measured():
    picture = plots.LossAgainstBytes(POINTS, megabytes=12.0, advised="NF4 b64 dq")
    assert picture._star.get_xydata().tolist() == [[9.7, 0.3]]
    assert "chart: NF4 b64 dq" in picture.alt
    picture.show(12.0, "16 bits, as it is")
    assert not len(picture._star.get_xdata()) and "chart: 16 bits" in picture.alt
    picture.show(None)
    assert not picture._beyond.get_visible() and "5 methods and settings" in picture.alt


def test_layer_choices_fills_what_was_chosen(llama, ids):
    schemes = [qkit.RTN(2), qkit.RTN(8)]
    measured = qkit.sensitivity(llama, schemes, calibration=ids)
    chosen = qkit.mixed_precision(measured, 4.0)
    picture = plots.layer_choices(measured, chosen)
    losses = {(choice.layer, choice.scheme): choice.loss for choice in measured.choices}
    lines = picture.axes[0].lines
    for all_of_it, filled, scheme in zip(lines[::2], lines[1::2], schemes, strict=True):
        assert np.allclose(all_of_it.get_ydata(), [losses[layer, scheme] for layer in measured.weights])
        assert len(filled.get_xdata()) == sum(value == scheme for value in chosen.values())
        assert f"{scheme.name} for {len(filled.get_xdata())}" in picture.alt
