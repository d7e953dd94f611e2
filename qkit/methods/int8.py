"""INT8 by row and by range: what every scheme is made of that multiplies integers with integers.

Formula (LLM.int8(), Dettmers et al. 2022, arXiv 2208.07339, eq. 3; SmoothQuant, Xiao et al. 2022, arXiv 2211.10438, section 2)
    weights       q = round(w 127 / absmax),    ŵ = q absmax / 127        a scale a row
    activations   the same with a scale a token, found while computing; or with one for all, `static_reach / 127`
"""

import torch
from torch import Tensor

from qkit.methods.statistics import InputStatistics, magnitude_edges
from qkit.numerics.arithmetic import divided
from qkit.numerics.mapping import check_finite
from qkit.numerics.qtensor import QTensor

LEVELS = 127
RANGES = ("min-max", "percentile", "mse")  # how a fixed range may be chosen


def int8_rows(weight: Tensor, name: str = "the weight") -> QTensor:
    """Quantize `weight` [out, in], any float dtype, to INT8 by row: codes 1 .. 255 around 128, float32 scales absmax / 127.

    bitsandbytes casts its weights to float16 first; `int8_rows(weight.half())` makes its codes.

    Raises:
        ValueError: NaN or infinity in the weight.
    """
    values = weight.detach().float()
    check_finite(values, name)
    absmax = values.abs().amax(1, keepdim=True)
    # A row of zeros gets scale 1; a row of denormals one that is not, so that neither quotient leaves float32
    absmax = torch.where(absmax > 0, absmax.clamp(min=127 * torch.finfo(torch.float32).tiny), 127.0)
    return QTensor.from_codes(torch.round(values * (127 / absmax)) + 128, divided(absmax, 127), 8)


def fake_int8(x: Tensor, reach: Tensor) -> Tensor:
    """x on the 255 levels from -reach to reach."""
    scale = divided(torch.where(reach > 0, reach, torch.ones_like(reach)), LEVELS)
    return torch.round(x / scale).clamp(-LEVELS, LEVELS) * scale


def static_reach(inputs: InputStatistics, how: str) -> Tensor:
    """The |x| that code 127 stands for in a static layer, a float32 scalar.

    Args:
        how: "min-max", "percentile" (99.99) or "mse"; the last two need the histogram of |x|.
    """
    largest = inputs.absmax.max()
    if how == "min-max" or largest == 0:
        return largest
    edges, counts = magnitude_edges(largest.device), inputs.known("magnitudes")
    if how == "percentile":
        within = int(torch.searchsorted(counts.cumsum(0), 0.9999 * counts.sum().float()))
        return torch.minimum(edges[within + 1], largest)
    middles = (edges[:-1] + edges[1:]) / 2
    shares = torch.linspace(1, 0.02, 100, dtype=torch.float32, device="cpu")  # a card's own differ in the last bit
    reaches = largest * shares.to(largest.device)
    errors = middles - fake_int8(middles, reaches[:, None])
    # Where a bin is wider than a step, its middle says nothing of the others: they err by step²/12 on average.
    steps = divided(reaches[:, None], LEVELS)
    coarse = (edges.diff() > steps) & (middles <= reaches[:, None])
    cost = torch.where(coarse, divided(steps.square(), 12), errors.square()).double() @ counts.double()
    return reaches[cost.argmin()]


def static_scale(inputs: InputStatistics, how: str) -> Tensor:
    """What one step of static activations is worth, float32 []; 1 where the layer was only ever given zeros."""
    reach = static_reach(inputs, how)
    return divided(torch.where(reach > 0, reach, torch.ones_like(reach)), LEVELS)


def stored_bits(shape: tuple[float, float]) -> float:
    """Bits that a weight of a layer [out, in] takes: its code, and its share of a float32 scale a row."""
    return 8 + 32 / shape[1]
