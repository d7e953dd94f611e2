"""Exercises of lesson 05: salient channels, AWQ's scale, folding it away, its search; and AWQ to be beaten on one layer."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import qkit
from qkit.exercises.core import Exercise, unwritten
from qkit.exercises.draws import Draw
from qkit.exercises.open_task import LAYER, OpenTask, check_factors, chunks_to_learn_from, the_layer
from qkit.model.inputs import layer_inputs
from qkit.model.surgery import clone
from qkit.study.evaluate import kl_divergence


def salient_channels(x: torch.Tensor, k: int) -> list[int]:
    """The numbers of the k input channels of x [tokens, in] with the largest mean |x|, ascending."""
    return sorted(x.abs().mean(0).topk(k).indices.tolist())


def awq_scale(x: torch.Tensor, alpha: float) -> torch.Tensor:
    """f = mean|x|^α of each channel of x [tokens, in], divided by √(max f · min f): its extremes lie around 1."""
    f = x.abs().mean(0) ** alpha
    return f / (f.max() * f.min()).sqrt()


def fold(gain: torch.Tensor, weight: torch.Tensor, f: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The gain [in] of a norm and the weight [out, in] after it, with f [in] moved from the activations to the weight."""
    return gain / f, weight * f


def awq_search(weight: torch.Tensor, x: torch.Tensor, rounding: Callable) -> tuple[float, float]:
    """(α, error): the α of 0, 0.1 .. 1 with the least output error ||X (Ŵ - W)ᵀ||², the first of equals, and this error.

    The factors are mean|x|^α, 1 for a dead channel. `rounding` goes from a weight to what its codes stand for.
    """
    mean = x.abs().mean(0)
    mean[mean == 0] = 1
    tried = []
    for i in range(11):
        f = mean ** (i / 10)
        error = (x @ (rounding(weight * f) / f - weight).T).square().sum()
        tried.append((float(error), i / 10))
    error, alpha = min(tried)
    return alpha, error


def bits_and_kl(answer: Callable) -> tuple[float, float] | None:
    """Stored bits a weight, and KL in thousandths of a nat on three tales, of bookworm with one layer as `answer` makes it.

    It is given the weight [out, in] and the layer's inputs on other tales [tokens, in], and gives a stored weight, or a pair of
    one and the factors [in] that its columns were multiplied by; None where it gives None.

    Raises:
        ValueError: factors that cannot be folded away, or a weight of another shape.
    """
    model, tokenizer = qkit.load("bookworm-14m")
    weight, ids = the_layer(), chunks_to_learn_from(tokenizer)[::2]
    found = answer(weight.clone(), layer_inputs(model, ids, [LAYER])[LAYER].clone())
    if unwritten(found):
        return None
    q, f = found if isinstance(found, tuple) else (found, torch.ones(weight.shape[1]))
    check_factors(f, weight.shape[1])
    if q.shape != tuple(weight.shape):
        raise ValueError(f"the answer stands for a weight of {list(q.shape)}; the layer is {list(weight.shape)}")
    copy = clone(model)
    copy.get_submodule(LAYER).weight = torch.nn.Parameter(q.dequantize().float() / f)
    return q.bits_per_weight, 1000 * kl_divergence(model, copy, tokenizer, qkit.passages("tales")[::12])


@dataclass(frozen=True)
class _Rounding:
    """To the nearest of so many levels on each side of zero, a step a row."""

    levels: int

    def __call__(self, w: Tensor) -> Tensor:
        step = w.abs().amax(1, keepdim=True).clamp(min=1e-12) / self.levels
        return torch.round(w / step) * step


def _searched(mean: Callable, loss: Callable, grid: range = range(11), undo: bool = True) -> Callable:
    """A search with other factors, another loss, another grid, or a weight that keeps its factors."""

    def search(w: Tensor, x: Tensor, rounding: Callable) -> tuple[float, float]:
        tried = []
        for i in grid:
            f = mean(x) ** (i / 10)
            tried.append((float(loss(rounding(w * f) / (f if undo else 1) - w, x)), i / 10))
        error, alpha = min(tried)
        return alpha, error

    return search


def _alive_mean(x: Tensor) -> Tensor:
    mean = x.abs().mean(0)
    return torch.where(mean > 0, mean, 1.0)


def _output(error: Tensor, x: Tensor) -> Tensor:
    return (x @ error.T).square().sum()


def _layer_to_search(d: Draw) -> tuple[Tensor, Tensor, _Rounding]:
    channels = d.whole(4, 24)
    x = d.normal(d.whole(5, 30), channels) * (1.2 * d.normal(channels)).exp()
    x[:, d.whole(0, channels - 1)] *= d.one_of(0, 1)
    return d.normal(d.whole(1, 8), channels), x, _Rounding(d.one_of(1, 3, 7))


def _balanced(f: torch.Tensor) -> torch.Tensor:
    return f / (f.max() * f.min()).sqrt()


