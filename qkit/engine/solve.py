"""One layer: from a weight, a scheme and what is known of its inputs to the module that takes its place."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from qkit.methods.scheme import Scheme
from qkit.methods.statistics import InputStatistics
from qkit.model.memory import give_back_memory
from qkit.nn.qlinear import QLinear
from qkit.numerics.stored import StoredWeight

LARGE = 2**18  # weights from which on what rounding them has freed is worth asking back


@dataclass(frozen=True, eq=False)
class SolvedLayer:
    """The layer, its weight, and what its method says of it (`qkit.methods.scheme.Solution`)."""

    layer: QLinear
    q: StoredWeight
    notes: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@torch.no_grad()
def solve_layer(
    weight: Tensor, bias: nn.Parameter | None, scheme: Scheme, inputs: InputStatistics | None, name: str
) -> SolvedLayer:
    """Quantize one layer.

    Args:
        inputs: None where calibration never reached the layer.
    """
    if inputs is not None:
        inputs.check(name)
    solution = scheme.round(weight, inputs, name)
    layer = scheme.layer(solution.q, bias, inputs, weight.dtype)
    if weight.numel() >= LARGE:
        give_back_memory()
    return SolvedLayer(layer, solution.q, solution.notes, solution.warnings)
