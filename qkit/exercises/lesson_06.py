"""Exercises of lesson 06: the smoothing factor, an integer product, a static step; and SmoothQuant to be beaten on one layer."""

import math
from collections.abc import Callable

import torch

import qkit
from qkit.exercises.core import Exercise, unwritten
from qkit.exercises.draws import Draw
from qkit.exercises.open_task import LAYER, OpenTask, check_factors, chunks_to_learn_from, the_layer
from qkit.methods.int8 import LEVELS, fake_int8, int8_rows
from qkit.model.inputs import layer_inputs
from qkit.text.tokens import passage_chunks


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


def steps_and_error(answer: Callable) -> tuple[float, float] | None:
    """How many activation steps, and the output error in percent on six tales, of one layer in static W8A8 by `answer`.

    It is given the weight [out, in] and the layer's inputs on other tales [tokens, in], and gives the factors [in] that inputs
    are divided and columns multiplied by, and the step of all activations; None where it gives None.

    Raises:
        ValueError: factors that cannot be folded away, or another number of steps than one.
    """
    model, tokenizer = qkit.load("bookworm-14m")
    weight, learned = the_layer(), chunks_to_learn_from(tokenizer)[::4]
    judging = passage_chunks(qkit.passages("tales")[::6], tokenizer)[0]
    x, test = (layer_inputs(model, ids, [LAYER])[LAYER] for ids in (learned, judging))
    found = answer(weight.clone(), x.clone())
    if unwritten(found):
        return None
    f, step = found[0], torch.as_tensor(found[1], dtype=torch.float32).flatten()
    check_factors(f, weight.shape[1])
    if len(step) != 1 or not (step > 0).all() or not step.isfinite().all():
        raise ValueError(f"the step of the activations is {step.tolist()[:3]}; give one number above 0 for all tokens")
    exact = test @ weight.T
    y = fake_int8(test / f, LEVELS * step) @ int8_rows(weight * f).dequantize().T
    return len(step), 100 * float((y - exact).square().sum() / exact.square().sum())


def _reach(x: torch.Tensor, share: float) -> float:
    return static_step(x, share) * 127


_G = torch.Generator().manual_seed(0)
_X = torch.randn(20, 6, generator=_G) * torch.tensor([1.0, 30, 0.5, 2, 4, 1])
_X[:, 3] -= 6.0  # its largest magnitude is negative
_W = torch.randn(5, 6, generator=_G) * torch.tensor([0.1, 0.02, 0.3, 0.1, 0.2, 0.5])
_XC = torch.randint(-127, 128, (3, 16), generator=_G).to(torch.int8)
_WC = torch.randint(-127, 128, (4, 16), generator=_G).to(torch.int8)
_XS, _WS = torch.tensor([0.1, 0.02, 0.5]), torch.tensor([0.01, 0.03, 0.002, 0.1])


def _tokens_and_weight(d: Draw, alpha: float) -> tuple[torch.Tensor, torch.Tensor, float]:
    features = d.whole(1, 9)
    return d.weight(d.whole(1, 9), features), d.weight(d.whole(1, 9), features), alpha


def _codes_and_scales(d: Draw) -> tuple[torch.Tensor, ...]:
    tokens, outputs, features = d.whole(1, 6), d.whole(1, 6), d.whole(1, 300)
    codes = (d.integers(-127, 127, rows, features, dtype=torch.int8) for rows in (tokens, outputs))
    return next(codes), d.normal(tokens).exp() / 100, next(codes), d.normal(outputs).exp() / 100


def _values_and_share(d: Draw) -> tuple[torch.Tensor, float]:
    """Values, and a share of them that ends well between two."""
    x = d.weight(d.whole(1, 9), d.whole(1, 9))
    return x, (d.whole(1, x.numel()) - d.real(0.1, 0.9)) / x.numel()


EXERCISES = (
    Exercise(
        name="06.1",
        minutes=4,
        difficulty="easy",
        hints=(
            "The largest magnitude of each column: .abs().amax(0), of x and of w.",
            "Both are [in]. The activations have the exponent α and stand above the line; which one is left for the weights?",
        ),
        solution=smoothing_factor,
        cases=((_X, _W, 0.5), (_X, _W, 0.8), (_X, _W, 1.0), (_X, _W, 0.0)),
        edges={
            "one token": (_X[:1], _W, 0.5),
            "one output": (_X, _W[:1], 0.5),
            "negative activations": (-_X.abs(), _W, 0.6),
            "negative weights": (_X, -_W.abs(), 0.6),
            "as many tokens as outputs": (_X[:5], _W, 0.4),
        },
        draw=lambda d: _tokens_and_weight(d, d.real(0, 1)),
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
                "divide by the part of the weights: they are multiplied by f, and large ones bear less.",
            ),
            (
                lambda x, w, a: w.abs().amax(0) ** (1 - a) / x.abs().amax(0) ** a,
                "that is 1/f: X is divided by f, so f must be large where X is.",
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
        minutes=6,
        difficulty="easy",
        hints=(
            "What is 100 times 100 in an int8? Which type holds the sum of all products?",
            "The sums are [tokens, out]: a scale for each token must become a column, one for each row of w a row.",
        ),
        solution=int8_product,
        cases=((_XC, _XS, _WC, _WS), (_XC[:1], _XS[:1], _WC, _WS), (_XC, torch.ones(3), _WC, torch.ones(4))),
        edges={
            "one output": (_XC, _XS, _WC[:1], _WS[:1]),
            "as many tokens as outputs": (_XC, _XS, _WC[:3], _WS[:3]),
            "codes of zero": (_XC * 0, _XS, _WC, _WS),
            "sums that int16 does not hold": (_XC[:1].abs() // 2 + 60, _XS[:1], _WC.abs() // 2 + 60, _WS),
        },
        draw=_codes_and_scales,
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
        minutes=8,
        difficulty="medium",
        hints=(
            "Sort all |x|. With n numbers, the ⌈share · n⌉-th is at position ⌈share · n⌉ - 1.",
            "That is the reach. How many steps are there between 0 and it?",
        ),
        solution=static_step,
        cases=((_X, 1.0), (_X, 0.9), (_X, 0.5), (torch.arange(-50.0, 51)[:, None], 0.99)),
        edges={
            "one value": (torch.tensor([[-3.0]]), 1.0),
            "the smallest value": (_X, 0.004),
            "negative values": (-_X.abs(), 0.75),
            "many equal values": (torch.tensor([[2.0, -2.0, 2.0, 1.0, 9.0]]), 0.79),
        },
        draw=_values_and_share,
        rtol=1e-5,
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

OPEN = OpenTask("06", steps_and_error, budget=1, to_beat=0.41, cost="step", loss="% output error")
