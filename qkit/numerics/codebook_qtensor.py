"""CodebookQTensor: a weight whose codes are places in a table (NF4, FP4), as it is stored.

    ŵ[i] = absmax[i // block_size] table[code[i]]          i counts the weights row after row
    absmax[b] = dynamic[scales[b]] nested_scales[b // 256] + scale_offset          with double quantization

Blocks run over the ends of rows, and the last one may be short: this is how QLoRA (2305.14314) and bitsandbytes cut a
weight, so that its shape need not fit the block.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from qkit.numerics.codebooks import codebook, dynamic_map
from qkit.numerics.mapping import GroupSize
from qkit.numerics.packing import packed_length
from qkit.numerics.stored import StoredWeight, require
from qkit_kernels.formats import NESTED_BLOCK


def on_device(table: Tensor, beside: Tensor) -> Tensor:
    """A table of the CPU where `beside` is; asked first, because a product of one token asks each time."""
    return table if beside.is_cpu else table.to(beside.device)


@dataclass(frozen=True, eq=False, slots=True, repr=False)
class CodebookQTensor(StoredWeight):
    """A weight [out, in] quantized to a table of 16 numbers.

    Attributes:
        packed: uint8 [out, ceil(in / 2)], the codes as `qkit.numerics.packing` lays them.
        scales: the absmax of each block: float32 [1, blocks], or uint8 [1, blocks] with double quantization.
        bits: 4.
        shape: (out, in).
        codebook: "nf4" or "fp4"; the table is derived, not stored (`qkit.numerics.codebooks`).
        block_size: consecutive weights that share an absmax.
        nested_scales: float32 [ceil(blocks / 256)], with double quantization; else None.
        scale_offset: float32 [], the mean that was taken off the absmax values, with double quantization; else None.
    """

    kind: ClassVar[str] = "codebook"
    packed: Tensor
    scales: Tensor
    bits: int
    shape: tuple[int, int]
    codebook: str = "nf4"
    block_size: int = 64
    nested_scales: Tensor | None = None
    scale_offset: Tensor | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        codebook(self.codebook)
        if self.bits != 4:
            raise ValueError(f"a {self.codebook} weight has 4 bits, not {self.bits}; the parts do not belong together")
        if not isinstance(self.block_size, int) or isinstance(self.block_size, bool) or self.block_size < 1:
            raise ValueError(f"block_size={self.block_size!r} is not a number of weights; use 64")
        if (self.nested_scales is None) != (self.scale_offset is None):
            raise ValueError("nested_scales and scale_offset come together; give both, or neither")
        out_features, in_features = self.shape
        blocks = -(-out_features * in_features // self.block_size)
        nested, offset = self.nested_scales, self.scale_offset
        require("packed", self.packed, (out_features, packed_length(in_features, 4)), {torch.uint8})
        require("scales", self.scales, (1, blocks), {torch.float32 if nested is None else torch.uint8})
        if nested is not None and offset is not None:
            require("nested_scales", nested, (-(-blocks // NESTED_BLOCK),), {torch.float32})
            require("scale_offset", offset, (), {torch.float32})

    @property
    def symmetric(self) -> bool:
        """True for FP4, whose table is the same on both sides of zero."""
        return self.codebook == "fp4"

    @property
    def group_size(self) -> GroupSize:
        """Weights that share an absmax."""
        return self.block_size

    @property
    def row_groups(self) -> int | None:
        """How many blocks a row has; None where blocks run over the ends of rows."""
        return None if self.shape[1] % self.block_size else self.shape[1] // self.block_size

    def meta(self) -> dict[str, Any]:
        """What is not a tensor, for JSON."""
        return {
            "bits": self.bits,
            "shape": list(self.shape),
            "codebook": self.codebook,
            "block_size": self.block_size,
        }

    def table(self) -> Tensor:
        """The numbers of the codebook, float32 [16]."""
        return on_device(codebook(self.codebook), self.packed)

    def grid(self) -> tuple[Tensor | None, ...]:
        """(absmax [out, blocks of a row], None, None), or with double quantization (codes, map, nested scales, offset)."""
        scales = self.scales.reshape(self.shape[0], -1)
        if self.nested_scales is None or self.scale_offset is None:
            return scales, None, None
        return scales, on_device(dynamic_map(), scales), self.nested_scales, self.scale_offset.reshape(1)

    def levels(self, row: int, group: int) -> Tensor:
        """The 16 numbers that a block can hold, in the order of the codes; `group` counts the blocks of all rows, `row` is 0."""
        return self.table() * self.absmax()[group]

    def stretch(self) -> Tensor:
        """The absmax of each block, float32 [1, blocks]."""
        return self.absmax()[None]

    def absmax(self) -> Tensor:
        """The largest magnitude of each block, float32 [blocks]; what double quantization left of it."""
        if self.nested_scales is None or self.scale_offset is None:
            return self.scales[0]
        values = dynamic_map().to(self.scales.device)[self.scales[0].long()]
        return values * self.nested_scales.repeat_interleave(NESTED_BLOCK)[: len(values)] + self.scale_offset

    def zeros(self) -> Tensor:
        """The code that stands for 0.0, float32 [1, 1]."""
        return self.table().abs().argmin().float().reshape(1, 1)

    def dequantize(self) -> Tensor:
        """ŵ, float32 [out, in]; every bit that of bitsandbytes' `dequantize_4bit`."""
        values = self.table()[self.codes().long()].reshape(-1)
        absmax = self.absmax().repeat_interleave(self.block_size)[: len(values)]
        return (values * absmax).reshape(self.shape)

    def __repr__(self) -> str:
        double = " with 8-bit absmax" * (self.nested_scales is not None)
        return (
            f"CodebookQTensor({self.shape[0]}x{self.shape[1]}, {self.codebook}, blocks of {self.block_size}{double}, "
            f"{self.nbytes:,} bytes = {self.bits_per_weight:.3f} bits per weight)"
        )
