"""What every stored weight offers, whatever its codes stand for: one protocol for layers, kernels and files.

A weight [out, in] is stored as packed codes and a few tensors that say what they are worth. Two kinds exist, siblings that
know nothing of each other: steps of a ruler (`QTensor`, kind "affine") and places in a table (`CodebookQTensor`, kind
"codebook"). Whoever multiplies, tunes, saves or draws a weight asks what is written here, and not which kind it is.
"""

from abc import ABC, abstractmethod
from dataclasses import fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from qkit.numerics.mapping import GroupSize
from qkit.numerics.packing import unpack


class StoredWeight(ABC):
    """A quantized weight [out, in] as it is stored; its kinds are frozen dataclasses of tensors.

    Attributes:
        kind: what its codes are, as saved records call it.
        packed: uint8 [out, ceil(in * bits / 8)], the codes as `qkit.numerics.packing` lays them.
        bits: bits of one code, 2 .. 8.
        shape: (out, in).
        ready: what a backend keeps here for its next product (`qkit.backends`), if it does: an object whose `linear(x, bias,
            activations)` and `int8_linear(x, bias, input_scale, threshold)` are the operations of `qkit.ops` where nothing has
            to be asked any more, and else None; no part of the weight, and of no copy of it.
    """

    __slots__ = ("ready",)
    kind: ClassVar[str]
    packed: Tensor
    bits: int
    shape: tuple[int, int]
    ready: Any

    @property
    @abstractmethod
    def group_size(self) -> GroupSize:
        """Weights that share a scale: a number, None for a row, "tensor" for all."""

    @property
    @abstractmethod
    def row_groups(self) -> int | None:
        """How many scales a row has; None where groups run over the ends of rows."""

    @abstractmethod
    def meta(self) -> dict[str, Any]:
        """What is not a tensor, for JSON: with `tensors()` it makes the same weight again (`qkit.numerics.kinds`)."""

    @abstractmethod
    def table(self) -> Tensor | None:
        """The numbers that the codes stand for before they are scaled, float32 [2^bits]; None: the codes themselves."""

    @abstractmethod
    def grid(self) -> tuple[Tensor | None, ...]:
        """What the codes are worth, as kernels read it: (scales [rows, groups], zero points, offsets), or for a nested
        absmax (codes [out, groups], their map, nested scales, offset); None stands for what there is not. Only of a weight
        with `row_groups`.
        """

    @abstractmethod
    def stretch(self) -> Tensor:
        """What the levels of each group are stretched by, float32: the scales [rows, groups], or the absmax of blocks
        [1, blocks].
        """

    @abstractmethod
    def levels(self, row: int, group: int) -> Tensor:
        """The 2^bits numbers that one group can hold, float32, in the order of the codes."""

    @abstractmethod
    def dequantize(self) -> Tensor:
        """ŵ, float32 [out, in]. The plain version; `qkit.ops.dequantize` picks a fast one that returns the same bits."""

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors by name, without the absent ones."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    @property
    def nbytes(self) -> int:
        """Bytes of everything stored: codes, scales, zero points, offsets."""
        return sum(t.nbytes for t in self.tensors().values())

    @property
    def bits_per_weight(self) -> float:
        """8 nbytes / (out * in): what a weight really costs, scales and zero points included."""
        return 8 * self.nbytes / (self.shape[0] * self.shape[1])

    def codes(self) -> Tensor:
        """The unsigned codes, uint8 [out, in]."""
        return unpack(self.packed, self.bits, self.shape[1])

    def to(self, device: torch.device | str) -> "StoredWeight":
        """The same weight on another device."""
        return type(self)(**{name: t.to(device) for name, t in self.tensors().items()}, **self.meta())


def require(name: str, tensor: Tensor, shape: tuple[int, ...], dtypes: set[torch.dtype]) -> None:
    """Refuse a part that does not belong to the others."""
    if tuple(tensor.shape) != shape or tensor.dtype not in dtypes:
        raise ValueError(
            f"{name} is {tensor.dtype} {tuple(tensor.shape)} where a QTensor of this shape and these bits has "
            f"{' or '.join(sorted(map(str, dtypes)))} {shape}; the parts do not belong together"
        )
