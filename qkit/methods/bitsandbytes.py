"""NF4, FP4 and INT8 rows: the formats that bitsandbytes made usual, with its numbers.

What
    NF4, FP4: blocks of 64 neighbours (row after row), each divided by its largest magnitude and rounded to a table of 16
    numbers. With double quantization the absmax values are quantized again: their mean is taken off, and blocks of 256 of
    them are rounded to a table of 256. INT8: a scale a row, so that the product with INT8 activations stays in integers.

Formula
    c = nearest(w / absmax),    ŵ = absmax table[c]              QLoRA (2305.14314), eq. 1 and section 3; `numerics.codebooks`
    q = round(w 127 / absmax),    ŵ = q absmax / 127              LLM.int8() (2208.07339), eq. 3, by row

Cost
    4 + 32/64 = 4.5 bits a weight; 4 + 8/64 + 32/(64 256) = 4.127 with double quantization.

Trade-off
    No data and no search, as in RTN. A block's absmax is exact, and the table is finest where normal weights are; but the
    levels are those of a distribution, not of this block, and a group of INT4 with a zero point costs less (4.156 at 128).

Faithful to bitsandbytes 0.50.2 on the CPU: of float32 weights it makes the same codes, absmax values, mean and dequantized
weights to the last bit, with double quantization too.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from qkit.methods.schemes import FP4, NF4
from qkit.numerics.codebook_qtensor import NESTED_BLOCK, CodebookQTensor
from qkit.numerics.codebooks import codebook, dynamic_map, nearest, quantize_blocks
from qkit.numerics.mapping import check_finite
from qkit.numerics.packing import pack
from qkit.numerics.qtensor import QTensor


def codebook_quantize(weight: Tensor, scheme: NF4 | FP4, name: str = "the weight") -> CodebookQTensor:
    """Quantize `weight` [out, in], any float dtype, to NF4 or FP4.

    Raises:
        ValueError: NaN or infinity in the weight.
    """
    values = weight.detach().float()
    check_finite(values, name)
    table = type(scheme).__name__.lower()
    codes, absmax = quantize_blocks(values.reshape(-1), codebook(table), scheme.block_size)
    parts = {"scales": absmax[None]}
    if scheme.double_quant:
        offset = absmax.mean()
        scales, nested = _quantize_absmax(absmax - offset)
        parts = {"scales": scales[None], "nested_scales": nested, "scale_offset": offset}
    return CodebookQTensor(
        packed=pack(codes.reshape(weight.shape), 4),
        bits=4,
        shape=tuple(weight.shape),
        codebook=table,
        block_size=scheme.block_size,
        **parts,
    )


def _quantize_absmax(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes uint8 [n] of the dynamic table for x, float32 [n], and the largest |x| of each block, float32 [ceil(n / 256)]."""
    largest = F.pad(x, (0, -len(x) % NESTED_BLOCK)).reshape(-1, NESTED_BLOCK).abs().amax(1)
    inside = (x * (1 / largest).repeat_interleave(NESTED_BLOCK)[: len(x)]).clamp(-1, 1)
    # bitsandbytes' CPU looks the code up at one of 65536 even places, and gives code 0 to the 0/0 of a block of zeros
    places = torch.floor((inside + 1) * 32767.5 + 0.5) * 2 / 65535 - 1
    return nearest(places.nan_to_num(-1.0), dynamic_map()), largest


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
    return QTensor.from_codes(torch.round(values * (127 / absmax)) + 128, absmax / 127, 8)
