"""Every scheme of the registry goes every way that a scheme goes; a new one is tested by its line in the registry."""

import json
import re
from pathlib import Path

import pytest
import torch

import qkit
from grids import thinned
from qkit import NF4, RTN, LLMInt8
from qkit.engine.solve import solve_layer
from qkit.methods import scheme as common
from qkit.methods.registry import SCHEMES, parse_scheme, scheme_from_dict, spellings
from qkit.methods.statistics import WANTS, InputStatistics
from qkit.model.surgery import clone
from qkit.nn.layers import quantized_layers
from qkit.plots import METHOD_COLOURS, loss_against_bytes, weight_histogram
from qkit.study.advice import gigabytes
from schemes import every_scheme, fields_of

IDS = torch.randint(0, 97, (6, 20), generator=torch.Generator().manual_seed(3))


@pytest.fixture(params=every_scheme(), ids=lambda scheme: scheme.name)
def scheme(request):
    return request.param


def a_weight(rows=24, features=96):
    return 0.1 * torch.randn(rows, features, generator=torch.Generator().manual_seed(1))


def inputs_of(features=96):
    statistics = InputStatistics.empty(features, wants=WANTS)
    x = torch.randn(200, features, generator=torch.Generator().manual_seed(2))
    statistics.add(x, x)
    return statistics


def test_the_common_file_knows_none_of_them():
    source = Path(common.__file__).read_text(encoding="utf-8")
    assert not [name for name in SCHEMES if re.search(rf"\b{name}\b", source)]


def test_every_class_is_reached():
    assert {type(scheme) for scheme in every_scheme()} == set(SCHEMES.values())


def test_the_name_begins_with_a_word_that_figures_know(scheme):
    assert METHOD_COLOURS[scheme.name.split()[0]] == scheme.colour
    assert re.fullmatch(r"#[0-9A-F]{6}", scheme.colour)
    assert len({cls.colour for cls in SCHEMES.values()}) == len(SCHEMES)


def test_json_brings_it_back(scheme):
    record = json.loads(json.dumps(scheme.to_dict()))
    assert record["scheme"] == type(scheme).__name__ and set(record) == {"scheme", *fields_of(scheme)}
    again = scheme_from_dict(record)
    assert again == scheme and hash(again) == hash(scheme) and again.name == scheme.name


@pytest.mark.parametrize("cls", SCHEMES.values(), ids=SCHEMES)
def test_the_command_line_understands_its_examples_and_nobody_else_does(cls):
    assert cls.spellings
    for word in cls.spellings:
        found = parse_scheme(word.upper())
        assert type(found) is cls and found == cls.parse(word)
        assert [other for other in SCHEMES.values() if other.parse(word) is not None] == [cls]
        assert word in spellings()
    assert cls.parse("no such scheme") is None


@pytest.mark.parametrize("given", [True, False])
def test_a_weight_is_rounded_and_held_by_a_layer(scheme, given):
    weight, inputs = a_weight(), inputs_of() if given else None
    before = weight.clone()
    solved = solve_layer(weight, None, scheme, inputs, "the layer")
    assert torch.equal(weight, before)
    assert solved.q.shape == (24, 96) and solved.q.bits == scheme.weight_bits
    assert solved.layer.qtensor.tensors().keys() == solved.q.tensors().keys()
    assert not solved.warnings and json.dumps(dict(solved.notes))
    error = qkit.sqnr_db(weight, solved.q.dequantize())
    assert error > 6.02 * scheme.weight_bits - 14, (
        error
    )  # a dB or two for the shape of a normal, some for scales and clipping
    x = torch.randn(5, 96, generator=torch.Generator().manual_seed(4))
    y, exact = solved.layer(x), x @ solved.q.dequantize().T
    assert y.shape == (5, 24) and (y - exact).norm() < 0.03 * exact.norm()  # INT8 activations round too


def test_the_bytes_it_says_are_the_bytes_it_stores(scheme):
    shape = (64, 2048)  # whole bytes, whole groups, whole nested blocks
    q = scheme.round(a_weight(*shape)).q
    assert q.bits_per_weight == pytest.approx(scheme.stored_bits(shape), rel=1e-12)
    assert gigabytes(1e9, scheme) == pytest.approx(scheme.stored_bits((qkit.study.advice.hidden_size(1e9),) * 2) / 8)


