"""What the figure of paired differences draws is what the estimates say."""

import numpy as np
import pytest

from qkit import plots
from qkit.study.paired import Estimate

FOUND = {"less": Estimate(-0.3, 0.1), "as good": Estimate(0.1, 0.06), "more": Estimate(0.2, 0.02)}


def test_intervals_are_two_standard_errors_and_those_that_hold_zero_are_ties():
    picture = plots.paired_differences(FOUND, "three")
    assert np.allclose(picture.data["low"], [-0.5, -0.02, 0.16]) and np.allclose(
        picture.data["high"], [-0.1, 0.22, 0.24]
    )
    assert picture.alt == (
        "three, in nats per token with one standard error: less -0.300 ± 0.100; as good +0.100 ± 0.060 (a tie); "
        "more +0.200 ± 0.020."
    )


def test_what_varies_with_the_machine_is_left_out_of_the_text_that_is_compared():
    text, _ = plots.paired_differences(FOUND, "three", varies=True)._repr_mimebundle_()
    assert text["text/plain"] == "three: less, as good, more, with their intervals"


def test_what_has_no_interval_is_refused():
    with pytest.raises(ValueError, match=r"'one' is 0.1 \+- nan, which is no interval"):
        plots.paired_differences({"one": Estimate(0.1, float("nan"))}, "one passage")
    with pytest.raises(ValueError, match="no difference to draw"):
        plots.paired_differences({}, "nothing")
