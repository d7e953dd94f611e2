"""The figures of lesson 07 show the points, the frontier and the choices that they were given."""

import numpy as np
import pytest

import qkit
from qkit import plots

POINTS = {
    "RTN W3 g128": (8.1, 1.9),
    "GPTQ W4 g128": (9.7, 0.2),
    "NF4 b64 dq": (9.7, 0.3),
    "LLM.int8": (15.9, 0.006),
    "RTN W8 per channel": (15.8, 0.002),
}


@pytest.mark.parametrize(
    ("megabytes", "best"), [(5, None), (8.1, "RTN W3 g128"), (15, "GPTQ W4 g128"), (99, "RTN W8 per channel")]
)
def test_the_best_that_fits_is_ringed_and_named(megabytes, best):
    picture = plots.LossAgainstBytes(POINTS, megabytes=megabytes)
    assert plots.best_that_fits(POINTS, megabytes) == best
    assert picture.data["best"] == (best or "") and picture.data["budget"] == megabytes
    assert (f"best measured: {best}" if best else "nothing fits") in picture.alt


def test_every_point_is_drawn_and_the_line_joins_the_frontier():
    data = plots.loss_against_bytes(POINTS).data
    assert list(zip(data["megabytes"], data["losses"], strict=True)) == list(POINTS.values())
    line = zip(data["line_megabytes"], data["line_losses"], strict=True)
    assert list(line) == [POINTS[name] for name in plots.frontier(POINTS)]


def test_a_piece_of_advice_is_starred_where_it_was_measured():
    picture = plots.LossAgainstBytes(POINTS, megabytes=12.0, advised="NF4 b64 dq")
    assert picture.data["advised"] == "NF4 b64 dq" and "chart: NF4 b64 dq" in picture.alt
    picture.show(12.0, "16 bits, as it is")
    assert picture.data["advised"] == "" and "chart: 16 bits" in picture.alt
    picture.show(None)
    assert picture.data["budget"] == float("inf") and "5 methods and settings" in picture.alt


def test_layer_choices_fills_what_was_chosen(llama, ids):
    schemes = [qkit.RTN(2), qkit.RTN(8)]
    measured = qkit.sensitivity(llama, schemes, calibration=ids)
    chosen = qkit.mixed_precision(measured, 4.0)
    picture = plots.layer_choices(measured, chosen)
    losses = {(choice.layer, choice.scheme): choice.loss for choice in measured.choices}
    for scheme in schemes:
        assert np.allclose(
            picture.data[f"loss of {scheme.name}"], [losses[layer, scheme] for layer in measured.weights]
        )
        mine = picture.data[f"chosen {scheme.name}"]
        assert [chosen[name] == scheme for name in measured.weights] == [
            i in mine for i in range(len(measured.weights))
        ]
        assert f"{scheme.name} for {len(mine)}" in picture.alt
