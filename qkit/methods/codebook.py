"""NF4 and FP4: codes that are places in a table, with the numbers of bitsandbytes.

What
    Blocks of 64 neighbours (row after row), each divided by its largest magnitude and rounded to a table of 16 numbers. With
    double quantization the absmax values are quantized again: their mean is taken off, and blocks of 256 of them are rounded
    to a table of 256.

Formula (QLoRA, Dettmers et al. 2023, arXiv 2305.14314, eq. 1 and section 3; the tables: `qkit.numerics.codebooks`)
    c = nearest(w / absmax),    ŵ = absmax table[c]

Cost
    4 + 32/64 = 4.5 bits a weight; 4 + 8/64 + 32/(64 256) = 4.127 with double quantization.

Trade-off
    No data and no search, as in RTN. A block's absmax is exact, and the table is finest where normal weights are; but the
    levels are those of a distribution, not of this block, and a group of INT4 with a zero point costs less (4.156 at 128).

Faithful to bitsandbytes 0.50.2 on the CPU: of float32 weights it makes the same codes, absmax values, mean and dequantized
weights to the last bit, with double quantization too.
"""

import re
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from qkit.methods.scheme import Scheme, Solution
from qkit.methods.statistics import InputStatistics
from qkit.numerics.arithmetic import divided
from qkit.numerics.codebook_qtensor import NESTED_BLOCK, CodebookQTensor
from qkit.numerics.codebooks import codebook, dynamic_map, nearest, quantize_blocks
from qkit.numerics.mapping import check_finite
from qkit.numerics.packing import pack


@dataclass(frozen=True)
class Codebook(Scheme):
    """The arguments that NF4 and FP4 share.

    Attributes:
        table: its name in `qkit.numerics.codebooks`.
    """

    table: ClassVar[str]
    block_size: int = 64
    double_quant: bool = True

    def __post_init__(self) -> None:
        if self.block_size not in (32, 64, 128, 256, 512, 1024, 2048, 4096):
            raise ValueError(f"block_size={self.block_size!r} is not a power of two from 32 to 4096; use 64")

    @property
    def name(self) -> str:
        """For example "NF4 b64 dq"."""
        return f"{type(self).__name__} b{self.block_size}{' dq' * self.double_quant}"

    @classmethod
    def parse(cls, word: str) -> "Codebook | None":
        """nf4, nf4-b128; fp4, fp4-b128."""
        match = re.fullmatch(rf"{cls.table}(?:-b(\d+))?", word)
        return None if match is None else cls(int(match[1] or 64))

    @property
    def weight_bits(self) -> int:
        """4: a place in a table of 16."""
        return 4

    def stored_bits(self, shape: tuple[float, float]) -> float:
        """4 + 32 / block, or 4 + 8 / block + 32 / (256 block) and one mean with double quantization."""
        out_features, in_features = shape
        if not self.double_quant:
            return 4 + 32 / self.block_size
        return 4 + 8 / self.block_size + 32 / (NESTED_BLOCK * self.block_size) + 32 / (out_features * in_features)

    def round(self, weight: Tensor, inputs: InputStatistics | None = None, name: str = "the weight") -> Solution:
        """By `codebook_quantize`; inputs make no difference."""
        return Solution(codebook_quantize(weight, self, name))


@dataclass(frozen=True)
class NF4(Codebook):
    """NormalFloat: 16 levels at quantiles of a normal distribution, one absmax a block (QLoRA, 2305.14314, section 3).

    Attributes:
        block_size: consecutive weights (row after row) that share an absmax, a power of two from 32 to 4096.
        double_quant: store the absmax values in 8 bits themselves: 0.127 instead of 0.5 bits a weight at block size 64.
    """

    colour: ClassVar[str] = "#E69F00"
    spellings: ClassVar[tuple[str, ...]] = ("nf4",)
    table: ClassVar[str] = "nf4"


@dataclass(frozen=True)
class FP4(Codebook):
    """A 4-bit float (sign, 2 bits of exponent, 1 of mantissa) times one absmax a block. Arguments as for `NF4`."""

    colour: ClassVar[str] = "#F0E442"
    spellings: ClassVar[tuple[str, ...]] = ("fp4",)
    table: ClassVar[str] = "fp4"


def codebook_quantize(weight: Tensor, scheme: Codebook, name: str = "the weight") -> CodebookQTensor:
    """Quantize `weight` [out, in], any float dtype, to NF4 or FP4.

    Raises:
        ValueError: NaN or infinity in the weight.
    """
    values = weight.detach().float()
    check_finite(values, name)
    codes, absmax = quantize_blocks(values.reshape(-1), codebook(scheme.table), scheme.block_size)
    parts = {"scales": absmax[None]}
    if scheme.double_quant:
        offset = absmax.cpu().mean().to(absmax.device)  # in the CPU's order, which is bitsandbytes'
        scales, nested = _quantize_absmax(absmax - offset)
        parts = {"scales": scales[None], "nested_scales": nested, "scale_offset": offset}
    return CodebookQTensor(
        packed=pack(codes.reshape(weight.shape), 4),
        bits=4,
        shape=(weight.shape[0], weight.shape[1]),
        codebook=scheme.table,
        block_size=scheme.block_size,
        **parts,
    )


def _quantize_absmax(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes uint8 [n] of the dynamic table for x, float32 [n], and the largest |x| of each block, float32 [ceil(n / 256)]."""
    largest = F.pad(x, (0, -len(x) % NESTED_BLOCK)).reshape(-1, NESTED_BLOCK).abs().amax(1)
    inside = (x * (1 / largest).repeat_interleave(NESTED_BLOCK)[: len(x)]).clamp(-1, 1)
    # bitsandbytes' CPU looks the code up at one of 65536 even places, and gives code 0 to the 0/0 of a block of zeros
    places = divided(torch.floor((inside + 1) * 32767.5 + 0.5) * 2, 65535) - 1
    return nearest(places.nan_to_num(-1.0), dynamic_map()), largest
