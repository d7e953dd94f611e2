"""SmoothQuant and W8A8: integers on both sides of the product.

What
    INT8 x INT8 -> INT32 needs activations in INT8 too. One scale for all channels of a token lets a channel that is 50
    times larger than the rest (large models grow such channels) take all 255 levels for itself. SmoothQuant divides each
    channel of X by s_j and multiplies the matching weights by s_j: the same function, with the difficulty moved from the
    activations, where a scale a channel is not to be had, to the weights, where it is mild.

Formula (Xiao et al. 2022, arXiv 2211.10438, eq. 4)
    s_j = max|X_j|^α / max|W_j|^(1-α)        Y = (X diag(s)⁻¹) (diag(s) W)
    dynamic   one activation scale a token, absmax / 127, found while computing
    static    one a layer, found in calibration: the largest |x|, its 99.99th percentile, or the range with the least
              squared error

Trade-off
    α = 1 makes every channel of X equally large and hands all difficulty to the weights, α = 0 the other way round; to leave
    things as they are is neither, and is tried too where α is searched.
    Static scales cost nothing at run time, and one token that is unlike the others (the first one, in many models) can
    set the range of all.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from qkit.model.calibration import InputStatistics, magnitude_edges

LEVELS = 127
ALPHAS = tuple(i / 20 for i in range(21))


def smoothing_factor(x_absmax: Tensor, w_absmax: Tensor, alpha: float) -> Tensor:
    """s_j = max|X_j|^α / max|W_j|^(1-α), float32 [in]; 1 where a channel of X or W is zero throughout."""
    alive = (x_absmax > 0) & (w_absmax > 0)
    scale = x_absmax.clamp(min=1e-5).pow(alpha) / w_absmax.clamp(min=1e-5).pow(1 - alpha)
    return torch.where(alive, scale, torch.ones_like(scale))


def fake_int8(x: Tensor, reach: Tensor) -> Tensor:
    """x on the 255 levels from -reach to reach."""
    scale = torch.where(reach > 0, reach, torch.ones_like(reach)) / LEVELS
    return torch.round(x / scale).clamp(-LEVELS, LEVELS) * scale


def search_alpha(
    weight: Tensor,
    sample: Tensor,
    x_absmax: Tensor,
    w_absmax: Tensor,
    static: bool,
    spread: Callable[[Tensor], Tensor],
) -> dict[float, float]:
    """The relative squared error of the layers' output in W8A8, for each alpha of `ALPHAS`.

    Args:
        weight: float [out, in], all layers that share the input, one below the other.
        sample: [tokens, in], some of the inputs.
        x_absmax, w_absmax: [width], what the factors are taken from.
        static: one activation scale for all tokens.
        spread: from a factor [width] to one for each input, [in].
    """
    losses = {}
    for alpha in ALPHAS:
        s = spread(smoothing_factor(x_absmax, w_absmax, alpha))
        losses[alpha] = w8a8_loss(weight, sample, s, (spread(x_absmax) / s).max() if static else None)
    return losses


def w8a8_loss(weight: Tensor, sample: Tensor, s: Tensor, reach: Tensor | None = None) -> float:
    """||Y - Y_int8||² / ||Y||² with inputs divided by `s` [in]; `reach` is that of a static range, None: one a token."""
    weight = weight.float()
    x, w, exact = sample / s, weight * s, sample @ weight.T
    reach = x.abs().amax(-1, keepdim=True) if reach is None else reach
    y = fake_int8(x, reach) @ fake_int8(w, w.abs().amax(-1, keepdim=True)).T
    return float((y - exact).square().sum() / exact.square().sum().clamp(min=1e-30))


def static_reach(inputs: InputStatistics, how: str) -> Tensor:
    """The |x| that code 127 stands for in a static layer, a float32 scalar.

    Args:
        how: "min-max", "percentile" (99.99) or "mse"; the last two need the histogram of |x|.
    """
    largest = inputs.absmax.max()
    if how == "min-max" or largest == 0:
        return largest
    edges, counts = magnitude_edges(largest.device), inputs.magnitudes
    if how == "percentile":
        within = int(torch.searchsorted(counts.cumsum(0), 0.9999 * counts.sum()))
        return torch.minimum(edges[within + 1], largest)
    middles = (edges[:-1] + edges[1:]) / 2
    reaches = largest * torch.linspace(1, 0.02, 100, device=largest.device)
    errors = middles - fake_int8(middles, reaches[:, None])
    # Where a bin is wider than a step, its middle says nothing of the others: they err by step²/12 on average.
    steps = reaches[:, None] / LEVELS
    coarse = (edges.diff() > steps) & (middles <= reaches[:, None])
    cost = torch.where(coarse, steps.square() / 12, errors.square()).double() @ counts.double()
    return reaches[cost.argmin()]
