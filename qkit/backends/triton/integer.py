"""INT8 layers on a GPU: chooses how, allocates, launches. Nothing here waits for the card.

Launches: 2 (activations, product); with a threshold 3 (a list of the outliers), or 4 where several tokens say which they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from qkit.backends import torch as plain
from qkit.backends.triton import integer_tiles, tiles
from qkit.backends.triton.arguments import TOGETHER, begins
from qkit.backends.triton.layout import BLOCK, KIND, kept
from qkit.backends.triton.new_enough import TensorDescriptor, triton
from qkit.numerics.integers import int8_codes
from qkit.numerics.qtensor import QTensor
from qkit_kernels.triton import integer as kernels

STRETCHES = 8  # of tokens that look for outliers together, at most: one program reads what all of them found
WHOLE = 16384  # columns of a token that the registers of sixteen warps hold
ROOM = 64  # outliers that are gathered side by side; more are fetched one by one
GATHERED = 64  # rows of the weight that a program gathers


@dataclass(frozen=True, eq=False)
class Bytes:
    """An INT8 weight as the kernels read it.

    Attributes:
        codes: int8 [N, K filled up with zeros].
        rows: float32 [N], the scales.
    """

    codes: Tensor
    rows: Tensor


def lay(*weights: QTensor) -> Bytes:
    """The signed codes and a scale for each row, of several weights one behind the other."""
    codes = torch.cat([int8_codes(q) for q in weights])
    rows = torch.cat([q.scales.float().reshape(-1).expand(q.shape[0]) for q in weights])
    return Bytes(F.pad(codes, (0, -codes.shape[1] % BLOCK)), rows)


def int8_linear(
    x: Tensor, q: QTensor, input_scale: Tensor | None, threshold: float, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """`qkit.ops.int8_linear` without its checks and gradient, [tokens, out] in `dtype`."""
    if not _takes(x):
        return plain.int8_linear(x, q, input_scale, threshold, bias, dtype)
    return _product(x, (q,), input_scale, threshold, bias, dtype)


def int8_products(x: Tensor, weights: Sequence[QTensor], threshold: float) -> Tensor:
    """`qkit.ops.products` of x [tokens, in]."""
    if not _takes(x):
        return plain.int8_products(x, weights, threshold)
    return _product(x, weights, None, threshold, None, x.dtype)


def _takes(x: Tensor) -> bool:
    return x.dtype in KIND and tiles.card(x.device.index).tensor_cores


def _product(
    x: Tensor, weights: Sequence[QTensor], input_scale: Tensor | None, threshold: float, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:  # fmt: skip
    """[tokens, the outs of all weights]."""
    y = torch.empty(len(x), sum(q.shape[0] for q in weights), dtype=dtype, device=x.device)
    if y.numel():
        x = x if x.stride(1) == 1 else x.contiguous()
        with torch.cuda.device_of(x):  # Triton launches on the card that is current
            weight = kept(weights[0], "int8", lay, *weights[1:])
            launch(x, weight, input_scale, threshold, bias, y, tiles.card(x.device.index))
    return y


def launch(
    x: Tensor, weight: Bytes, input_scale: Tensor | None, threshold: float, bias: Tensor | None, y: Tensor, card: tiles.Card,
    cut: integer_tiles.Integers | None = None,
) -> None:  # fmt: skip
    """y [M, N] of x [M, K]; cut so, or as the table says."""
    few = cut is None and len(x) <= integer_tiles.few_tokens(card)
    found = split(x, weight, input_scale, threshold, card, gathers=not few)
    if few:
        few_product(found, weight, bias, y, card)
    else:
        rows, filled = weight.codes.shape
        cut = cut or integer_tiles.many(len(x), rows, filled, card, outliers=threshold > 0)
        many_product(found, weight, bias, y, cut, card)


@dataclass(frozen=True, eq=False)
class Split:
    """x as a product reads it.

    Attributes:
        codes: int8 [M, K filled up]; scales: float32 [M].
        wild: outliers, [M, K] of which the first `count` are there, int32 [1]; `columns`, int32 [K], says whose they are.
        gathered: the weight's codes of the first ROOM of these columns, int8 [N, ROOM].
        features: K.
        outliers: whether there may be outliers; where not, what tells of them is codes, which nobody reads.
    """

    codes: Tensor
    scales: Tensor
    wild: Tensor
    columns: Tensor
    count: Tensor
    gathered: Tensor
    features: int
    outliers: bool


def split(
    x: Tensor, weight: Bytes, input_scale: Tensor | None, threshold: float, card: tiles.Card, gathers: bool
) -> Split:  # fmt: skip
    """Codes of x [M, K], and with a threshold its outliers.

    Args:
        gathers: fetch the weight's columns, too.
    """
    (tokens, features), (rows, filled) = x.shape, weight.codes.shape
    early, static = card.early, input_scale is not None
    codes = torch.empty(tokens, filled, dtype=torch.int8, device=x.device)
    scales = torch.empty(tokens, dtype=torch.float32, device=x.device)
    fixed = scales if input_scale is None else input_scale
    width = min(triton.next_power_of_2(filled), WHOLE)
    shape = {"STATIC": static, "WIDTH": width, "TURNS": triton.cdiv(filled, width), "EARLY": early}
    launched = {"num_warps": 16 if width > WHOLE // 2 else 8, **begins(early)}
    if not threshold:
        kernels.quantize_tokens[(tokens,)](
            x, codes, scales, fixed, features, filled, x.stride(0), **shape, **launched
        )  # fmt: skip
        return Split(codes, scales, codes, codes, codes, codes, features, outliers=False)
    wild = torch.empty(tokens, features, dtype=x.dtype, device=x.device)
    columns, count = (torch.empty(n, dtype=torch.int32, device=x.device) for n in (features, 1))
    flags, stretches = torch.empty(1 + STRETCHES, features, dtype=torch.int8, device=x.device), 0
    if tokens > 1:
        height = max(64, triton.next_power_of_2(triton.cdiv(tokens, STRETCHES)))
        stretches = triton.cdiv(tokens, height)
        kernels.outlier_columns[(triton.cdiv(features, 64), stretches)](
            x, flags[1:], tokens, features, x.stride(0), float(threshold), HEIGHT=height, WIDTH=64, EARLY=early,
            num_warps=4, **begins(early),
        )  # fmt: skip
    kernels.list_outliers[(triton.cdiv(features, 1024),)](
        x, flags[1:], flags, columns, count, features, float(threshold), stretches,
        CHUNK=1024, WIDTH=width, ONE=tokens == 1, EARLY=early, num_warps=8, **begins(early),
    )  # fmt: skip
    gathered = torch.empty(rows, ROOM, dtype=torch.int8, device=x.device) if gathers else codes
    kernels.split_tokens[(tokens + (triton.cdiv(rows, GATHERED) if gathers else 0),)](
        x, flags, codes, scales, fixed, wild, columns, count, weight.codes, gathered,
        tokens, rows, features, filled, x.stride(0), ROOM=ROOM, R=GATHERED, **shape, **launched,
    )  # fmt: skip
    return Split(codes, scales, wild, columns, count, gathered, features, outliers=True)


def few_product(a: Split, weight: Bytes, bias: Tensor | None, y: Tensor, card: tiles.Card) -> None:
    """y [M, N] for M up to 16."""
    (tokens, rows), filled = y.shape, weight.codes.shape[1]
    warps, turns = integer_tiles.few(rows, filled // 64, card.units)
    kernels.few_integers[(triton.cdiv(rows, 16),)](
        a.codes, a.scales, weight.codes, weight.rows, _shift(weight, bias), a.wild, a.columns, a.count, y,
        tokens, rows, a.features, filled, y.stride(0),
        WARPS=warps, TOKENS=card.narrow if tokens <= card.narrow else 16, TURNS=turns, RAGGED=warps * turns * 64 != filled,
        BIAS=bias is not None, WILD=a.outliers, EARLY=card.early, num_warps=warps, num_stages=1, **begins(card.early),
    )  # fmt: skip


def many_product(
    a: Split, weight: Bytes, bias: Tensor | None, y: Tensor, cut: integer_tiles.Integers, card: tiles.Card
) -> None:  # fmt: skip
    """y [M, N], a program for each tile."""
    (tokens, rows), filled = y.shape, weight.codes.shape[1]
    kernels.many_integers[(tiles.number_of_tiles(rows, tokens, (cut.bn, cut.bm)),)](
        TensorDescriptor(a.codes, [tokens, filled], [filled, 1], [cut.bm, cut.bk]),
        TensorDescriptor(weight.codes, [rows, filled], [filled, 1], [cut.bn, cut.bk]),
        a.scales, weight.rows, _shift(weight, bias), a.wild, weight.codes, a.gathered, a.columns, a.count, y,
        tokens, rows, a.features, filled, y.stride(0),
        BM=cut.bm, BN=cut.bn, BK=cut.bk, TOGETHER=TOGETHER, STAGES=cut.stages, SWAP=cut.swap,
        BIAS=bias is not None, WILD=a.outliers, ROOM=ROOM, EARLY=card.early, num_warps=cut.warps, **begins(card.early),
    )  # fmt: skip


def _shift(weight: Bytes, bias: Tensor | None) -> Tensor:
    """The bias; where there is none, what is not read."""
    return weight.rows if bias is None else bias.contiguous()
