"""AWQ: scale the input channels that matter up before rounding, and the activations down by as much.

What
    Rounding costs every weight of a group about the same error. An input channel with large activations multiplies it
    most. Multiply that channel's weights by s > 1 before rounding and divide its activations by s: the function is the
    same, the step of the group hardly grows (one channel in 128), and the error of the channel is s times smaller. No
    weight is kept in high precision.

Formula (Lin et al. 2023, arXiv 2306.00978, eq. 4 and 5)
    s* = argmin ||Q(W diag(s)) diag(s)⁻¹ X - W X||²,    s = mean|X|^α / mean|W|^(1-α),   α from a grid on [0, 1]
    The loss needs X only through H = X Xᵀ: ||ΔW X||² = trace(ΔW H ΔWᵀ), so activations need not be kept, and each α costs
    one rounding and one matrix product. s = 1 is tried too: on the calibration text AWQ is never worse than rounding.
    Then, with s folded in, each group's range is shrunk to where trace(ΔW_g H_gg ΔW_gᵀ) is least (clipping).

Trade-off
    Two numbers a group and one scale a channel are all that adapts, so it cannot overfit as GPTQ can, and it gains less.
    A channel can only be scaled where something before it can be divided: see `qkit.model.folding`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from qkit import ops
from qkit.methods.grids import search_grid
from qkit.methods.schemes import AWQ, FLOATS
from qkit.model.calibration import InputStatistics
from qkit.numerics.mapping import choose_scale, grouped, integer_range, quantize, value_range
from qkit.numerics.qtensor import QTensor

FLOAT16 = FLOATS["float16"]


@dataclass(frozen=True, eq=False)
class ScaleSearch:
    """What a search over alpha found.

    Attributes:
        scale: float32 [in], what the weights are multiplied by; ones where no scaling was best.
        alpha: of the scale; None for no scaling.
        alphas, losses: all that were tried, and the output error of each, relative to ||W X||²; the first alpha is None.
    """

    scale: Tensor
    alpha: float | None
    alphas: tuple[float | None, ...]
    losses: tuple[float, ...]


def awq_scale(x_mean: Tensor, w_mean: Tensor, alpha: float) -> Tensor:
    """s = mean|X|^α / mean|W|^(1-α), each [in], scaled so that its extremes lie around 1. Dead channels get 1."""
    alive = (x_mean > 0) & (w_mean > 0)
    scale = x_mean.clamp(min=1e-8).pow(alpha) / w_mean.clamp(min=1e-8).pow(1 - alpha)
    scale = scale.clamp(min=1e-4)
    if alive.any():
        scale = scale / (scale[alive].max() * scale[alive].min()).sqrt()
    return torch.where(alive, scale, torch.ones_like(scale))


def relative_magnitude(weight: Tensor, group_size: int | None) -> Tensor:
    """mean|W| of each input channel, [in], every weight measured by the largest of its group: 1 is a full-range channel."""
    groups = grouped(weight.float(), group_size).abs()
    return (groups / groups.amax(-1, keepdim=True).clamp(min=1e-12)).reshape(weight.shape).mean(0)


def output_loss(error: Tensor, square: Tensor) -> float:
    """||ΔW X||² = trace(ΔW (X Xᵀ) ΔWᵀ) for ΔW [out, in]."""
    return float(((error @ square) * error).sum())


def round_to_nearest(weight: Tensor, scheme: AWQ) -> Tensor:
    """ŵ, float32 [out, in], on the min-max grid of the scheme."""
    groups = grouped(weight, scheme.group_size)
    s, z = choose_scale(*value_range(groups), scheme.bits, scheme.symmetric, scale_dtype=FLOAT16)
    return ops.round_trip(groups, s, z, scheme.bits).reshape(weight.shape)


def search_scale(
    weight: Tensor, inputs: InputStatistics, scheme: AWQ, index: Tensor | None = None, width: int | None = None
) -> ScaleSearch:
    """Try every alpha of the grid on the layers that share these inputs.

    Args:
        weight: float [out, in], the weights of all of them, one below the other.
        inputs: their statistics.
        index, width: when fewer scales than inputs exist (`qkit.model.folding.Fold`): input k uses scale index[k] of `width`.
    """
    weight = weight.detach().float()
    x_mean, w_mean = inputs.mean, relative_magnitude(weight, scheme.group_size)
    if index is not None:
        x_mean, w_mean = (_mean_by(values, index, width) for values in (x_mean, w_mean))
    total = max(output_loss(weight, inputs.square), 1e-30)
    alphas: list[float | None] = [None] + [i / scheme.grid for i in range(scheme.grid + 1)]
    best, losses = None, []
    for alpha in alphas:
        scale = torch.ones_like(x_mean) if alpha is None else awq_scale(x_mean, w_mean, alpha)
        full = scale if index is None else scale[index]
        error = round_to_nearest(weight * full, scheme) / full - weight
        losses.append(output_loss(error, inputs.square) / total)
        if losses[-1] <= min(losses):
            best = (scale, alpha)
    return ScaleSearch(best[0], best[1], tuple(alphas), tuple(losses))


def _mean_by(values: Tensor, index: Tensor, width: int) -> Tensor:
    """The mean of `values` [in] over the inputs of each scale, [width]."""
    index = index.to(values.device)
    total = torch.zeros(width, device=values.device).index_add(0, index, values)
    count = torch.zeros(width, device=values.device).index_add(0, index, torch.ones_like(values))
    return total / count.clamp(min=1)


def awq_round(weight: Tensor, inputs: InputStatistics | None, scheme: AWQ, name: str = "the weight") -> QTensor:
    """Quantize `weight` [out, in], scaled already, on grids whose ranges are clipped where that lowers the output error."""
    groups = grouped(weight.detach().float(), scheme.group_size, name)
    _, count, size = groups.shape
    if scheme.clip and inputs is not None:
        inputs.check(name)
        own = inputs.hessian.reshape(count, size, count, size)[torch.arange(count), :, torch.arange(count)]

        def cost(error: Tensor) -> Tensor:
            return (torch.einsum("ogi,gij->ogj", error, own) * error).sum(-1, keepdim=True)

        scale, zero = search_grid(groups, scheme.bits, scheme.symmetric, FLOAT16, cost)
    else:
        scale, zero = choose_scale(*value_range(groups), scheme.bits, scheme.symmetric, scale_dtype=FLOAT16)
    codes = quantize(groups, scale, zero, *integer_range(scheme.bits)).reshape(weight.shape)
    return QTensor.from_codes(codes, scale[..., 0], scheme.bits, zero_points=None if scheme.symmetric else zero[..., 0])
