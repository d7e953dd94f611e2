"""What holds for every figure: it says what it shows, in words and in numbers, and it shows what it says."""

import warnings

import numpy as np
import pytest
import torch

import qkit
from drawn import is_drawn
from qkit import plots
from qkit.backends.triton.layout import pack_words
from qkit.bench.record import LinearRecord, Measurement, Roof
from qkit.bench.recorded import recorded
from qkit.bench.roofline import Layer
from qkit.methods.statistics import InputStatistics
from qkit.model.inputs import input_maxima
from qkit.plots.roofline import roofline
from qkit.study.anatomy.words import code_places
from qkit.study.paired import Estimate

ROOF = Roof(threads=2, gigabytes_per_second=32.0, float_gops=256.0, int8_gops=1024.0)
POINTS = {"RTN W3 g128": (8.1, 1.9), "GPTQ W4 g128": (9.7, 0.2), "NF4 b64 dq": (9.75, 0.3)}


def a_weight():
    return torch.randn(16, 96, generator=torch.Generator().manual_seed(0)) * 0.1


def a_comparison(llama, ids):
    return qkit.compare(llama, [qkit.RTN(8), qkit.NF4()], ids)


def some_steps():
    inputs = InputStatistics.empty(96, wants=frozenset({"square"}))
    inputs.add(torch.randn(200, 96, generator=torch.Generator().manual_seed(1)))
    return plots.column_steps(a_weight(), inputs, 3, stops=5)


def a_search(llama, ids):
    return qkit.search_scales(llama, qkit.AWQ(bits=3, group_size=4, grid=4), calibration=ids.repeat(8, 1))


def some_choices(llama, ids):
    measured = qkit.sensitivity(llama, [qkit.RTN(2), qkit.RTN(8)], calibration=ids)
    return plots.layer_choices(measured, qkit.mixed_precision(measured, 4.0))


def a_record():
    rows = (("qkit", "NF4 b64"), ("bitsandbytes", "NF4 b64"), ("torch", "fp32"))
    measured = [
        Measurement(library, name, (100, 200), 1, tokens, 10**4 * n, 2, 0.1, 1.0, (float(n * tokens),))
        for n, (library, name) in enumerate(rows, 1)
        for tokens in (1, 8)
    ]
    return LinearRecord({}, (Roof(1, 0.03, 1.0, 4.0),), tuple(measured))


