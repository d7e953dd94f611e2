"""QTensor: a quantized weight as it is stored: packed codes, scales, and what zero means.

    ŵ[o, k] = s (q[o, k] - z)         with a zero point z, or
    ŵ[o, k] = s q[o, k] + offset      with an offset,
where s, z and the offset are those of the group that weight k of row o belongs to.

A plain frozen dataclass of tensors, not a torch.Tensor subclass: it says what it holds, and every byte is counted.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from qkit.numerics.mapping import GroupSize, check_bits, dequantize, granularity_name
from qkit.numerics.packing import pack, packed_length, unpack


@dataclass(frozen=True, eq=False, slots=True)
class QTensor:
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
        self._require("packed", self.packed, (out_features, packed_length(in_features, self.bits)), {torch.uint8})
        floats = {torch.float16, torch.float32}
        rows, groups = self.scales.shape if self.scales.dim() == 2 else (0, 0)
        if (rows, groups) != (1, 1) and (rows != out_features or groups < 1 or in_features % groups):
            raise ValueError(
                f"scales of shape {tuple(self.scales.shape)} do not belong to a weight {self.shape}; "
                f"give [out, groups] with groups a divisor of {in_features}, or [1, 1]"
            )
        self._require("scales", self.scales, (rows, groups), floats)
        if self.zero_points is not None and self.offsets is not None:
            raise ValueError("a QTensor has zero points or offsets, not both; leave one of them None")
        if self.zero_points is not None:
            shape = (packed_length(rows * groups, self.bits),)
            self._require("zero_points", self.zero_points, shape, {torch.uint8})
        if self.offsets is not None:
            self._require("offsets", self.offsets, (rows, groups), floats)

    @staticmethod
    def _require(name: str, tensor: Tensor, shape: tuple[int, ...], dtypes: set[torch.dtype]) -> None:
        if tuple(tensor.shape) != shape or tensor.dtype not in dtypes:
            raise ValueError(
                f"{name} is {tensor.dtype} {tuple(tensor.shape)} where a QTensor of this shape and these bits has "
                f"{' or '.join(sorted(map(str, dtypes)))} {shape}; the parts do not belong together"
            )

    @classmethod
    def from_codes(
        cls, codes: Tensor, scales: Tensor, bits: int, zero_points: Tensor | None = None, offsets: Tensor | None = None
    ) -> "QTensor":
        """Pack unsigned `codes` [out, in] and (if given) `zero_points` [out, groups], both whole numbers 0 .. 2^b - 1."""
        return cls(
            packed=pack(codes, bits),
            scales=scales,
            bits=bits,
            shape=tuple(codes.shape),
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
    def nbytes(self) -> int:
        """Bytes of everything stored: codes, scales, zero points, offsets."""
        return sum(t.nbytes for t in self.tensors().values())

    @property
    def bits_per_weight(self) -> float:
        """8 nbytes / (out * in): what a weight really costs, scales and zero points included."""
        return 8 * self.nbytes / (self.shape[0] * self.shape[1])

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors by name, without the absent ones."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def meta(self) -> dict[str, Any]:
        """What is not a tensor, for JSON: `QTensor(**tensors, **meta)` is the same weight again."""
        return {"bits": self.bits, "shape": list(self.shape)}

    def codes(self) -> Tensor:
        """The unsigned codes, uint8 [out, in]."""
        return unpack(self.packed, self.bits, self.shape[1])

    def zeros(self) -> Tensor:
        """The code that stands for 0.0 in each group, float32, shaped like scales (0 where there are offsets)."""
        if self.zero_points is not None:
            return unpack(self.zero_points[None], self.bits, self.scales.numel()).reshape(self.scales.shape).float()
        return torch.full_like(
            self.scales, 0 if self.offsets is not None else 2 ** (self.bits - 1), dtype=torch.float32
        )

    def dequantize(self) -> Tensor:
        """ŵ, float32 [out, in]. The plain version; `qkit.ops.dequantize` picks a fast one that returns the same bits."""
        rows, groups = self.scales.shape
        codes = self.codes().reshape(rows, groups, -1)
        values = dequantize(codes, self.scales[..., None], self.zeros()[..., None])
        if self.offsets is not None:
            values = values + self.offsets.float()[..., None]
        return values.reshape(self.shape)

    def to(self, device: torch.device | str) -> "QTensor":
        """The same weight on another device."""
        return type(self)(**{name: t.to(device) for name, t in self.tensors().items()}, **self.meta())

    def __repr__(self) -> str:
        kind = "offsets" if self.offsets is not None else "symmetric" if self.symmetric else "zero points"
        return (
            f"QTensor({self.shape[0]}x{self.shape[1]}, {self.bits} bits, {granularity_name(self.group_size)}, {kind}, "
            f"{self.nbytes:,} bytes = {self.bits_per_weight:.3f} bits per weight)"
        )
