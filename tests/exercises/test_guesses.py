"""A prediction is drawn against the measurement, kept until the lesson's end, and a page of times can be compared."""

import numpy as np
import pytest

from qkit import exercises, plots


def test_a_guess_stands_beside_the_measurement_and_is_kept_once():
    guesses = exercises.Guesses()
    guesses.reveal("a share", 5, 88.2, "percent", digits=1)
    picture = guesses.reveal("a share", 50, 88.2, "percent", digits=1)  # the cell was run again
    assert picture.data == {"truth": 88.2, "guess": 50}
    assert picture.alt == "a share: you said 50 percent; measured: 88.2 percent."
    guesses.reveal("a ratio", None, 0.1)
    end = guesses.all()
    assert list(end.data["about"]) == ["a share", "a ratio"]
    np.testing.assert_allclose(end.data["factors"], [50 / 88.2, np.nan])
    assert end.alt == "a share: said 50, measured 88.2 percent; a ratio: no guess, measured 0.10"


@pytest.mark.parametrize(
    ("guess", "truth", "factor"),
    [(2, 2, 1), (0, 0, 1), (1, 1e9, 0.01), (1e9, 1, 100), (0, 3, 0.01), (-1, -2, 100), (5, 0, 100), (-5, 0, 0.01)],
)
def test_a_guess_that_the_axis_cannot_reach_is_drawn_at_its_end(guess, truth, factor):
    assert plots.Said("it", guess, truth).factor == factor
    assert plots.guess_against_truth(plots.Said("it", guess, truth)).png()


@pytest.mark.parametrize("guess", ["7 MB", float("nan"), float("inf"), True])
def test_a_guess_that_is_no_number_is_refused(guess):
    with pytest.raises(ValueError, match="is no number; write it without its unit"):
        exercises.Guesses().reveal("a size", guess, 10.5, "MB")


def test_what_was_measured_must_be_finite_and_something_must_have_been_revealed():
    with pytest.raises(ValueError, match="a size was measured as nan"):
        exercises.Guesses().reveal("a size", 1, float("nan"))
    with pytest.raises(ValueError, match="no prediction to draw"):
        exercises.Guesses().all()


def test_what_varies_is_in_the_picture_and_not_in_the_text_that_is_compared():
    one = exercises.Guesses().reveal("a time", 3, 0.123, "ms", varies=True)
    data, metadata = one._repr_mimebundle_()
    assert "0.12" not in data["text/plain"] and "0.12" in metadata["image/png"]["alt"]
    same = exercises.Guesses().reveal("a share", 3, 0.123)
    assert same._repr_mimebundle_()[0]["text/plain"] == same.alt
