"""AWQ: scale the input channels that matter up before rounding, and the activations down by as much.

What
    Rounding costs every weight of a group about the same error. An input channel with large activations multiplies it
    most. Multiply that channel's weights by s > 1 before rounding and divide its activations by s: the function is the
    same, the step of the group hardly grows (one channel in 128), and the error of the channel is s times smaller. No
    weight is kept in high precision.

Formula (Lin et al., arXiv 2306.00978, MLSys 2024, eq. 4; AutoAWQ 0.2.9, `duo_scaling`)
    s* = argmin ||Q(W diag(s)) diag(s)⁻¹ X - W X||²,    s = mean|X|^α / mean|W|^(1-α),   α from a grid on [0, 1]
    The loss needs X only through H = X Xᵀ: ||ΔW X||² = trace(ΔW H ΔWᵀ), so activations need not be kept, and each α costs
    one rounding and one matrix product. s = 1 is tried too: on the calibration text AWQ is never worse than rounding.
    Then, with s folded in, each group's range is shrunk to where trace(ΔW_g H_gg ΔW_gᵀ) is least (clipping).

    The published paper has s = mean|X|^α (eq. 5). The weights stood in the authors' program (mit-han-lab/llm-awq,
    awq/quantize/auto_scale.py) until commit 02c1dd6 of 2023-11-01 and stay in AutoAWQ, where each |W| is measured by the largest
    of its group, as here. Where several layers share an input both programs score the output of the whole attention or
    feed-forward part; their grids end at α = 0.95.

Trade-off
    Two numbers a group and one scale a channel are all that adapts, so it cannot overfit as GPTQ can, and it gains less.
    A channel can only be scaled where something before it can be divided: see `qkit.model.folding`.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qkit import ops
from qkit.methods.gptq import GPTQ
from qkit.methods.grids import search_grid
from qkit.methods.scheme import ScaleSearch, Scheme, Solution, check_weight, check_weight_only, parse_grid, width_name
from qkit.methods.statistics import InputStatistics
from qkit.numerics.arithmetic import power
from qkit.numerics.mapping import (
    FLOATS,
    GroupSize,
    check_bits,
    check_group_size,
    choose_scale,
    granularity_name,
    grouped,
    integer_range,
    quantize,
    value_range,
)
from qkit.numerics.qtensor import QTensor, stored_bits

FLOAT16 = FLOATS["float16"]


@dataclass(frozen=True)
class AWQ(Scheme):
    """AWQ: scales the input channels that matter up before rounding, and folds the scale away (2306.00978).

    Attributes:
        bits: 2 .. 8.
        group_size: weights of a row that share a scale; None: the whole row.
        symmetric: no zero points.
        grid: how many alphas from 0 to 1 are tried.
        clip: search the clipping range too.
        rounding: what rounds the scaled weights, None: to nearest; or a `GPTQ` of your choice.
        activations: "int8": a layer rounds each token it is given to INT8 as well (W4A8 and so on), and multiplies integers;
            faster, and less exact. None: floats.
    """

    calibrated: ClassVar[bool] = True
    scales: ClassVar[bool] = True
    colour: ClassVar[str] = "#009E73"
    spellings: ClassVar[tuple[str, ...]] = ("awq-w3g128",)
    bits: int = 4
    group_size: int | None = 128
    symmetric: bool = False
    grid: int = 20
    clip: bool = True
    rounding: GPTQ | None = None
    activations: str | None = None

    def __post_init__(self) -> None:
        check_bits(self.bits)
        check_weight_only(self.activations)
        check_group_size(self.group_size)
        if self.group_size == "tensor":
            raise ValueError('AWQ clips group by group; group_size="tensor" is for RTN, use None (one scale a row)')
        if not isinstance(self.grid, int) or self.grid < 1:
            raise ValueError(f"grid={self.grid!r} tries no alpha; use a whole number from 1, 20 is usual")
        if self.rounding is not None:
            if not isinstance(self.rounding, GPTQ):
                raise TypeError(f"rounding={self.rounding!r} is no GPTQ scheme; use GPTQ(...) or None")
            mine = (self.bits, self.group_size, self.symmetric)
            if mine != (self.rounding.bits, self.rounding.group_size, self.rounding.symmetric):
                raise ValueError(
                    f"AWQ and its rounding disagree on bits, group_size or symmetric ({self.name} and "
                    f"{self.rounding.name}); give both the same"
                )

    @property
    def name(self) -> str:
        """For example "AWQ W4 g128"."""
        marks = [" sym"] * self.symmetric + [" no clip"] * (not self.clip) + [" + GPTQ"] * (self.rounding is not None)
        return f"AWQ {width_name(self.bits, self.activations)} {granularity_name(self.group_size)}{''.join(marks)}"

    @classmethod
    def parse(cls, word: str) -> "AWQ | None":
        """awq-w4g128, awq-w3g64sym, awq-w4a8g128."""
        grid = parse_grid(word.removeprefix("awq-")) if word.startswith("awq-") else None
        return None if grid is None else cls(**grid)

    @property
    def weight_bits(self) -> int:
        """Bits of one code."""
        return self.bits

    def stored_bits(self, shape: tuple[float, float]) -> float:
        """The code, and a share of the scale and the zero point of its group; the folded scales cost nothing."""
        if self.rounding is not None:
            return self.rounding.stored_bits(shape)
        return stored_bits(shape, self.bits, self.group_size, self.symmetric)

    def check(self, weight: Tensor, name: str = "the weight") -> None:
        """Refuse a weight that is none, or whose rows the groups do not divide."""
        check_weight(weight, name)
        check_group_size(self.group_size, weight.shape[1], name)

    @property
    def wants(self) -> frozenset[str]:
        """The Hessian, for clipping; what the rounding asks for, where that is another method's."""
        if self.rounding is not None:
            return self.rounding.wants
        return frozenset({"square"} if self.clip else ())

    @property
    def sequential(self) -> bool:
        """As its rounding."""
        return self.rounding is not None and self.rounding.sequential

    @property
    def scale_wants(self) -> frozenset[str]:
        """The Hessian: the loss of an alpha is ||ΔW X||²."""
        return frozenset({"square"})

    def search_scale(
        self, weight: Tensor, inputs: InputStatistics, index: Tensor, width: int, name: str = "the layers"
    ) -> ScaleSearch:
        """By `search_scale`."""
        return search_scale(weight, inputs, self, index, width, name)

    def round(self, weight: Tensor, inputs: InputStatistics | None = None, name: str = "the weight") -> Solution:
        """By `awq_round`, or by the `rounding` that was chosen; `weight` is scaled already."""
        if self.rounding is not None:
            return self.rounding.round(weight, inputs, name)
        return Solution(awq_round(weight, inputs, self, name))


