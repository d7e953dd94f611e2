"""Layers that read the same input, computed as one product on a GPU: q, k and v of attention, gate and up of an MLP.

What
    The first of them that is called multiplies by the weights of all, which lie side by side, and keeps what belongs to the
    others. Another takes its part if it is called with the very same tensor; called with any other, it computes for itself.

Why
    With one token a product takes the time in which its weight is read and some microseconds more, in which nothing is read.
    Three layers have them three times, and one of 1024 rows has not the work for a whole card.

Trade-off
    The weights are laid out side by side when they are first used, instead of each by itself, so that no memory is lost. What has
    been fused stays so until it is moved to another device or dtype.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from qkit import ops
from qkit.backends.triton.layout import KIND, ROWS  # dtypes that kernels take; rows of a tile, which each weight fills
from qkit.nn.int8_linear import Int8Linear
from qkit.nn.qlinear import QLinear
from qkit.numerics.activations import STATIC_INT8


def alike(layers: Sequence[QLinear]) -> bool:
    """Whether `fuse` takes them."""
    forms = {form(layer) for layer in layers}
    return len(layers) > 1 and len(forms) == 1 and None not in forms


def form(layer: QLinear) -> tuple[Any, ...] | None:
    """What layers must have in common to be fused; None for one that cannot be."""
    if type(layer) not in (QLinear, Int8Linear) or layer.activations == STATIC_INT8 or layer.out_features % ROWS:
        return None
    meta = {name: value for name, value in layer.meta.items() if name != "shape"}
    threshold = getattr(layer, "threshold", None)
    return (
        layer.in_features,
        layer.qtensor.row_groups,
        str(meta),
        layer.parts,
        layer.activations,
        threshold,
        layer.packed.device,
    )


class Fused:
    """Several layers of one form, in the order in which they are called."""

    def __init__(self, layers: Sequence[QLinear]) -> None:
        first = layers[0]
        self.weights = [layer.qtensor for layer in layers]
        self.parts = [part for q in self.weights for part in q.tensors().values()]
        self.record = f"[{', '.join(layer.record for layer in layers)}]"
        self.activations = "integers" if isinstance(first, Int8Linear) else "int8" if first.activations else None
        self.threshold = float(getattr(first, "threshold", 0.0))
        self.places = list(pairwise(accumulate((layer.out_features for layer in layers), initial=0)))
        self.kept: tuple[Tensor, Tensor, int] | None = None

    def part(self, number: int, x: Tensor, bias: Tensor | None) -> Tensor | None:
        """What layer `number` makes of x [..., in]; None: it computes for itself.

        As `ops.linear`, but for derivatives and for dtypes that the kernels do not take.
        """
        if x.dtype not in KIND or (torch.is_grad_enabled() and x.requires_grad):
            return None
        compiling = torch.compiler.is_compiling()  # a graph has no versions: there an input is what it is
        version = 0 if compiling or x.is_inference() else x._version
        if number == 0:
            if compiling:
                y = ops.layers(x, self.parts, self.record, self.activations, self.threshold)
            else:
                y = ops.products(x, self.weights, self.activations, self.threshold)
            self.kept = x, y, version
        elif self.kept is None or self.kept[0] is not x or self.kept[2] != version:
            return None
        else:
            y = self.kept[1]
            if number == len(self.places) - 1:
                self.kept = None
        start, stop = self.places[number]
        mine = y[..., start:stop]
        return mine if bias is None else mine + bias.to(mine.dtype)


def fuse(layers: Sequence[QLinear]) -> None:
    """Have them compute together, in this order. One that was fused already is with its new companions alone.

    Raises:
        ValueError: they have not one form.
    """
    if not alike(layers):
        raise ValueError(
            f"layers {', '.join(f'{type(layer).__name__}({layer.extra_repr()})' for layer in layers)} cannot be fused; "
            f"give two or more of one kind, with the same inputs, groups and settings, and outputs in multiples of {ROWS}"
        )
    fused = Fused(layers)
    for number, layer in enumerate(layers):
        layer.fused = fused, number
