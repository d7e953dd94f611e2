"""Exercises of lesson 06: the smoothing factor, an integer product, and a static step."""

import math

import torch

from qkit.exercises.core import Exercise


def smoothing_factor(x: torch.Tensor, w: torch.Tensor, alpha: float) -> torch.Tensor:
    """s_j = max|X_j|^α / max|W_j|^(1-α) for each channel of x [tokens, in] and w [out, in]: [in]."""
    return x.abs().amax(0) ** alpha / w.abs().amax(0) ** (1 - alpha)


def int8_product(
    x_codes: torch.Tensor, x_scales: torch.Tensor, w_codes: torch.Tensor, w_scales: torch.Tensor
) -> torch.Tensor:
    """Y [tokens, out] of x_codes int8 [tokens, in] with x_scales [tokens], w_codes int8 [out, in] with w_scales [out]."""
    sums = x_codes.int() @ w_codes.int().T
    return sums * x_scales[:, None] * w_scales


def static_step(x: torch.Tensor, share: float) -> float:
    """The step of a static INT8 range -127 .. 127 that holds `share` of all |x|: the ⌈share n⌉-th smallest of n, by 127."""
    magnitudes = x.abs().flatten().sort().values
    return float(magnitudes[math.ceil(share * len(magnitudes)) - 1]) / 127


def _reach(x: torch.Tensor, share: float) -> float:
    return static_step(x, share) * 127


_G = torch.Generator().manual_seed(0)
_X = torch.randn(20, 6, generator=_G) * torch.tensor([1.0, 30, 0.5, 2, 4, 1])
_X[:, 3] -= 6.0  # its largest magnitude is negative
_W = torch.randn(5, 6, generator=_G) * torch.tensor([0.1, 0.02, 0.3, 0.1, 0.2, 0.5])
_XC = torch.randint(-127, 128, (3, 16), generator=_G).to(torch.int8)
_WC = torch.randint(-127, 128, (4, 16), generator=_G).to(torch.int8)
_XS, _WS = torch.tensor([0.1, 0.02, 0.5]), torch.tensor([0.01, 0.03, 0.002, 0.1])

EXERCISES = (
    Exercise(
        name="06.1",
        hints=(
            "The largest magnitude of each column: .abs().amax(0), of x and of w.",
            "x.abs().amax(0) ** alpha / w.abs().amax(0) ** (1 - alpha)",
        ),
        solution=smoothing_factor,
        cases=((_X, _W, 0.5), (_X, _W, 0.8), (_X, _W, 1.0), (_X, _W, 0.0)),
        mistakes=(
            (
                lambda x, w, a: x.abs().amax(0) ** (1 - a) / w.abs().amax(0) ** a,
                "the exponents are swapped: α belongs to X.",
            ),
            (
                lambda x, w, a: x.abs().amax(0) ** a / w.abs().amax(0) ** a,
                "the weights take the exponent 1 - α.",
            ),
            (
                lambda x, w, a: x.abs().amax(0) ** a * w.abs().amax(0) ** (1 - a),
                "divide by the part of the weights: they are multiplied by s, and large ones bear less.",
            ),
            (
                lambda x, w, a: w.abs().amax(0) ** (1 - a) / x.abs().amax(0) ** a,
                "that is 1/s: X is divided by s, so s must be large where X is.",
            ),
            (lambda x, w, a: x.abs().amax(0) ** a, "the weights are missing (eq. 4 divides by max|W|^(1-α))."),
            (
                lambda x, w, a: x.amax(0) ** a / w.amax(0) ** (1 - a),
                "the largest value is not the largest magnitude: take abs() first.",
            ),
            (
                lambda x, w, a: x.abs().mean(0) ** a / w.abs().mean(0) ** (1 - a),
                "that takes means, as AWQ does; the range is set by the maximum.",
            ),
        ),
    ),
    Exercise(
        name="06.2",
        hints=("Go to .int() before the product.", "sums * x_scales[:, None] * w_scales"),
        solution=int8_product,
        cases=((_XC, _XS, _WC, _WS), (_XC[:1], _XS[:1], _WC, _WS), (_XC, torch.ones(3), _WC, torch.ones(4))),
        mistakes=(
            (
                lambda xc, xs, wc, ws: (xc @ wc.T) * xs[:, None] * ws,
                "int8 times int8 stays int8 and wraps around: go to .int() first.",
            ),
            (
                lambda xc, xs, wc, ws: (xc.int() @ wc.int().T) * xs[:, None],
                "the scales of the weight are missing.",
            ),
            (lambda xc, xs, wc, ws: (xc.int() @ wc.int().T) * ws, "the scales of the activations are missing."),
            (
                lambda xc, xs, wc, ws: xc.int() @ wc.int().T,
                "those are the sums of codes; multiply by both scales.",
            ),
            (
                lambda xc, xs, wc, ws: (xc.int() @ wc.int().T) / (xs[:, None] * ws),
                "multiply by the scales: a code stands for scale times code.",
            ),
            (
                lambda xc, xs, wc, ws: (xc.int() @ wc.int().T) * (xs[:, None] + ws),
                "the two scales multiply, they do not add.",
            ),
        ),
    ),
    Exercise(
        name="06.3",
        hints=(
            "Sort all |x|. With n numbers, the ⌈share · n⌉-th is at position ⌈share · n⌉ - 1.",
            "127 codes reach it: divide by 127.",
        ),
        solution=static_step,
        cases=((_X, 1.0), (_X, 0.9), (_X, 0.5), (torch.arange(-50.0, 51)[:, None], 0.99)),
        mistakes=(
            (lambda x, p: _reach(x, p), "that is the reach; a step is 127 times smaller."),
            (lambda x, p: _reach(x, p) / 255, "the reach lies on one side of zero: 127 steps, not 255."),
            (lambda x, p: _reach(x, p) / 128, "the largest code is 127: divide by 127."),
            (lambda x, p: float(x.abs().max()) / 127, "that is min-max: the share is not used."),
            (
                lambda x, p: p * float(x.abs().max()) / 127,
                "that is a share of the range; a share of the values is asked.",
            ),
            (
                lambda x, p: float(x.flatten().sort().values[math.ceil(p * x.numel()) - 1]) / 127,
                "sort the magnitudes |x|: negative numbers count too.",
            ),
        ),
    ),
)