def a_word(bits):
    codes = torch.randint(0, 2**bits, (128, 128), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    return plots.WordPicture(code_places(bits), pack_words(codes, bits).numpy().view(np.uint32), 9, 77, "a weight")


def some_channels(share):
    w = a_weight()
    x = torch.randn(50, w.shape[1], generator=torch.Generator().manual_seed(1))
    return plots.salient_channels(w, qkit.quantize_tensor(w, bits=3).dequantize(), x, share, "one")


def some_programs():
    owners = np.arange(12).reshape(3, 4) // 5
    return plots.written_by({"all": owners, "masked": np.where(owners < 2, owners, -1)}, owners < 2, "12 places")


FIGURES = {
    "weight_histogram": lambda llama, ids: plots.weight_histogram(a_weight(), qkit.quantize_tensor(a_weight(), bits=3)),
    "weight_histogram NF4": lambda llama, ids: plots.weight_histogram(
        a_weight(), qkit.quantize_tensor(a_weight(), qkit.NF4())
    ),
    "error_curve": lambda llama, ids: plots.error_curve(a_weight(), qkit.quantize_tensor(a_weight(), bits=3)),
    "error_curve NF4": lambda llama, ids: plots.error_curve(a_weight(), qkit.quantize_tensor(a_weight(), qkit.NF4())),
    "sqnr_curves": lambda llama, ids: plots.sqnr_curves({"one": ([2, 3], [9.5, 16.9])}, "bits", 6.02),
    "perplexity_against_bytes": lambda llama, ids: plots.perplexity_against_bytes(a_comparison(llama, ids)),
    "comparison_picture": lambda llama, ids: plots.comparison_picture(a_comparison(llama, ids)),
    "layer_errors": lambda llama, ids: plots.layer_errors({"NF4": a_comparison(llama, ids).rows[2].report}),
    "outlier_map": lambda llama, ids: plots.outlier_map(input_maxima(llama, ids), ["token"] * 40, 1.5),
    "codebook_levels": lambda llama, ids: plots.codebook_levels(a_weight(), 32),
    "channel_ranks": lambda llama, ids: plots.channel_ranks({"one": torch.tensor([0.5, 9.0, 1.5])}),
    "levels_used": lambda llama, ids: plots.levels_used(
        {"one": torch.tensor([0.3, 0.5, 0.2]), "two": torch.tensor([0.25, 0.55, 0.2])}, torch.tensor([-1.0, 0.0, 1.0])
    ),
    "compensation_picture": lambda llama, ids: plots.compensation_picture(some_steps(), 2),
    "passed_on": lambda llama, ids: plots.passed_on({"one": torch.linspace(0.3, 1, 40)}),
    "against_chunks": lambda llama, ids: plots.against_chunks([1, 4], {"one": [5.0, 3.0]}, 3.2, "rounding", "error"),
    "alpha_search": lambda llama, ids: plots.alpha_search(llama, a_search(llama, ids)[0], 0.5, 4),
    "channel_maps": lambda llama, ids: plots.channel_maps({"one": [torch.rand(300) + 0.1] * 3}, "a map"),
    "salient_channels": lambda llama, ids: some_channels(0.25),
    "paired_differences": lambda llama, ids: plots.paired_differences(
        {"one less another": Estimate(0.5, 0.1), "a third": Estimate(-0.1, 0.2)}, "differences"
    ),
    "migration": lambda llama, ids: plots.migration(plots.smooth_inputs(llama, ids, 16)[0], 0.5),
    "loss_against_bytes": lambda llama, ids: plots.LossAgainstBytes(POINTS, megabytes=9.0, advised="NF4 b64 dq"),
    "layer_choices": some_choices,
    "steps_on_roofline": lambda llama, ids: plots.steps_on_roofline(ROOF, {"FP32": (Layer(64, 64), 2e-4)}),
    "step_times": lambda llama, ids: plots.step_times(ROOF, {"FP32": (Layer(64, 64), 2e-4)}, first=0),
    "grouped_times": lambda llama, ids: plots.grouped_times({"one": {"a": 1e-3}, "two": {"a": 2e-3}}, "cases"),
    "listing": lambda llama, ids: plots.listing("vpdpbusd\njne", "a loop", ["jne"]),
    "LayerOnRoofline": lambda llama, ids: plots.LayerOnRoofline(ROOF, Layer(64, 64, 4, 32), {"floats": 2e-4}, "one"),
    "roofline": lambda llama, ids: roofline(a_record(), (100, 200), 1),
    "WordPicture": lambda llama, ids: a_word(4),
    "WordPicture, two words": lambda llama, ids: a_word(8),
    "written_by": lambda llama, ids: some_programs(),
    "register_bits": lambda llama, ids: plots.register_bits(
        [("the word", 0x9ABCDEF0, "codes"), ("shr", 1, "one")], "bits"
    ),
    "operand_fill": lambda llama, ids: plots.operand_fill((1, 5)),
    "times_by_tokens": lambda llama, ids: plots.times_by_tokens(
        recorded("h100-14336x4096"), ["bf16", "W4 g128 bf16", "gemlite W4 g128", "W8A8 dynamic bf16"]
    ),
    "ratios_to_baseline": lambda llama, ids: plots.ratios_to_baseline(
        {"one": recorded("h100-14336x4096"), "two": recorded("h200-14336x4096")}, ["W4 g128 bf16", "W8A8 dynamic bf16"]
    ),
    "on_rooflines": lambda llama, ids: plots.on_rooflines(
        {"H100": (recorded("h100-14336x4096"), ["bf16"]), "CPU": (recorded("cpu-4096x4096"), ["torch fp32"])}
    ),
    "guess_against_truth": lambda llama, ids: plots.guess_against_truth(plots.Said("a share", 50, 88.2, "percent")),
    "guesses_against_truth": lambda llama, ids: plots.guesses_against_truth(
        [plots.Said("a share", 50, 88.2, "percent"), plots.Said("a time", 9.0, 2.0, varies=True)]
    ),
    "number_line": lambda llama, ids: plots.number_line(
        a_weight()[:1], {f"{b} bits": qkit.quantize_tensor(a_weight()[:1], bits=b) for b in (4, 2)}
    ),
    "memory_bars": lambda llama, ids: plots.memory_bars(
        {"FP16": {"codes": 12.9, "rest": 0.5}, "W4": {"codes": 3.4, "rest": 0.5}}, {"a phone": 8}
    ),
    "errors_in_steps": lambda llama, ids: plots.errors_in_steps({"one": np.linspace(-0.5, 0.5, 99)}, "errors"),
}
NOT_WRITTEN = {"layers"}  # one tick a block


@pytest.fixture(params=FIGURES)
def picture(request, llama, ids):
    return FIGURES[request.param](llama, ids)


OF_THEIR_OWN = {"file_layouts", "judged_errors"}  # bytes in a padded strip, marks: test_file_layout.py, test_judged.py


def test_every_figure_is_here():
    called = {name for name in plots.__all__ if name[0].islower()} - {
        *(
            "attainable",
            "best_that_fits",
            "channel_errors",
            "column_steps",
            "consumers_weight",
            "cost_left",
            "fold_label",
            "four_bit_levels",
        ),
        *(
            "file_piece",
            "four_bit_sqnr",
            "frontier",
            "group_by_scale",
            "input_label",
            "level_use",
            "levels",
            "output_error",
            "scale_at",
        ),
        *("smooth_inputs", "w8a8_error"),
    }
    assert called - OF_THEIR_OWN <= set(FIGURES)


def test_all_its_data_are_drawn_and_plain_without_a_complaint(picture):
    assert picture.data and picture.alt
    for name, value in picture.data.items():
        assert isinstance(name, str) and isinstance(value, (np.ndarray, float, int, str, np.generic)), name
        assert name in NOT_WRITTEN or is_drawn(value, picture), name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert picture.png().startswith(b"\x89PNG")
