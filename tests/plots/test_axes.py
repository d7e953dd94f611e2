"""What figures share of axes: a place for every value, one order for several lists."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkit.plots.axes import heights, in_one_order, with_its_value

NUMBERS = st.lists(st.one_of(st.floats(-1e6, 1e6), st.sampled_from([np.inf, -np.inf, 0.0])), min_size=1, max_size=6)


@given(NUMBERS, st.booleans())
def test_every_value_has_a_place_in_its_order_and_what_can_be_drawn_stays(values, log):
    drawn = heights(dict(enumerate(values)), "value", log)
    assert np.isfinite(drawn).all() and (not log or (drawn > 0).all())
    for value, place in zip(values, drawn, strict=True):
        can_be_drawn = 0 < value < np.inf if log else np.isfinite(value)
        assert not can_be_drawn or place == value
        for other, beside in zip(values, drawn, strict=True):
            below = value < other and not (log and other <= 0)
            assert not below or place < beside or (np.isinf(value) and np.isinf(other))


def test_nan_and_nothing_have_no_place():
    with pytest.raises(ValueError, match="the loss of 'one' is NaN"):
        heights({"two": 1.0, "one": np.nan}, "loss")
    with pytest.raises(ValueError, match="there is no loss to draw"):
        heights({}, "loss")


def test_a_label_says_what_its_place_does_not():
    assert [with_its_value("a", value) for value in (1.0, np.inf, 0.0)] == ["a", "a (infinite)", "a (0)"]


def test_several_orders_become_one_that_keeps_each():
    lists = (list("abe"), list("bcde"), list("xa"), [])
    whole = in_one_order(lists)
    assert sorted(whole) == list("abcdex")
    assert all([name for name in whole if name in names] == names for names in lists)