def awq_scale(x_mean: Tensor, w_mean: Tensor, alpha: float) -> Tensor:
    """s = mean|X|^α / mean|W|^(1-α), each [in], scaled so that its extremes lie around 1. Dead channels get 1."""
    alive = (x_mean > 0) & (w_mean > 0)
    scale = power(x_mean.clamp(min=1e-8), alpha) / power(w_mean.clamp(min=1e-8), 1 - alpha)
    scale = scale.clamp(min=1e-4)
    if alive.any():
        scale = scale / (scale[alive].max() * scale[alive].min()).sqrt()
    return torch.where(alive, scale, torch.ones_like(scale))


def relative_magnitude(weight: Tensor, group_size: GroupSize) -> Tensor:
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
    weight: Tensor,
    inputs: InputStatistics,
    scheme: AWQ,
    index: Tensor | None = None,
    width: int = 0,
    name: str = "the layers",
) -> ScaleSearch:
    """Try every alpha of the grid on the layers that share these inputs.

    Args:
        weight: float [out, in], the weights of all of them, one below the other.
        inputs: their statistics.
        index, width: when fewer scales than inputs exist (`qkit.model.folding.Fold`): input k uses scale index[k] of `width`.
    """
    weight = weight.detach().float()
    x_mean, w_mean, square = inputs.mean, relative_magnitude(weight, scheme.group_size), inputs.known("square")
    if index is not None:
        x_mean, w_mean = (_mean_by(values, index, width) for values in (x_mean, w_mean))
    total = max(output_loss(weight, square), 1e-30)
    if not math.isfinite(total):
        raise ValueError(f"||W X||² of {name} leaves float32: its inputs are too large; look at the calibration text")
    alphas: list[float | None] = [None] + [i / scheme.grid for i in range(scheme.grid + 1)]
    best: tuple[Tensor, float | None] = (torch.ones_like(x_mean), None)
    losses: list[float] = []
    for alpha in alphas:
        scale = torch.ones_like(x_mean) if alpha is None else awq_scale(x_mean, w_mean, alpha)
        full = scale if index is None else scale[index]
        error = round_to_nearest(weight * full, scheme) / full - weight
        losses.append(output_loss(error, square) / total)
        if losses[-1] <= min(losses):
            best = (scale, alpha)
    return ScaleSearch(best[0], best[1], tuple(alphas), tuple(losses), inputs.mean)


def _mean_by(values: Tensor, index: Tensor, width: int) -> Tensor:
    """The mean of `values` [in] over the inputs of each scale, [width]; summed on the CPU: a card adds them in no order."""
    index, short = index.cpu(), values.cpu()
    total = torch.zeros(width, dtype=torch.float32, device="cpu").index_add(0, index, short)
    count = torch.zeros(width, dtype=torch.float32, device="cpu").index_add(0, index, torch.ones_like(short))
    return (total / count.clamp(min=1)).to(values.device)


def awq_round(weight: Tensor, inputs: InputStatistics | None, scheme: AWQ, name: str = "the weight") -> QTensor:
    """Quantize `weight` [out, in], scaled already, on grids whose ranges are clipped where that lowers the output error."""
    groups = grouped(weight.detach().float(), scheme.group_size, name)
    _, count, size = groups.shape
    if scheme.clip and inputs is not None:
        inputs.check(name)
        every = torch.arange(count, device=weight.device)
        own = inputs.hessian.reshape(count, size, count, size)[every, :, every]

        def cost(error: Tensor) -> Tensor:
            return (torch.einsum("ogi,gij->ogj", error, own) * error).sum(-1, keepdim=True)

        scale, zero = search_grid(groups, scheme.bits, scheme.symmetric, FLOAT16, cost)
    else:
        scale, zero = choose_scale(*value_range(groups), scheme.bits, scheme.symmetric, scale_dtype=FLOAT16)
    codes = quantize(groups, scale, zero, *integer_range(scheme.bits)).reshape(weight.shape)
    return QTensor.from_codes(codes, scale[..., 0], scheme.bits, zero_points=None if scheme.symmetric else zero[..., 0])