_X = torch.randn(40, 8, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 3, 0.5, 8, 1, 2, 0.2, 1.5])
_X[0, 4] = 60.0  # one token is large in a channel that is small otherwise
_X[:, 5] += 4.0  # a channel that is nearly always positive
_Y = torch.rand(30, 6, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.2, 5, 6) - 0.1
_GAIN = torch.tensor([1.0, 0.5, 2.0, 1.5])
_W = torch.randn(4, 4, generator=torch.Generator().manual_seed(2))
_S = torch.tensor([4.0, 1.0, 0.5, 2.0])
_SEARCHED = _layer_to_search(Draw("05.4"))
_LOUD = (  # one channel far above the others: the whole of α is best
    torch.randn(3, 6, generator=torch.Generator().manual_seed(2)) * torch.tensor([1, 1, 0.1, 1, 1, 1]),
    _Y * torch.tensor([1.0, 1, 31, 1, 1, 1]),
    _Rounding(3),
)
_WIDE = (torch.randn(6, 8, generator=torch.Generator().manual_seed(3)), _X, _Rounding(3))


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
            "After dividing, max f times min f is 1: try that on yours.",
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
                "the last step is missing: divide by √(max f · min f), so that the scales lie around 1.",
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
                "that divides by the mean of f; divide by √(max f · min f).",
            ),
            (
                lambda x, a: x.abs().mean(0) ** a / (x.abs().mean(0) ** a).max(),
                "that divides by the largest f; divide by √(max f · min f).",
            ),
            (
                lambda x, a: _balanced(x.abs().mean(0) ** -a),
                "that is 1/f: channels with large activations must get the large scales.",
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
            "x · gain is what the layer sees. If it is divided by f, what must its columns be?",
            "One of the two is divided by f, the other is multiplied; f runs along the inputs of the weight. Which axis is that?",
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
                lambda g, w, f: (g * f, w / f),
                "the function is kept, but the wrong way round: the weights are to become larger by f.",
            ),
            (lambda g, w, f: (g, w * f), "the gain is not divided: the function has changed."),
            (lambda g, w, f: (g / f, w), "the weight is not multiplied: the function has changed."),
            (lambda g, w, f: (g / f, w / f), "both are divided: one must undo the other."),
            (
                lambda g, w, f: (g / f, w * f[: len(w), None]),
                "f multiplies the columns of the weight, one for each input; yours multiplies rows.",
            ),
        ),
    ),
    Exercise(
        name="05.4",
        minutes=12,
        difficulty="hard",
        hints=(
            "One α first: make the factors, round the weight that they were multiplied into, divide them out again. What is left "
            "beside the weight is its error, and the inputs multiply it.",
            "Then a loop that keeps what was least so far. Which comparison keeps the first of two that are equal? And what "
            "becomes of a channel of zeros, whose factor would be 0?",
        ),
        solution=awq_search,
        cases=(_SEARCHED, _WIDE, _LOUD),
        edges={
            "a dead channel": (_WIDE[0], _X * (torch.arange(8) != 3), _Rounding(3)),
            "one row": (_WIDE[0][:1], _X, _Rounding(3)),
            "one token": (_WIDE[0], _X[1:2], _Rounding(3)),
            "two levels and zero": (_WIDE[0][:2], _WIDE[1][:9], _Rounding(1)),
            "inputs that are all zero": (_WIDE[0], torch.zeros(3, 8), _Rounding(3)),
        },
        draw=_layer_to_search,
        mistakes=(
            (
                _searched(lambda x: torch.where(x.abs().amax(0) > 0, x.abs().amax(0), 1.0), _output),
                "that takes the largest |x| of a channel, as SmoothQuant does; AWQ takes the mean.",
            ),
            (
                _searched(_alive_mean, lambda error, x: error.square().sum()),
                "that is the error of the weights; the error of the output counts, so let X multiply it.",
            ),
            (
                _searched(_alive_mean, _output, undo=False),
                "divide by the factors after rounding: the activations are divided by them, and the function must stay.",
            ),
            (
                _searched(lambda x: 1 / _alive_mean(x), _output),
                "that divides the columns by their factors before rounding: channels with large activations are to grow.",
            ),
            (
                _searched(_alive_mean, _output, grid=range(1, 11)),
                "α = 0 is missing from the grid: no scaling may be best.",
            ),
            (
                _searched(_alive_mean, _output, grid=range(10)),
                "α = 1 is missing from the grid: range(10) ends at 0.9.",
            ),
            (
                lambda w, x, rounding: (awq_search(w, x, rounding)[0], float(_output(rounding(w) - w, x))),
                "the right α; give the error at this α, not that without scaling.",
            ),
            (
                lambda w, x, rounding: awq_search(w, x, rounding)[::-1],
                "both are right; give α first.",
            ),
        ),
    ),
)

OPEN = OpenTask("05", bits_and_kl, budget=3.15, to_beat=9.32, cost="bits a weight", loss="thousandths of a nat")
