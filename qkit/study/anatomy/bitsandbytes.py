"""4-bit formats taken apart: where their levels lie, and what they cost on a weight."""

import numpy as np
import torch
from torch import Tensor

from qkit.engine.quantize import quantize_tensor
from qkit.methods.codebook import FP4, NF4
from qkit.methods.rtn import RTN
from qkit.numerics.codebooks import absmax_blocks, codebook
from qkit.numerics.error import sqnr_db


def four_bit_levels() -> dict[str, Tensor]:
    """The levels of a block whose absmax is 1, ascending: NF4, FP4 (15, zero counts once) and INT4 symmetric."""
    return {
        "NF4": codebook("nf4"),
        "FP4": codebook("fp4").unique(),
        "INT4": (torch.arange(16) - 8) * 2 / 15,
    }


def four_bit_sqnr(weight: Tensor, block_size: int) -> dict[str, float]:
    """SQNR in dB of NF4, FP4 and symmetric INT4, all in blocks of `block_size` weights with unquantized scales.

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
    return {name: sqnr_db(blocks, quantize_tensor(blocks, scheme).dequantize()) for name, scheme in schemes.items()}


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
