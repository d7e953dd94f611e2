"""Exercises of lesson 05: salient channels, AWQ's scale, and folding it away."""

import torch

from qkit.exercises.core import Exercise
from qkit.exercises.draws import Draw


def salient_channels(x: torch.Tensor, k: int) -> list[int]:
    """The numbers of the k input channels of x [tokens, in] with the largest mean |x|, ascending."""
    return sorted(x.abs().mean(0).topk(k).indices.tolist())


def awq_scale(x: torch.Tensor, alpha: float) -> torch.Tensor:
    """s = mean|x|^α of each channel of x [tokens, in], divided by √(max s · min s): its extremes lie around 1."""
    s = x.abs().mean(0) ** alpha
    return s / (s.max() * s.min()).sqrt()


def fold(gain: torch.Tensor, weight: torch.Tensor, s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The gain [in] of a norm and the weight [out, in] after it, with s [in] moved from the activations to the weight."""
    return gain / s, weight * s


def _balanced(s: torch.Tensor) -> torch.Tensor:
    return s / (s.max() * s.min()).sqrt()


_X = torch.randn(40, 8, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 3, 0.5, 8, 1, 2, 0.2, 1.5])
_X[0, 4] = 60.0  # one token is large in a channel that is small otherwise
_X[:, 5] += 4.0  # a channel that is nearly always positive
_Y = torch.rand(30, 6, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.2, 5, 6) - 0.1
_GAIN = torch.tensor([1.0, 0.5, 2.0, 1.5])
_W = torch.randn(4, 4, generator=torch.Generator().manual_seed(2))
_S = torch.tensor([4.0, 1.0, 0.5, 2.0])


def _channels_to_choose(d: Draw) -> tuple[torch.Tensor, int]:
    x = d.weight(d.whole(1, 20), d.whole(2, 12))
    return x - d.one_of(0, 1) * x.std(), d.whole(1, x.shape[1])


def _norm_and_weight(d: Draw) -> tuple[torch.Tensor, ...]:
    features = d.whole(1, 8)
    return d.normal(features), d.weight(d.whole(1, 8), features), d.normal(features).exp()


EXERCISES = (
    Exercise(
        name="05.1",
        minutes=5,
        difficulty="easy",
        hints=(
            "One number a channel: the mean over the tokens, which are the rows, of the magnitude.",
            "topk gives numbers and where they stood, the largest first; the answer is a list in ascending order.",
        ),
        solution=salient_channels,
        cases=((_X, 2), (_X, 1), (_Y, 3), (-_Y, 2)),
        edges={
            "one token": (_Y[:1], 2),
            "all channels": (_Y, 6),
            "negative activations": (-_Y.abs() - 0.1, 3),
            "one channel": (_Y[:, :1], 1),
        },
        draw=_channels_to_choose,
        mistakes=(
            (
                lambda x, k: sorted(x.abs().amax(0).topk(k).indices.tolist()),
                "that ranks by the largest |x|, which one strange token can set; AWQ takes the mean.",
            ),
            (
                lambda x, k: sorted(x.mean(0).topk(k).indices.tolist()),
                "the mean of x lets signs cancel; take the mean of |x|.",
            ),
            (
                lambda x, k: sorted(x.mean(0).abs().topk(k).indices.tolist()),
                "the magnitude comes before the mean: signs cancel in yours.",
            ),
            (
                lambda x, k: sorted((-x.abs().mean(0)).topk(k).indices.tolist()),
                "those are the channels with the smallest mean |x|.",
            ),
            (
                lambda x, k: x.abs().mean(0).topk(k).indices.tolist(),
                "right channels; give them in ascending order.",
            ),
            (
                lambda x, k: sorted(x.abs().mean(1).topk(k).indices.tolist()),
                "those are tokens: the mean goes over the rows, mean(0).",
            ),
        ),
    ),
    Exercise(
        name="05.2",
        minutes=5,
        difficulty="easy",
        hints=(
            "One number a channel, first: over which axis goes the mean, and what comes before it?",
            "After dividing, max s times min s is 1: try that on yours.",
        ),
        solution=awq_scale,
        cases=((_X, 0.5), (_X, 1.0), (_Y, 0.3), (_X, 0.0)),
        edges={
            "one token": (_Y[:1], 0.5),
            "negative activations": (-_Y.abs() - 0.1, 0.5),
            "very small activations": (_Y * 1e-5, 0.7),
            "one channel": (_Y[:, :1] - 1, 0.5),
        },
        draw=lambda d: (d.weight(d.whole(1, 20), d.whole(2, 9)), d.real(0, 1)),
        mistakes=(
            (
                lambda x, a: x.abs().mean(0) ** a,
                "the last step is missing: divide by √(max s · min s), so that the scales lie around 1.",
            ),
            (
                lambda x, a: _balanced(x.abs().mean(0) * a if a else torch.ones(x.shape[1])),
                "alpha is an exponent, not a factor.",
            ),
            (
                lambda x, a: _balanced(x.abs().amax(0) ** a),
                "that takes the largest |x|, as SmoothQuant does; AWQ takes the mean.",
            ),
            (
                lambda x, a: x.abs().mean(0) ** a / (x.abs().mean(0) ** a).mean(),
                "that divides by the mean of s; divide by √(max s · min s).",
            ),
            (
                lambda x, a: x.abs().mean(0) ** a / (x.abs().mean(0) ** a).max(),
                "that divides by the largest s; divide by √(max s · min s).",
            ),
            (
                lambda x, a: _balanced(x.abs().mean(0) ** -a),
                "that is 1/s: channels with large activations must get the large scales.",
            ),
            (
                lambda x, a: _balanced(x.abs().mean(0) ** (1 - a)),
                "the exponent is alpha, not 1 - alpha.",
            ),
        ),
    ),
    Exercise(
        name="05.3",
        minutes=6,
        difficulty="easy",
        hints=(
            "x · gain is what the layer sees. If it is divided by s, what must its columns be?",
            "One of the two is divided by s, the other is multiplied; s runs along the inputs of the weight. Which axis is that?",
        ),
        solution=fold,
        cases=((_GAIN, _W, _S), (torch.ones(4), _W[:2], _S), (_GAIN, _W, torch.ones(4))),
        edges={
            "one output": (_GAIN, _W[:1], _S),
            "more outputs than inputs": (_GAIN[:2], _W[:, :2], _S[:2]),
            "gains below 0": (-_GAIN, _W, _S),
        },
        draw=_norm_and_weight,
        mistakes=(
            (
                lambda g, w, s: (g * s, w / s),
                "the function is kept, but the wrong way round: the weights are to become larger by s.",
            ),
            (lambda g, w, s: (g, w * s), "the gain is not divided: the function has changed."),
            (lambda g, w, s: (g / s, w), "the weight is not multiplied: the function has changed."),
            (lambda g, w, s: (g / s, w / s), "both are divided: one must undo the other."),
            (
                lambda g, w, s: (g / s, w * s[: len(w), None]),
                "s multiplies the columns of the weight, one for each input; yours multiplies rows.",
            ),
        ),
    ),
)
