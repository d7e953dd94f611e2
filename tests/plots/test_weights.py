"""Figures show what the functions computed: the plotted numbers are compared, not the pixels."""

import base64
import math

import numpy as np
import pytest
import torch

import qkit
from drawn import same_data
from qkit import plots


@pytest.fixture
def weight():
    return torch.randn(16, 96, generator=torch.Generator().manual_seed(0)) * 0.1


@pytest.fixture
def comparison(llama):
    ids = torch.randint(0, 97, (2, 20), generator=torch.Generator().manual_seed(0))
    return qkit.compare(llama, [qkit.RTN(bits=8), qkit.RTN(bits=3)], ids)


def test_the_histogram_shows_the_counts_of_both_weights(weight):
    q = qkit.quantize_tensor(weight, bits=3, group_size=32)
    figure = plots.weight_histogram(weight, q)
    edges = figure.data["edges"]
    for counts, values in ((figure.data["before"], weight), (figure.data["after"], q.dequantize())):
        expected, _ = np.histogram(values.numpy(), edges)
        assert counts.sum() == weight.numel()
        assert np.abs(counts - expected).sum() <= 4  # float32 bin edges may move a weight to the next bin


def test_the_error_curve_plots_the_errors_of_the_widest_group_between_its_bounds(weight):
    q = qkit.quantize_tensor(weight, bits=4, group_size=32)
    figure = plots.error_curve(weight, q)
    row, group = plots.group_by_scale(q, 1.0)
    x, y = figure.data["weights"], figure.data["errors"]
    members = weight.reshape(16, 3, 32)[row, group]
    assert np.array_equal(x, members.numpy())
    assert np.allclose(y, (q.dequantize().reshape(16, 3, 32)[row, group] - members).numpy())
    half = float(q.scales[row, group]) / 2
    assert figure.data["bound"] == half
    assert np.abs(y).max() <= half * (1 + 1e-4)


def test_a_picture_given_other_data_equals_one_drawn_from_it(weight):
    other = torch.randn(16, 96, generator=torch.Generator().manual_seed(1))
    for cls in (plots.WeightHistogram, plots.ErrorCurve):
        picture = cls(weight, qkit.quantize_tensor(weight, bits=8), "first")
        picture.show(other, qkit.quantize_tensor(other, bits=3), "second")
        fresh = cls(other, qkit.quantize_tensor(other, bits=3), "second")
        assert picture.alt == fresh.alt
        assert texts_in(picture) == texts_in(fresh)
        same_data(picture, fresh)


def texts_in(picture):
    picture.canvas.draw()  # tick labels are written when they are drawn
    return [artist.get_text() for artist in picture.findobj(lambda artist: hasattr(artist, "get_text"))]


def test_the_comparison_plots_every_row_and_its_words_name_every_point(comparison):
    for draw in (plots.perplexity_against_bytes, plots.comparison_picture):
        figure = draw(comparison)
        points = np.stack([figure.data["megabytes"], figure.data["perplexity"]], 1)
        expected = [(row.disk_bytes / 1e6, row.perplexity) for row in comparison.rows]
        assert np.allclose(points, expected)
        assert all(row.name in figure.alt for row in comparison.rows)


def test_layer_errors_plots_the_sqnr_of_every_layer(comparison):
    reports = {row.name: row.report for row in comparison.rows if row.report}
    figure = plots.layer_errors(reports)
    for name, report in reports.items():
        assert np.allclose(figure.data[f"SQNR of {name}"], [layer.error.sqnr_db for layer in report.layers])
        assert figure.data["layers"].tolist() == [layer.name for layer in report.layers]


def test_sqnr_curves_plots_what_it_is_given():
    figure = plots.sqnr_curves({"one": ([2, 3], [9.5, 16.9]), "two": ([2, 3], [4.0, 11.0])}, "bits", slope=6.02)
    assert figure.data["SQNR of one"].tolist() == [9.5, 16.9] and figure.data["SQNR of two"].tolist() == [4.0, 11.0]
    assert figure.data["bits of one"].tolist() == [2, 3]
    assert "one: 2.00 bits 9.5" in figure.alt


def test_a_notebook_gets_the_picture_and_its_description(weight):
    figure = plots.weight_histogram(weight, qkit.quantize_tensor(weight, bits=4))
    data, metadata = figure._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert data["text/plain"] == metadata["image/png"]["alt"] == figure.alt != ""


def test_a_method_has_one_colour_and_every_pair_of_colours_can_be_told_apart_without_red_and_green():
    colours = [plots.BLUE, plots.ORANGE, plots.GREEN, plots.RED, plots.GREY, "#000000"]
    lightness_and_blue = [_without_red_green(c) for c in colours]
    for i, one in enumerate(lightness_and_blue):
        for other in lightness_and_blue[:i]:
            assert math.dist(one, other) > 0.1


def _without_red_green(colour: str) -> tuple[float, float]:
    """What a deuteranope roughly sees: the red-green channel collapsed to its mean (0.63 R + 0.37 G), and blue."""
    r, g, b = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return 0.63 * r + 0.37 * g, b
