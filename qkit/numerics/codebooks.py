"""Codebooks: codes of 4 or 8 bits that stand for numbers of a table, not for the steps of a ruler.

What
    A block of numbers is divided by its largest magnitude, so that all lie in [-1, 1], and each goes to the nearest of the
    16 (or 256) numbers of a table. The tables are not stored with a model: each follows from a rule, written here.

Formula
    c = argmin_i |w / absmax - table[i]|,    ŵ = absmax table[c]
    `nf4`          quantiles of the normal distribution: each code is used about equally often where weights are normal
                   (QLoRA, 2305.14314, section 3 and eq. 4)
    `fp4`          a float of 1 sign, 2 exponent and 1 mantissa bits
    `dynamic_map`  an exponent of as many bits as it needs, the rest is fraction (2110.02861, section 1.3): QLoRA's
                   double quantization stores the absmax values with it

Trade-off
    A table puts its levels where the weights are, which an even grid cannot; but a product with codes needs a look-up, and
    no integer arithmetic is possible.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

# Tables do not follow the default dtype or a device context: a model may be built inside torch.device("meta")
CPU: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
_NF4_TAIL = 0.9677083  # 1 - (1/32 + 1/30) / 2, in the seven digits that the published table was computed with


@cache
@torch.inference_mode(False)
def codebook(name: str) -> Tensor:
    """The table called "nf4" or "fp4", float32 [16]; code c stands for entry c. One tensor for all: not to be written into."""
    if name not in ("nf4", "fp4"):
        raise ValueError(f'codebook={name!r} is not one of "nf4", "fp4"; was it written by a newer qkit?')
    return nf4() if name == "nf4" else fp4()


def nf4() -> Tensor:
    """NormalFloat, float32 [16], ascending, -1 .. 1 with an exact 0; every bit that of bitsandbytes' table.

    8 quantiles of the normal distribution above zero and 7 below it, evenly spaced in probability from 1/2 to the tail
    (the mean of 31/32 and 29/30, where the outermost of 16 and of 15 bins have their middles), and divided by the largest.
    """

    def quantiles(count: int) -> Tensor:
        tail = torch.tensor(
            _NF4_TAIL, **CPU
        ).double()  # probabilities are rounded to float32, as they were for the table
        probabilities = torch.linspace(float(tail), 0.5, count + 1, dtype=torch.float64, device="cpu")[:-1].float()
        return torch.special.ndtri(probabilities.double())

    table = torch.cat([-quantiles(7), torch.zeros(1, **CPU), quantiles(8).flip(0)]).float()
    return table / table[-1]


def fp4() -> Tensor:
    """A 4-bit float, float32 [16] in the order of the bit patterns s e e m, divided by its largest number, 12.

    As in E2M1 the numbers are (1 + m/2) 2^E, here 2 3 | 4 6 | 8 12, and exponent bits 00 hold zero and one small number.
    Unlike there, bitsandbytes counts the exponent downwards (E = 4 - ee), and its small number is 1/16, not 1: next to
    zero, where the weights are, the table has a level for weights that are almost nothing.
    """
    exponents, mantissas = torch.arange(4, **CPU)[:, None], torch.arange(2, **CPU)
    normal = (1 + mantissas / 2) * 2.0 ** (4 - exponents)
    positive = torch.where(exponents > 0, normal, mantissas / 16).reshape(-1)
    # 0 - x, so that pattern 1000 is 0.0 and not -0.0
    return torch.cat([positive, 0 - positive]) / positive.max()


@cache
@torch.inference_mode(False)
def dynamic_map() -> Tensor:
    """The dynamic 8-bit numbers, float32 [256], ascending; every bit those of bitsandbytes' `create_dynamic_map`.
    One tensor for all: not to be written into.

    Decade i of 7 (10^-6 .. 1) has 2^i numbers of either sign, the middles of as many even bins of [0.1, 1]; with zero and
    one they are 256.
    """
    numbers = [0.0, 1.0]
    for i in range(7):
        edges = torch.linspace(0.1, 1, 2**i + 1, **CPU)
        decade = (10 ** (i - 6) * ((edges[:-1] + edges[1:]) / 2)).tolist()
        numbers += [*decade, *(-number for number in decade)]
    return torch.tensor(sorted(numbers), **CPU)


@cache
@torch.inference_mode(False)
def _thresholds(table: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """The middles between neighbours of a table, ascending, and the code of each place between them."""
    ascending, order = torch.tensor(table, **CPU).sort(stable=True)
    return (ascending[:-1] + ascending[1:]) / 2, order


def nearest(x: Tensor, table: Tensor) -> Tensor:
    """The codes of the numbers of `table` (float32, any order) that are nearest to `x` (float32): uint8, shaped like `x`.

    Half way between two numbers the smaller one is taken; where the table has a number twice (the zeros of `fp4`), `x`
    up to it goes to the first and `x` above it to the second, as in bitsandbytes.
    """
    middles, order = (part.to(x.device) for part in _thresholds(tuple(table.tolist())))
    return order[torch.bucketize(x, middles)].to(torch.uint8)


def absmax_blocks(x: Tensor, size: int) -> Tensor:
    """The largest magnitude in each block of `size` neighbours of `x` (float32 [n]): float32 [ceil(n / size)]."""
    tail = x.numel() % size
    full = x[: x.numel() - tail].reshape(-1, size).abs().amax(1)
    # A short block never has 0: bitsandbytes divides by it
    return torch.cat([full, x[-tail:].abs().amax()[None].clamp(min=1e-38)]) if tail else full


def quantize_blocks(x: Tensor, table: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Each block of `size` neighbours divided by its largest magnitude, and then the nearest of `table`.

    Args:
        x: float32 [n], finite; the last block may be short. A block of zeros comes back as zeros.
        table: float32, -1 .. 1.
        size: numbers of a block.

    Returns:
        codes uint8 [n], absmax float32 [ceil(n / size)]. The roundings are those of bitsandbytes, which multiplies full
        blocks with 1 / absmax and divides the short one by it.
    """
    absmax = absmax_blocks(x, size)
    full = x.numel() - x.numel() % size
    inverse = (1 / absmax.clamp(min=1e-38)).repeat_interleave(size)
    inside = torch.cat([x[:full] * inverse[:full], x[full:] / absmax[-1]]).clamp(-1, 1)
    return nearest(inside, table), absmax
