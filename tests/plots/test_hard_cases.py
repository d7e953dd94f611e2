"""What is hard to draw is drawn, without a complaint of matplotlib's; what cannot be drawn is refused in a sentence."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

import qkit
from qkit import plots
from qkit.bench.record import LinearRecord, Measurement, Roof
from qkit.bench.roofline import Layer
from qkit.engine.report import LayerReport, QuantizationReport
from qkit.model.inputs import input_maxima
from qkit.numerics.error import ErrorStatistics
from qkit.plots.page import write_page
from qkit.plots.roofline import roofline
from qkit.study.anatomy.smoothquant import SmoothInput
from qkit.study.comparison import Comparison, ComparisonRow
from qkit.study.evaluate import Passage
from qkit.study.sensitivity import Choice, Sensitivity

INF, NAN = math.inf, math.nan
ROOF = Roof(threads=2, gigabytes_per_second=32.0, float_gops=256.0, int8_gops=1024.0)
SCHEMES = [
    qkit.RTN(4, "tensor"),
    qkit.RTN(4),
    qkit.RTN(3, 32, symmetric=True),
    qkit.RTN(4, 32, include_zero=False),
    qkit.NF4(128),
    qkit.NF4(64, double_quant=False),
    qkit.FP4(4096),
]


def weights():
    whole = torch.randn(5, 96, generator=torch.Generator().manual_seed(0)) * 0.1
    return {
        "five rows": whole,
        "one row": whole[:1],
        "zeros": torch.zeros(4, 96),
        "one number": torch.full((4, 96), 0.25),
        "bfloat16": whole.bfloat16(),
        "trained": whole.clone().requires_grad_(),
        "large": whole * 1e30,
        "small": whole * 1e-30,
        "a block of zeros": torch.cat([whole[:2], torch.zeros(2, 96)]),
    }


def drawn(picture):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert picture.png().startswith(b"\x89PNG")
    return picture


# ---- weights


@pytest.mark.parametrize("figure", [plots.WeightHistogram, plots.ErrorCurve])
def test_any_weight_in_any_format_is_drawn(figure):
    first = weights()["five rows"]
    picture = figure(first, qkit.quantize_tensor(first, bits=4), dpi=20)
    for kind, weight in weights().items():
        for scheme in SCHEMES:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                picture.show(weight, qkit.quantize_tensor(weight, scheme), "layer")
                picture.canvas.draw()
            data = {name: value for name, value in picture.data.items() if name != "sqnr_db"}
            assert all(np.isfinite(value).all() for value in data.values()), (kind, scheme.name)


def test_a_table_has_the_levels_of_its_widest_and_median_block():
    weight = weights()["five rows"]
    q = qkit.quantize_tensor(weight, qkit.NF4(64, double_quant=False))
    picture = plots.weight_histogram(weight, q)
    table, absmax = qkit.numerics.codebooks.nf4().double().numpy(), weight.reshape(-1).split(64)
    reach = sorted(float(block.abs().max()) for block in absmax)
    assert np.allclose(picture.data["widest"], reach[-1] * table)
    assert np.allclose(picture.data["median"], reach[round(0.5 * (len(reach) - 1))] * table)
    assert "the levels reach to" in picture.alt and "a step" not in picture.alt
    assert "gap between two levels" in plots.error_curve(weight, q).alt


@pytest.mark.parametrize("draw", [plots.weight_histogram, plots.error_curve])
def test_a_weight_that_is_not_finite_or_not_the_one_is_refused_and_the_picture_stays(draw):
    weight = weights()["five rows"]
    q = qkit.quantize_tensor(weight, bits=4)
    picture = draw(weight, q, "layer")
    before = picture.png(), picture.alt, picture.data
    broken = weight.clone()
    broken[0, 0] = NAN
    for other, words in ((broken, "layer holds 1 NaN"), (weight[:2], "give the weight it was made from")):
        with pytest.raises(ValueError, match=words):
            picture.show(other, q, "layer")
    assert (picture.png(), picture.alt, picture.data) == before


def test_codebook_levels_refuse_what_four_bit_formats_refuse():
    with pytest.raises(ValueError, match="block_size=64 does not divide 480 weights"):
        plots.codebook_levels(weights()["five rows"], 64)
    with pytest.raises(ValueError, match="layer holds 64 NaN"):
        plots.codebook_levels(torch.full((1, 64), NAN), 64, "layer")
    for kind in ("bfloat16", "trained", "a block of zeros"):
        drawn(plots.codebook_levels(weights()[kind], 32))


# ---- reports and comparisons


def a_report(layers, scheme=None):
    """A report of layers with these SQNRs in dB by name."""
    rows = (
        LayerReport(name, "Linear", (4, 8), "RTN W4", 4.0, 16, ErrorStatistics(db, 0.1, 0.1, 0.0, 0.1))
        for name, db in layers.items()
    )
    return QuantizationReport((scheme or qkit.RTN(4)).to_dict(), tuple(rows), (), 0.0)


def a_row(name, perplexity, report=None, kl=0.1):
    scheme = None if report is None else report.scheme
    passages = (Passage(1.0, kl, 50), Passage(1.2, kl, 50))
    return ComparisonRow(
        name, scheme, perplexity, kl, 10**6, 10**6, 4.0, 8.0, 0.0, report, 0.01, perplexity / 5, 0.01, passages
    )


def a_comparison(*rows):
    return Comparison("model", "text", 100, rows)


@pytest.mark.parametrize("draw", [plots.perplexity_against_bytes, plots.comparison_picture])
@pytest.mark.parametrize(
    "perplexities",
    [[5.0], [5.0, INF], [INF, INF], [5.0, 5.0]],
    ids=["one row", "one infinite", "all infinite", "equal"],
)
def test_rows_of_any_perplexity_are_drawn(draw, perplexities):
    report = a_report({"0.fc": 20.0})
    rows = [a_row("FP32", perplexities[0]), *(a_row(f"RTN W{n}", p, report) for n, p in enumerate(perplexities[1:], 2))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = drawn(draw(a_comparison(*rows)))
    assert np.isfinite(picture.data["perplexity"]).all()
    finite = [value for value in perplexities if value < INF]
    if finite and len(finite) < len(perplexities):
        assert picture.data["perplexity"][1] > max(finite) and "RTN W2 1.0 MB inf" in picture.alt
        assert "RTN W2 (infinite)" in [text.get_text() for text in picture.axes[0].texts]


def test_a_page_of_a_ruined_model_is_written(tmp_path):
    rows = (a_row("FP32", 5.0, kl=0.0), a_row("RTN W2", INF, a_report({"fc": -INF}), kl=INF))
    page, picture = write_page(a_comparison(*rows), tmp_path)
    assert "<td>inf</td>" in page.read_text() and picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("draw", [plots.perplexity_against_bytes, plots.comparison_picture])
def test_nan_and_nothing_are_refused(draw):
    with pytest.raises(ValueError, match="the perplexity of 'RTN W2' is NaN"):
        draw(a_comparison(a_row("FP32", 5.0), a_row("RTN W2", NAN)))
    with pytest.raises(ValueError, match="there is no perplexity to draw"):
        draw(a_comparison())


def test_reports_of_different_layers_share_one_axis():
    first = a_report({"layers.0.a": 10.0, "layers.0.b": 11.0, "layers.1.a": 12.0})
    second = a_report({"layers.0.b": 20.0, "layers.1.a": 21.0, "layers.1.b": 22.0})
    data = drawn(plots.layer_errors({"one": first, "two": second})).data
    assert data["layers"].tolist() == ["layers.0.a", "layers.0.b", "layers.1.a", "layers.1.b"]
    assert np.array_equal(data["SQNR of one"], [10, 11, 12, NAN], equal_nan=True)
    assert np.array_equal(data["SQNR of two"], [NAN, 20, 21, 22], equal_nan=True)


@pytest.mark.parametrize(
    "layers",
    [{"fc": 20.0}, {"layers.0.fc": INF}, {"fc": -INF}, {"a.fc": 20.0, "a.up": INF, "b.fc": -INF, "head": 3.0}],
    ids=["one layer", "exact", "zeros", "no digits"],
)
def test_layers_of_any_name_and_error_are_drawn(layers):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = drawn(plots.layer_errors({"one": a_report(layers)}))
        drawn(plots.comparison_picture(a_comparison(a_row("FP32", 5.0), a_row("one", 6.0, a_report(layers)))))
    assert np.isfinite(picture.data["SQNR of one"]).all()
    order = np.argsort(list(layers.values()), kind="stable")
    assert (np.diff(picture.data["SQNR of one"][order]) > 0).all()


def test_a_model_without_digits_is_ticked_by_its_modules():
    picture = plots.layer_errors({"one": a_report({"a.fc": 20.0, "a.up": 21.0, "b.fc": 22.0, "head": 3.0})})
    assert [label.get_text() for label in picture.axes[0].get_xticklabels()] == ["a", "b", ""]


def test_reports_without_layers_are_refused_by_name_and_left_out_of_a_comparison():
    empty = a_report({})
    with pytest.raises(ValueError, match="'two' has no layers"):
        plots.layer_errors({"one": a_report({"fc": 3.0}), "two": empty})
    with pytest.raises(ValueError, match="no SQNR of layers to draw"):
        plots.layer_errors({})
    drawn(plots.comparison_picture(a_comparison(a_row("FP32", 5.0), a_row("one", 6.0, empty))))


def test_more_curves_than_colours_are_all_drawn_and_each_in_its_own_way():
    names = [f"curve {n}" for n in range(9)]
    for picture in (
        plots.sqnr_curves({name: ([2.0, 3.0], [9.0, 15.0]) for name in names}, "bits"),
        plots.against_chunks([1, 2], {name: [3.0, 2.0] for name in names}, 1.0, "level", "error"),
    ):
        lines = [line for line in drawn(picture).axes[0].lines if line.get_label() in names]
        assert len({(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines}) == 9


def test_curves_of_infinite_values_are_drawn_and_others_refused():
    drawn(plots.sqnr_curves({"one": ([2.0, 3.0], [9.0, INF])}, "bits", slope=6.0))
    for wrong, words in (({}, "there is no curve"), ({"one": ([2.0], [NAN])}, "'one at 2.0 bits' is NaN")):
        with pytest.raises(ValueError, match=words):
            plots.sqnr_curves(wrong, "bits")
    with pytest.raises(ValueError, match="'one' has 1 values for 2 numbers of chunks"):
        plots.against_chunks([1, 2], {"one": [3.0]}, 1.0, "level", "error")


# ---- choosing


def test_losses_beyond_the_axis_stand_beyond_the_others():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        points = {"exact": (9.0, 0.0), "RTN W4": (5.0, 0.5), "RTN W3": (4.0, 2.0), "RTN W2": (3.0, INF)}
        picture = drawn(plots.LossAgainstBytes(points, megabytes=4.5))
        drawn(plots.loss_against_bytes({"": (1.0, 0.0)}))
    labels = [text.get_text() for text in picture.axes[0].texts]
    assert {"exact (0)", "RTN W4", "RTN W3", "RTN W2 (infinite)"} == set(labels)
    exact, four, three, two = picture.data["losses"]
    assert 0 < exact < four == 0.5 < three == 2.0 < two < INF
    assert picture.data["best"] == "RTN W3" and "RTN W2 3.0 MB inf" in picture.alt


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ({}, "there is no loss to draw"),
        ({"a": (1, NAN)}, "loss of 'a' is NaN"),
        ({"a": (0, 1)}, "'a' takes 0 megabytes"),
    ],
)
def test_points_without_a_place_are_refused(points, words):
    with pytest.raises(ValueError, match=words):
        plots.loss_against_bytes(points)


def some_choices(losses, count=6):
    schemes = [qkit.RTN(bits) for bits in range(2, 2 + count)]
    choices = [Choice(layer, scheme, 10, loss) for layer, loss in losses.items() for scheme in schemes]
    return schemes, Sensitivity("error", dict.fromkeys(losses, 100), tuple(choices))


def test_every_scheme_of_many_is_drawn_and_losses_of_zero_and_infinity():
    schemes, measured = some_choices({"fc": 0.0, "up": 0.1, "head": INF})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = drawn(plots.layer_choices(measured, dict.fromkeys(("fc", "up", "head"), schemes[5])))
    assert picture.data["chosen RTN W7 per channel"].tolist() == [0, 1, 2]
    assert all(0 < loss < INF for scheme in schemes for loss in picture.data[f"loss of {scheme.name}"])
    assert len({(line.get_color(), line.get_marker()) for line in picture.axes[0].lines}) == 6


def test_a_layer_without_a_choice_is_named():
    schemes, measured = some_choices({"fc": 0.1, "up": 0.1})
    with pytest.raises(ValueError, match="nothing is chosen for up"):
        plots.layer_choices(measured, {"fc": schemes[0]})
    with pytest.raises(ValueError, match="no loss to draw"):
        plots.layer_choices(Sensitivity("error", {}, ()), {})


# ---- activations, scales, columns


def test_an_outlier_map_refuses_nan_and_tokens_that_are_not_its_own(llama, ids):
    maxima = input_maxima(llama, ids)
    with pytest.raises(ValueError, match="3 tokens are named and 40 were read"):
        plots.outlier_map(maxima, ["token"] * 3)
    maxima.by_token[0, 0] = NAN
    with pytest.raises(ValueError, match=r"the input of model\.layers\.0\.self_attn\.q_proj is not finite"):
        plots.outlier_map(maxima, ["token"] * 40)


def test_an_alpha_search_on_nothing_is_drawn(llama, ids):
    scaling = qkit.search_scales(llama, qkit.AWQ(bits=3, group_size=4, grid=4), calibration=ids.repeat(8, 1))
    silent = replace(scaling[0], salience=torch.zeros_like(scaling[0].salience), losses=(0.0,) * 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn(plots.alpha_search(llama, silent, None, 4))


@pytest.mark.parametrize("static", [False, True])
def test_a_migration_of_nothing_is_drawn(static):
    index, width = torch.arange(8), torch.zeros(8)
    for weight, sample in ((torch.zeros(4, 8), torch.ones(3, 8)), (torch.ones(4, 8), torch.zeros(3, 8))):
        one = SmoothInput("block: norm → fc", weight, sample, sample.abs().amax(0), weight.abs().amax(0), index)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            drawn(plots.migration(one, 0.5, static))
    assert not width.any()


def test_a_stop_that_is_none_is_refused():
    inputs = qkit.methods.gptq.InputStatistics.empty(8, wants=frozenset({"square"}))
    inputs.add(torch.eye(8))
    steps = plots.column_steps(torch.ones(2, 8), inputs, stops=3)
    with pytest.raises(ValueError, match="stop=3 is none of the 3 stops"):
        plots.compensation_picture(steps, 3)


# ---- rooflines


@pytest.mark.parametrize("seconds", [0.0, -1.0, NAN, INF])
def test_times_that_are_none_are_refused(seconds):
    layer = Layer(64, 64)
    for draw in (
        lambda: plots.steps_on_roofline(ROOF, {"one": (layer, seconds)}),
        lambda: plots.LayerOnRoofline(ROOF, layer, {"one": seconds}),
    ):
        with pytest.raises(ValueError, match="seconds, which is no measured time"):
            draw()
    with pytest.raises(ValueError, match="nothing was measured"):
        plots.steps_on_roofline(ROOF, {})


def test_a_record_of_unknown_layers_is_drawn_and_an_unknown_shape_refused():
    measured = Measurement("abacus", "beads", (10, 20), 1, 1, 800, 2, 0.1, 1.0, (1.0,))
    record = LinearRecord({}, (replace(ROOF, threads=1),), (measured,))
    picture = drawn(roofline(record, (10, 20), 1))
    assert picture.data["labels"].tolist() == ["abacus beads"] and "drawn below them: nothing" in picture.alt
    with pytest.raises(ValueError, match="10 x 30 with 2 threads is not in the record, which has 10 x 20 with 1"):
        roofline(record, (10, 30), 2)
