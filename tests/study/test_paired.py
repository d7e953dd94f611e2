"""Standard errors over passages against the textbook's formulas, and against what they claim: how often they hold the truth."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkit.study.paired import Estimate, mean_of, paired_difference

VALUES = st.lists(st.floats(-100, 100), min_size=2, max_size=20)


@given(VALUES)
def test_of_equal_lengths_it_is_the_mean_and_s_over_the_root_of_k(values):
    found = mean_of(values, [7] * len(values))
    assert found.mean == pytest.approx(np.mean(values), abs=1e-12)
    assert found.error == pytest.approx(np.std(values, ddof=1) / math.sqrt(len(values)), rel=1e-9, abs=1e-12)


@given(st.lists(st.tuples(st.floats(-100, 100), st.integers(1, 1000)), min_size=2, max_size=20))
def test_of_any_lengths_it_is_the_ratio_of_two_sums(pairs):
    """The variance of a ratio R = Σ y / Σ n as Cochran writes it: Σ (y - R n)² / (k (k - 1)) over the square of the mean n."""
    values, tokens = (np.array(column, float) for column in zip(*pairs, strict=True))
    sums, k = values * tokens, len(pairs)
    ratio = sums.sum() / tokens.sum()
    error = math.sqrt(((sums - ratio * tokens) ** 2).sum() / (k * (k - 1))) / tokens.mean()
    found = mean_of(values.tolist(), tokens.astype(int).tolist())
    assert found.mean == pytest.approx(ratio, rel=1e-9, abs=1e-9)
    assert found.error == pytest.approx(error, rel=1e-6, abs=1e-9)


def test_two_standard_errors_hold_the_truth_about_19_times_in_20():
    """2,000 experiments of 36 passages each; of so many, 95 % have a standard error of 0.5 points."""
    rng = np.random.default_rng(0)
    lengths = rng.choice([511, 1022], size=(2000, 36))
    values = 0.3 + rng.normal(size=(2000, 36))
    estimates = [mean_of(v.tolist(), n.tolist()) for v, n in zip(values, lengths, strict=True)]
    held = np.mean([abs(one.mean - 0.3) <= 2 * one.error for one in estimates])
    assert 0.925 < held < 0.965  # 36 passages, not infinitely many: a little under 95.4 %


def test_a_difference_is_paired():
    """Two models that wander together over passages, one a little worse on each: apart, their intervals overlap widely."""
    rng = np.random.default_rng(1)
    easy = rng.normal(3, 1, 36)
    worse = easy + 0.02 + rng.normal(0, 0.01, 36)
    found = paired_difference(worse.tolist(), easy.tolist(), [511] * 36)
    assert found.mean == pytest.approx(np.mean(worse - easy)) and not found.is_tie
    assert mean_of(worse.tolist(), [511] * 36).error > 50 * found.error


@pytest.mark.parametrize(
    ("mean", "error", "tie"),
    [(0.1, 0.04, False), (-0.1, 0.04, False), (0.1, 0.05, True), (0.0, 0.0, True), (0.1, math.nan, True)],
)
def test_a_difference_within_two_standard_errors_is_a_tie(mean, error, tie):
    assert Estimate(mean, error).is_tie is tie


def test_one_passage_has_a_mean_and_no_error():
    found = mean_of([0.5], [511])
    assert found.mean == 0.5 and math.isnan(found.error)


@pytest.mark.parametrize(("values", "tokens"), [([], []), ([0.1], [1, 2])])
def test_passages_without_values_are_refused(values, tokens):
    with pytest.raises(ValueError, match=rf"{len(values)} values for {len(tokens)} passages; give one for each"):
        mean_of(values, tokens)


def test_rows_of_different_passages_are_no_pairs():
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        paired_difference([0.1, 0.2], [0.1], [1, 1])
