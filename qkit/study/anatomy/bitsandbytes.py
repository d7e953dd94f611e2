"""4-bit formats taken apart: where their levels lie, how often each is used, and what they cost on a weight."""

import numpy as np
import torch
from torch import Tensor

from qkit.engine.quantize import quantize_tensor
from qkit.methods.codebook import FP4, NF4
from qkit.methods.rtn import RTN
from qkit.numerics.codebooks import absmax_blocks, codebook, nearest, quantize_blocks
from qkit.numerics.error import sqnr_db


def e2m1() -> Tensor:
    """The 4-bit float of MXFP4 and NVFP4 (OCP Microscaling Formats 1.0, table 5) divided by its largest, 6: float32 [16].

    1 bit of sign, 2 of exponent e, 1 of mantissa m: (1 + m/2) 2^(e-1), and with e = 0 the subnormals 0 and 1/2. In the order of
    the bit patterns s e e m; as in bitsandbytes' `fp4` the pattern 1000 is 0.0 and not -0.0. No format of qkit stores it.
    """
    positive = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6]) / 6
    return torch.cat([positive, 0 - positive])


def four_bit_levels() -> dict[str, Tensor]:
    """The levels of a block whose absmax is 1, ascending: NF4, E2M1 and FP4 (15 each, zero counts once), INT4 symmetric."""
    return {
        "NF4": codebook("nf4"),
        "E2M1": e2m1().unique(),
        "FP4": codebook("fp4").unique(),
        "INT4": (torch.arange(16) - 8) * 2 / 15,
    }


def level_use(weight: Tensor, block_size: int, levels: Tensor | None = None) -> Tensor:
    """The share of the weights that goes to each level, float64 [levels]: of NF4, or of a table from -1 to 1, ascending.

    Args:
        weight: float32, any shape.
        block_size: weights that share an absmax.
        levels: float32 [levels].

    Raises:
        ValueError: `block_size` does not divide the number of weights.
    """
    table = codebook("nf4") if levels is None else levels
    codes = nearest(within_blocks(weight, block_size), table)
    return codes.flatten().long().bincount(minlength=len(table)).double() / codes.numel()


def four_bit_sqnr(weight: Tensor, block_size: int) -> dict[str, float]:
    """SQNR in dB of NF4, E2M1, FP4 and symmetric INT4, all in blocks of `block_size` weights with unquantized scales.

    Args:
        weight: float32 [out, in].
        block_size: a power of two from 32 to 4096; blocks run over the ends of rows.

    Raises:
        ValueError: `block_size` does not divide the number of weights.
    """
    blocks = _blocks(weight, block_size)
    schemes = {
        "NF4": NF4(block_size, double_quant=False),
        "FP4": FP4(block_size, double_quant=False),
        "INT4": RTN(4, symmetric=True, scale_dtype="float32"),
    }
    rounded = {name: quantize_tensor(blocks, scheme).dequantize() for name, scheme in schemes.items()}
    codes, absmax = quantize_blocks(blocks.reshape(-1), e2m1(), block_size)
    rounded["E2M1"] = e2m1()[codes.long()].reshape(blocks.shape) * absmax[:, None]
    return {name: sqnr_db(blocks, rounded[name]) for name in four_bit_levels()}


def within_blocks(weight: Tensor, block_size: int) -> Tensor:
    """Each weight divided by the largest magnitude of its block, [weights], -1 .. 1; 0 in a block of zeros.

    Raises:
        ValueError: `block_size` does not divide the number of weights.
    """
    flat = _blocks(weight, block_size).reshape(-1)
    return flat / absmax_blocks(flat, block_size).repeat_interleave(block_size).clamp(min=1e-38)


def shares(values: Tensor, edges: np.ndarray) -> np.ndarray:
    """The share of `values` in each of the even bins between `edges`, float32."""
    counts = torch.histc(values, bins=len(edges) - 1, min=float(edges[0]), max=float(edges[-1]))
    return counts.numpy() / values.numel()


def _blocks(weight: Tensor, block_size: int) -> Tensor:
    if weight.numel() % block_size:
        raise ValueError(
            f"block_size={block_size} does not divide {weight.numel()} weights; use a smaller power of two"
        )
    return weight.reshape(-1, block_size)
