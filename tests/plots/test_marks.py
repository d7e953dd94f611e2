"""A method has one colour and the bits of its codes one marker, whether a figure knows the scheme or its name alone."""

from dataclasses import replace

import pytest

import qkit
from qkit import plots
from qkit.engine.plan import plan_to_dict
from qkit.methods.registry import SCHEMES
from qkit.plots.marks import OTHER, mark_named, mark_of

EVERY = [scheme.parse(word) for scheme in SCHEMES.values() for word in scheme.spellings]


def test_the_colours_are_those_they_have_always_been():
    assert plots.METHOD_COLOURS == {
        "FP32": "#000000",
        "RTN": "#0072B2",
        "LLM.int8": "#CC79A7",
        "NF4": "#E69F00",
        "FP4": "#F0E442",
        "GPTQ": "#D55E00",
        "AWQ": "#009E73",
        "W8A8": "#999999",
        "SmoothQuant": "#56B4E9",
    }


@pytest.mark.parametrize("scheme", EVERY, ids=lambda scheme: scheme.name)
def test_a_name_has_the_mark_of_its_scheme(scheme):
    mark = mark_of(scheme.to_dict())
    assert mark == mark_named(scheme.name) and mark.colour == type(scheme).colour
    assert mark.marker == {8: "o", 4: "s", 3: "^", 2: "v"}[scheme.weight_bits]


def test_activations_do_not_change_the_bits_of_a_weight():
    scheme = replace(qkit.GPTQ(4, 128), activations="int8")
    assert "W4A8" in scheme.name and mark_named(scheme.name) == mark_of(scheme.to_dict()) == mark_named("GPTQ W4 g128")


def test_the_original_is_black_and_what_is_no_single_scheme_has_a_mark_of_its_own():
    assert mark_of(None) == mark_named("FP32") == ("#000000", "D", "-")
    plan = {"*.down_proj": qkit.RTN(8), "*": qkit.GPTQ(4, 128)}
    assert mark_of(plan_to_dict(plan)) == OTHER
    assert (
        mark_named("*.down_proj: RTN W8 per channel, *: GPTQ W4 g128") == mark_named("") == mark_named("mine") == OTHER
    )
    assert OTHER.colour not in plots.METHOD_COLOURS.values()


def test_a_plan_by_layers_can_be_compared(llama, ids):
    comparison = qkit.compare(llama, [qkit.RTN(8), {"*.down_proj": qkit.RTN(8), "*": qkit.RTN(3)}], ids)
    axes = plots.comparison_picture(comparison).axes[0]
    colours = [line.get_color() for line in axes.lines if len(line.get_xdata()) == 1]
    assert colours == ["#000000", plots.METHOD_COLOURS["RTN"], OTHER.colour]
