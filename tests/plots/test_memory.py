"""Bars of memory are as long as their parts, and a machine's memory is a line."""

import math

import pytest

from qkit import plots

SIZES = {"FP16": {"codes": 12.9, "rest": 0.5}, "W4": {"codes": 3.2, "rest": 0.5}}


def test_a_bar_is_the_sum_of_its_parts_and_its_words_say_so():
    picture = plots.memory_bars(SIZES, {"a phone": 8}, "7B")
    assert picture.data["codes"].tolist() == [12.9, 3.2] and picture.data["rest"].tolist() == [0.5, 0.5]
    assert picture.alt == "7B: FP16 13.4 GB; W4 3.7 GB. Lines: a phone at 8 GB."
    assert "Lines" not in plots.memory_bars(SIZES).alt


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({}, "no format to draw"),
        ({**SIZES, "W3": {"codes": 3.0}}, "'W3' has the parts"),
        ({"W3": {"codes": -1.0}}, "give a size of 0 or more"),
        ({"W3": {"codes": math.nan}}, "give a size of 0 or more"),
    ],
)
def test_bars_of_nothing_or_of_other_parts_are_refused(sizes, words):
    with pytest.raises(ValueError, match=words):
        plots.memory_bars(sizes)