def test_a_model_is_quantized_reported_saved_and_loaded(scheme, llama, tmp_path, ids, logits):
    report = qkit.quantize(llama, scheme, calibration=IDS)
    assert {row.scheme for row in report.layers} == {scheme.name} and scheme.name in repr(report)
    assert json.dumps(report.to_dict()) and scheme_from_dict(report.to_dict()["scheme"]) == scheme
    looked = scheme.calibrated or scheme.observes
    assert {row.tokens for row in report.layers} == ({IDS.numel()} if looked else {None})
    assert bool(report.scaling.scales) == scheme.scales
    qkit.save(llama, tmp_path)
    again, _ = qkit.load(tmp_path)
    for name, layer in quantized_layers(llama).items():
        other = again.get_submodule(name)
        assert type(other) is type(layer) and repr(other) == repr(layer)
    assert torch.equal(logits(again, ids), logits(llama, ids))


def test_it_resumes_and_is_the_same(scheme, llama, tmp_path):
    straight, halted = clone(llama), clone(llama)
    qkit.quantize(straight, scheme, calibration=IDS)
    qkit.quantize(halted, scheme, calibration=IDS, resume=tmp_path)
    report = qkit.quantize(llama, scheme, calibration=IDS, resume=tmp_path)
    expected = straight.state_dict()
    assert all(torch.equal(expected[name], tensor) for name, tensor in llama.state_dict().items())
    assert json.dumps(report.to_dict()["layers"])


def test_it_needs_data_or_says_that_it_does_not(scheme, llama):
    if scheme.calibrated:
        with pytest.raises(ValueError, match=r"learns from data and was given none; give calibration="):
            qkit.quantize(llama, scheme)
    else:
        assert {row.tokens for row in qkit.quantize(llama, scheme).layers} == {None}


@pytest.mark.parametrize("scheme", thinned(every_scheme(), [RTN(4, 4), NF4(), LLMInt8()]), ids=lambda one: one.name)
def test_figures_draw_it(scheme, llama):
    q = scheme.round(a_weight()).q
    assert len(weight_histogram(a_weight(), q).png()) > 1000
    comparison = qkit.compare(llama, [scheme], IDS, calibration=IDS, name="tiny", text_name="ids")
    assert comparison.rows[1].name == scheme.name
    assert len(qkit.plots.comparison_picture(comparison).png()) > 1000
    points = {row.name: (row.disk_bytes / 1e6, row.kl + 1e-9) for row in comparison.rows}
    assert len(loss_against_bytes(points).png()) > 1000


def test_sensitivity_tries_it(scheme, llama):
    found = qkit.sensitivity(llama, [scheme], calibration=IDS, include=["*.down_proj"])
    assert {choice.scheme for choice in found.choices} == {scheme} and all(c.loss > 0 for c in found.choices)
    assert set(qkit.mixed_precision(found, 32.0).values()) == {scheme}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_a_weight_that_nothing_can_quantize_is_refused_by_name(scheme, llama, bad):
    with torch.no_grad():
        llama.model.layers[1].mlp.up_proj.weight[3, 5] = bad
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.up_proj (holds|reaches)"):
        qkit.quantize(llama, scheme, calibration=IDS)
    assert not quantized_layers(llama)


@pytest.mark.parametrize("size", [1e20, 1e30])
def test_activations_whose_squares_overflow_are_refused_or_do_no_harm(scheme, llama, size):
    """A finite activation whose square is not: no endless loop, no NaN; where the method needs the square, one sentence."""
    with torch.no_grad():
        llama.model.layers[0].input_layernorm.weight[0] = size
    try:
        qkit.quantize(llama, scheme, calibration=IDS)
    except ValueError as error:
        assert re.search(r"model\.layers\.0\.self_attn\.\w+_proj", str(error)) and not quantized_layers(llama)
        return
    assert all(t.isfinite().all() for layer in quantized_layers(llama).values() for t in layer.buffers())


def test_a_scheme_that_lacks_an_answer_cannot_be_made():
    class Nothing(common.Scheme):
        """Says nothing of itself."""

    with pytest.raises(TypeError, match="abstract"):
        Nothing()


@pytest.mark.parametrize("widths", [(576, 1536), (96,), (100, 48), (7,), (128, 384)])
def test_one_that_is_fitted_goes_into_every_row_and_is_itself_where_it_does_already(scheme, widths):
    made = scheme.fitted(widths)
    weights = [a_weight(4, width) for width in widths]
    for weight in weights:
        made.check(weight)
    try:
        for weight in weights:
            scheme.check(weight)
    except ValueError as refused:
        assert "group_size" in str(refused) and made != scheme and type(made) is type(scheme)
    else:
        assert made == scheme
    assert made.fitted(widths) == made
