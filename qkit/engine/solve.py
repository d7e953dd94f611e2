"""One layer: from a weight, a scheme and what is known of its inputs to the module that takes its place."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qkit.methods.awq import awq_round
from qkit.methods.bitsandbytes import codebook_quantize, int8_rows
from qkit.methods.gptq import gptq
from qkit.methods.rtn import rtn
from qkit.methods.schemes import AWQ, FP4, GPTQ, NF4, RTN, W8A8, LLMInt8, Scheme, SmoothQuant
from qkit.methods.smoothquant import LEVELS, static_reach
from qkit.model.calibration import InputStatistics
from qkit.nn.qlinear import Int8Linear, QLinear
from qkit.numerics.qtensor import QTensor

NOTHING: frozenset[str] = frozenset()


def rounder(scheme: Scheme) -> Scheme:
    """What rounds the weights: the scheme itself, or the GPTQ inside an AWQ or SmoothQuant."""
    return getattr(scheme, "rounding", None) or scheme


def wants(scheme: Scheme) -> frozenset[str]:
    """The statistics of its inputs that a layer needs to be rounded by `scheme`."""
    needed = set()
    if isinstance(rounder(scheme), GPTQ):
        needed |= {"square", "drift"} if rounder(scheme).match_original else {"square"}
    elif isinstance(scheme, AWQ) and scheme.clip:
        needed.add("square")
    if getattr(scheme, "activations", None) == "per-tensor" and scheme.activation_range != "min-max":
        needed.add("magnitudes")
    return frozenset(needed)


@dataclass(frozen=True, eq=False)
class Solution:
    """The layer, its weight, and what the report is to say of it."""

    layer: nn.Module
    q: QTensor
    damp: float | None = None  # of the Hessian, where there was one
    outlier_columns: int | None = None  # input columns that LLM.int8 keeps in floating point on the calibration text


@torch.no_grad()
def quantize_weight(
    weight: Tensor, scheme: Scheme, inputs: InputStatistics | None = None, name: str = "the weight"
) -> tuple[QTensor, float | None]:
    """The weight [out, in] quantized, and the damping of GPTQ. Without statistics, what needs them rounds to nearest."""
    how = rounder(scheme)
    if isinstance(how, RTN):
        return rtn(weight, how, name), None
    if isinstance(how, NF4 | FP4):
        return codebook_quantize(weight, how, name), None
    if isinstance(how, GPTQ):
        solution = gptq(weight, inputs, how, name)
        return solution.q, solution.damp if inputs is not None else None
    if isinstance(how, AWQ):
        return awq_round(weight, inputs, how, name), None
    return int8_rows(weight, name), None


@torch.no_grad()
def solve_layer(
    weight: Tensor, bias: nn.Parameter | None, scheme: Scheme, inputs: InputStatistics | None, name: str
) -> Solution:
    """Quantize one layer.

    Args:
        inputs: None where calibration never reached the layer: static activations are then taken per token.
    """
    if inputs is not None:
        inputs.check(name)
    q, damp = quantize_weight(weight, scheme, inputs, name)
    if isinstance(scheme, LLMInt8):
        outliers = None if inputs is None else int((inputs.absmax >= scheme.threshold).sum())
        return Solution(Int8Linear(q, bias, threshold=scheme.threshold), q, outlier_columns=outliers)
    if isinstance(scheme, W8A8 | SmoothQuant):
        if scheme.activations == "per-token" or inputs is None:
            return Solution(Int8Linear(q, bias), q, damp)
        reach = static_reach(inputs, scheme.activation_range)
        scale = torch.where(reach > 0, reach, torch.ones_like(reach)) / LEVELS
        return Solution(Int8Linear(q, bias, activations="per-tensor", input_scale=scale), q, damp)
    return Solution(QLinear(q, bias, getattr(scheme, "activations", None)), q, damp)
