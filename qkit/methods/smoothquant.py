"""SmoothQuant: the difficulty of activations is moved into the weights, then W8A8.

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

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from qkit.methods.gptq import GPTQ
from qkit.methods.int8 import fake_int8
from qkit.methods.scheme import NOTHING, ScaleSearch, Scheme, Solution
from qkit.methods.statistics import InputStatistics
from qkit.methods.w8a8 import W8A8
from qkit.nn.int8_linear import Int8Linear
from qkit.numerics.arithmetic import power
from qkit.numerics.qtensor import QTensor

ALPHAS = tuple(i / 20 for i in range(21))


@dataclass(frozen=True)
class SmoothQuant(Scheme):
    """SmoothQuant: moves the difficulty of activations into the weights, then W8A8 (2211.10438, eq. 4).

    Attributes:
        alpha: 1 moves all difficulty to the weights, 0 all to the activations; None searches it for each smoothed group,
            no smoothing included.
        activations, activation_range: those of `W8A8`.
        rounding: what rounds the smoothed weights, None: to nearest; or `GPTQ(8, None, symmetric=True)`.
    """

    calibrated: ClassVar[bool] = True
    scales: ClassVar[bool] = True
    colour: ClassVar[str] = "#56B4E9"
    spellings: ClassVar[tuple[str, ...]] = ("smoothquant-0.5",)
    alpha: float | None = 0.5
    activations: str = "per-token"
    activation_range: str = "min-max"
    rounding: GPTQ | None = None

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha!r} is outside [0, 1]; use 0.5, or None to search it")
        _ = self.integers
        if self.rounding is not None:
            if not isinstance(self.rounding, GPTQ):
                raise TypeError(f"rounding={self.rounding!r} is no GPTQ scheme; use GPTQ(8, None, symmetric=True)")
            if (self.rounding.bits, self.rounding.group_size, self.rounding.symmetric) != (8, None, True):
                raise ValueError(
                    f"rounding={self.rounding.name} does not give INT8 weights by row; use GPTQ(8, None, symmetric=True)"
                )

    @property
    def name(self) -> str:
        """For example "SmoothQuant 0.5 dynamic"."""
        alpha = "searched" if self.alpha is None else f"{self.alpha:g}"
        rounding = " + GPTQ" * (self.rounding is not None)
        return f"SmoothQuant {alpha} {self.integers.name[5:]}{rounding}"

    @property
    def integers(self) -> W8A8:
        """The scheme that follows when the channels are smooth."""
        return W8A8(self.activations, self.activation_range)

    @classmethod
    def parse(cls, word: str) -> "SmoothQuant | None":
        """smoothquant, smoothquant-0.8, smoothquant-0.5-static."""
        match = re.fullmatch(r"smoothquant(?:-(\d(?:\.\d+)?))?(-static)?", word)
        return None if match is None else cls(float(match[1] or 0.5), "per-tensor" if match[2] else "per-token")

    @property
    def weight_bits(self) -> int:
        """8."""
        return 8

    def stored_bits(self, shape: tuple[float, float]) -> float:
        """As W8A8, or as its rounding stores them; the folded factors cost nothing."""
        return (self.rounding or self.integers).stored_bits(shape)

    @property
    def wants(self) -> frozenset[str]:
        """What W8A8 wants, and its rounding."""
        return self.integers.wants | (NOTHING if self.rounding is None else self.rounding.wants)

    @property
    def sequential(self) -> bool:
        """As its rounding."""
        return self.rounding is not None and self.rounding.sequential

    @property
    def scale_wants(self) -> frozenset[str]:
        """A sample of the inputs, where alpha is searched."""
        return frozenset({"sample"} if self.alpha is None else ())

    def search_scale(
        self, weight: Tensor, inputs: InputStatistics, index: Tensor, width: int, name: str = "the layers"
    ) -> ScaleSearch:
        """The smoothing factors of `alpha`, or of the alpha (none included) with the least error of the output in W8A8."""
        x_absmax, w_absmax = (max_by(v, index, width) for v in (inputs.absmax, weight.abs().amax(0)))
        alpha, losses = self.alpha, {}
        if alpha is None:
            static, sample = self.activations == "per-tensor", inputs.known("sample")
            nothing = w8a8_loss(weight, sample, torch.ones_like(inputs.absmax), inputs.absmax.max() if static else None)
            searched = search_alpha(weight, sample, x_absmax, w_absmax, static, lambda s: s[index])
            losses = {None: nothing, **searched}
            if not all(map(math.isfinite, losses.values())):
                raise ValueError(
                    f"||Y||² of {name} leaves float32: its inputs are too large; look at the calibration text"
                )
            alpha = min(losses, key=losses.__getitem__)
        scale = torch.ones_like(x_absmax) if alpha is None else smoothing_factor(x_absmax, w_absmax, alpha)
        return ScaleSearch(scale, alpha, tuple(losses), tuple(losses.values()), inputs.absmax)

    def round(self, weight: Tensor, inputs: InputStatistics | None = None, name: str = "the weight") -> Solution:
        """As W8A8, or by the `rounding` that was chosen; `weight` is smoothed already."""
        return (self.rounding or self.integers).round(weight, inputs, name)

    def layer(
        self,
        q: QTensor,
        bias: nn.Parameter | None,
        inputs: InputStatistics | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Int8Linear:
        """As W8A8."""
        return self.integers.layer(q, bias, inputs, dtype)


def smoothing_factor(x_absmax: Tensor, w_absmax: Tensor, alpha: float) -> Tensor:
    """s_j = max|X_j|^α / max|W_j|^(1-α), float32 [in]; 1 where a channel of X or W is zero throughout."""
    alive = (x_absmax > 0) & (w_absmax > 0)
    scale = power(x_absmax.clamp(min=1e-5), alpha) / power(w_absmax.clamp(min=1e-5), 1 - alpha)
    return torch.where(alive, scale, torch.ones_like(scale))


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


def max_by(values: Tensor, index: Tensor, width: int) -> Tensor:
    """The largest of `values` [in] over the inputs of each factor, [width]."""
    zeros = torch.zeros(width, dtype=torch.float32, device=values.device)
    return zeros.scatter_reduce(0, index.to(values.device), values, "amax")
