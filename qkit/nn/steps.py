"""Layers whose weight is steps of a ruler, as all formats of integers, float scales and zero points want it."""

import torch
from torch import Tensor

from qkit.nn.qlinear import QLinear
from qkit.numerics.qtensor import QTensor


def why_not_steps(layer: QLinear, widths: tuple[int, ...]) -> str | None:
    """Why a format with integers of these `widths`, float scales and zero points cannot hold a layer, as the end of a sentence
    that begins with its name; None: it can.
    """
    q = layer.qtensor
    if not isinstance(q, QTensor):
        return f"has codes that are places in a table ({q!r})"
    if q.offsets is not None:
        return "keeps the minimum of each group instead of a zero point (include_zero=False)"
    if q.bits not in widths:
        return f"has {q.bits} bits"
    return None


def steps(layer: QLinear) -> QTensor:
    """The weight of a layer that `why_not_steps` let through."""
    q = layer.qtensor
    if not isinstance(q, QTensor):
        raise TypeError(f"{q!r} is no QTensor; ask why_not_steps first")
    return q


def spread(q: QTensor, groups: int) -> tuple[Tensor, Tensor]:
    """Scales as they are and zero points uint8, both [out, groups]: one that serves more of the weight is repeated.

    Args:
        groups: a multiple of the weight's own; any number where a row has one scale.
    """
    own = q.row_groups

    def repeat(numbers: Tensor) -> Tensor:
        return numbers.cpu().expand(q.shape[0], own).repeat_interleave(groups // own, 1)

    return repeat(q.scales), repeat(q.zeros()).to(torch.uint8)
