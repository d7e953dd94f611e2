"""QTensor: a quantized weight as it is stored: packed codes, scales, and what zero means.

    ŵ[o, k] = s (q[o, k] - z)         with a zero point z, or
    ŵ[o, k] = s q[o, k] + offset      with an offset,
where s, z and the offset are those of the group that weight k of row o belongs to.

A plain frozen dataclass of tensors, not a torch.Tensor subclass: it says what it holds, and every byte is counted.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from qkit.numerics.mapping import FLOATS, GroupSize, check_bits, dequantize, granularity_name
from qkit.numerics.packing import pack, packed_length, unpack
from qkit.numerics.stored import StoredWeight, require


@dataclass(frozen=True, eq=False, slots=True)
class QTensor(StoredWeight):
    """A quantized weight [out, in].

    Attributes:
        packed: uint8 [out, ceil(in * bits / 8)], the codes as `qkit.numerics.packing` lays them.
        scales: float16 or float32, [out, groups]; [1, 1] when the whole tensor shares one.
        bits: bits of one code, 2 .. 8.
        shape: (out, in).
        zero_points: uint8 [ceil(out * groups * bits / 8)], b-bit codes packed as one row; None when symmetric, and z is
            then 2^(bits - 1) everywhere.
        offsets: float, shaped like scales, the real number that code 0 stands for; None when there are zero points.
    """

    kind: ClassVar[str] = "affine"
    packed: Tensor
    scales: Tensor
    bits: int
    shape: tuple[int, int]
    zero_points: Tensor | None = None
    offsets: Tensor | None = None

    def __post_init__(self) -> None:
        check_bits(self.bits)
        object.__setattr__(self, "shape", tuple(self.shape))  # JSON makes lists of tuples
        out_features, in_features = self.shape
        require("packed", self.packed, (out_features, packed_length(in_features, self.bits)), {torch.uint8})
        floats = {torch.float16, torch.float32}
        rows, groups = self.scales.shape if self.scales.dim() == 2 else (0, 0)
        if (rows, groups) != (1, 1) and (rows != out_features or groups < 1 or in_features % groups):
            raise ValueError(
                f"scales of shape {tuple(self.scales.shape)} do not belong to a weight {self.shape}; "
                f"give [out, groups] with groups a divisor of {in_features}, or [1, 1]"
            )
        require("scales", self.scales, (rows, groups), floats)
        if self.zero_points is not None and self.offsets is not None:
            raise ValueError("a QTensor has zero points or offsets, not both; leave one of them None")
        if self.zero_points is not None:
            shape = (packed_length(rows * groups, self.bits),)
            require("zero_points", self.zero_points, shape, {torch.uint8})
        if self.offsets is not None:
            require("offsets", self.offsets, (rows, groups), floats)

    @classmethod
    def from_codes(
        cls, codes: Tensor, scales: Tensor, bits: int, zero_points: Tensor | None = None, offsets: Tensor | None = None
    ) -> "QTensor":
        """Pack unsigned `codes` [out, in] and (if given) `zero_points` [out, groups], both whole numbers 0 .. 2^b - 1."""
        return cls(
            packed=pack(codes, bits),
            scales=scales,
            bits=bits,
            shape=(codes.shape[0], codes.shape[1]),
            zero_points=None if zero_points is None else pack(zero_points.reshape(1, -1), bits)[0],
            offsets=offsets,
        )

    @property
    def symmetric(self) -> bool:
        """True when the zero point is 2^(bits - 1) everywhere and none is stored."""
        return self.zero_points is None and self.offsets is None

    @property
    def group_size(self) -> GroupSize:
        """Weights that share a scale: a number, None for a row, "tensor" for all."""
        rows, groups = self.scales.shape
        if groups > 1:
            return self.shape[1] // groups
        return "tensor" if rows < self.shape[0] else None

    @property
    def row_groups(self) -> int:
        """How many scales a row has; 1 as well where all rows share one."""
        return self.scales.shape[1]

    def meta(self) -> dict[str, Any]:
        """What is not a tensor, for JSON: `QTensor(**tensors, **meta)` is the same weight again."""
        return {"bits": self.bits, "shape": list(self.shape)}

    def zeros(self) -> Tensor:
        """The code that stands for 0.0 in each group, float32, shaped like scales (0 where there are offsets)."""
        if self.zero_points is not None:
            return unpack(self.zero_points[None], self.bits, self.scales.numel()).reshape(self.scales.shape).float()
        return torch.full_like(
            self.scales, 0 if self.offsets is not None else 2 ** (self.bits - 1), dtype=torch.float32
        )

    def table(self) -> None:
        """None: a code is the number that it is."""
        return None

    def grid(self) -> tuple[Tensor | None, ...]:
        """(scales, zero points, offsets) as they are stored."""
        return self.scales, self.zero_points, self.offsets

    def stretch(self) -> Tensor:
        """The scales, float32."""
        return self.scales.float()

    def levels(self, row: int, group: int) -> Tensor:
        """The 2^bits numbers that one group can hold, float32, ascending."""
        row = min(row, len(self.scales) - 1)
        codes = torch.arange(2**self.bits, device=self.scales.device)
        values = dequantize(codes, self.scales[row, group], self.zeros()[row, group])
        return values if self.offsets is None else values + self.offsets[row, group].float()

    def dequantize(self) -> Tensor:
        """ŵ, float32 [out, in]. The plain version; `qkit.ops.dequantize` picks a fast one that returns the same bits."""
        rows, groups = self.scales.shape
        size = self.shape[1] // groups if rows == self.shape[0] else self.shape[0] * self.shape[1]
        codes = self.codes().reshape(rows, groups, size)
        values = dequantize(codes, self.scales[..., None], self.zeros()[..., None])
        if self.offsets is not None:
            values = values + self.offsets.float()[..., None]
        return values.reshape(self.shape)

    def __repr__(self) -> str:
        kind = "offsets" if self.offsets is not None else "symmetric" if self.symmetric else "zero points"
        return (
            f"QTensor({self.shape[0]}x{self.shape[1]}, {self.bits} bits, {granularity_name(self.group_size)}, {kind}, "
            f"{self.nbytes:,} bytes = {self.bits_per_weight:.3f} bits per weight)"
        )


def stored_bits(
    shape: tuple[float, float],
    bits: int,
    group_size: GroupSize,
    symmetric: bool = False,
    include_zero: bool = True,
    scale_dtype: str = "float16",
) -> float:
    """Bits that a weight of a layer [out, in] takes as a QTensor: its code, and its share of what its group stores.

    Arguments are those of `qkit.RTN`. Whole bytes at the ends of rows, and scales that leave float16, are not counted.
    """
    out_features, in_features = shape
    row = in_features if group_size is None else group_size
    sharing = out_features * in_features if row == "tensor" else row
    scale = 8 * FLOATS[scale_dtype].itemsize
    beside = 0 if symmetric else bits if include_zero else scale
    return bits + (scale + beside) / sharing
