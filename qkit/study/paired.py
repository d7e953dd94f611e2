"""How far a figure may be trusted: a mean over passages with its standard error, and a difference on the same passages.

A model has good passages and bad ones, and so has its quantized copy: the same. Over passages the perplexity itself wanders far,
the *difference* of two models on one passage hardly. So differences are taken passage by passage, and their mean gets the error:
a paired comparison, which tells apart what two separate intervals would not.

Passages may be of different lengths. The mean weighs every token alike, so it is the ratio of two sums over passages, and its
variance is that of a ratio (W. G. Cochran, Sampling Techniques, 3rd edition, 1977, chapter 6):

    mean = Σ n_i x_i / Σ n_i,    error² = k / (k - 1) · Σ w_i² (x_i - mean)²,    w_i = n_i / Σ n_j

for k passages of n_i tokens. With equal lengths that is s / sqrt(k). Passages stand for texts that were not taken: what the error
says holds for more text of this kind, and of no other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

TIE = 2  # standard errors: 95 % of a normal distribution lie within


@dataclass(frozen=True)
class Estimate:
    """A mean and one standard error of it; the error is NaN where a single passage says nothing of others."""

    mean: float
    error: float

    @property
    def is_tie(self) -> bool:
        """Whether a difference may as well be none: it lies within two standard errors of 0, or its error is not known."""
        return not abs(self.mean) > TIE * self.error


def mean_of(values: Sequence[float], tokens: Sequence[int]) -> Estimate:
    """The mean of one value a passage over all tokens, and its standard error.

    Args:
        values: for each passage a mean over its tokens, e.g. of KL in nats.
        tokens: for each passage how many tokens.

    Raises:
        ValueError: no passages, or not one value for each.
    """
    if not values or len(values) != len(tokens):
        raise ValueError(f"{len(values)} values for {len(tokens)} passages; give one for each, and at least one")
    total, count = sum(tokens), len(values)
    shares = [n / total for n in tokens]
    mean = math.fsum(share * value for share, value in zip(shares, values, strict=True))
    if count == 1:
        return Estimate(mean, math.nan)
    squares = math.fsum((share * (value - mean)) ** 2 for share, value in zip(shares, values, strict=True))
    return Estimate(mean, math.sqrt(count / (count - 1) * squares))


def paired_difference(values: Sequence[float], others: Sequence[float], tokens: Sequence[int]) -> Estimate:
    """The mean of `values` less that of `others`, both of the same passages, and the standard error of the difference."""
    return mean_of([value - other for value, other in zip(values, others, strict=True)], tokens)
