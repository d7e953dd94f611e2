"""INT8 layers on a GPU: chooses how, allocates, launches. Nothing here waits for the card.

Launches: 2 (activations, product); with a threshold 3 for up to 16 tokens that registers do not hold together (which columns are
outliers), and 4 for more (a list of them too).
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
from qkit_kernels.triton import assembly
from qkit_kernels.triton import integer as kernels

APART = 16  # tokens that are four rows of codes each where there is a threshold,
HELD = 65536  # if registers hold so many numbers of them all: each looks for outliers in all
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
    found = split(x, weight, input_scale, threshold, card)
    if cut is None and found.wild is None and len(found.codes) <= integer_tiles.few_tokens(card):
        few_product(found, weight, bias, y, card)
    else:
        rows, filled = weight.codes.shape
        cut = cut or integer_tiles.many(len(found.codes), rows, filled, card, outliers=found.wild is not None)
        many_product(found, weight, bias, y, cut, card)


@dataclass(frozen=True, eq=False)
class Wild:
    """Outliers beside codes.

    Attributes:
        numbers: [M, K] of which the first `count` are there, int32 [1]; `columns`, int32 [K], says whose they are.
        gathered: the weight's codes of the first ROOM of these columns, int8 [N, ROOM].
    """

    numbers: Tensor
    columns: Tensor
    count: Tensor
    gathered: Tensor


@dataclass(frozen=True, eq=False)
class Split:
    """x [M, K] as a product reads it.

    Attributes:
        codes: int8 [M, K filled up], or four rows for each token, whose sum it is; scales: float32, one for each row.
        features: K.
        apart: whether there are four.
        wild: where there may be outliers that are not in the codes.
    """

    codes: Tensor
    scales: Tensor
    features: int
    apart: bool = False
    wild: Wild | None = None


def split(x: Tensor, weight: Bytes, input_scale: Tensor | None, threshold: float, card: tiles.Card) -> Split:
    """Codes of x [M, K], and with a threshold its outliers."""
    (tokens, features), (rows, filled) = x.shape, weight.codes.shape
    if threshold and tokens <= APART and filled <= WHOLE:
        return taken_apart(x, filled, input_scale, threshold, card.early)
    early = card.early
    codes = torch.empty(tokens, filled, dtype=torch.int8, device=x.device)
    scales = torch.empty(tokens, dtype=torch.float32, device=x.device)
    fixed = scales if input_scale is None else input_scale
    width = min(triton.next_power_of_2(filled), WHOLE)
    shape = {"STATIC": input_scale is not None, "WIDTH": width, "TURNS": triton.cdiv(filled, width), "EARLY": early}
    launched = {"num_warps": 16 if width > WHOLE // 2 else 8, **begins(early)}
    if not threshold:
        kernels.quantize_tokens[(tokens,)](
            x, codes, scales, fixed, features, filled, x.stride(0), **shape, **launched
        )  # fmt: skip
        return Split(codes, scales, features)
    numbers = torch.empty(tokens, features, dtype=x.dtype, device=x.device)
    columns, count = (torch.empty(n, dtype=torch.int32, device=x.device) for n in (features, 1))
    height = max(64, triton.next_power_of_2(triton.cdiv(tokens, STRETCHES)))
    stretches = triton.cdiv(tokens, height)
    flags = torch.empty(1 + stretches, features, dtype=torch.int8, device=x.device)
    find_outliers(x, flags[1:], threshold, height, early)
    kernels.list_outliers[(triton.cdiv(features, 1024),)](
        flags[1:], flags, columns, count, features, stretches, CHUNK=1024, WIDTH=width, EARLY=early,
        num_warps=8, **begins(early),
    )  # fmt: skip
    gathered = torch.empty(rows, ROOM, dtype=torch.int8, device=x.device)
    kernels.split_tokens[(tokens + triton.cdiv(rows, GATHERED),)](
        x, flags, codes, scales, fixed, numbers, columns, count, weight.codes, gathered,
        tokens, rows, features, filled, x.stride(0), ROOM=ROOM, R=GATHERED, **shape, **launched,
    )  # fmt: skip
    return Split(codes, scales, features, wild=Wild(numbers, columns, count, gathered))


def find_outliers(x: Tensor, flags: Tensor, threshold: float, height: int, early: bool) -> None:
    """Fill flags int8 [stretches, K]: which columns of x [M, K] hold an outlier, of each `height` tokens, a multiple of 64."""
    tokens, features = x.shape
    kernels.outlier_columns[(triton.cdiv(features, 64), len(flags))](
        x, flags, tokens, features, x.stride(0), float(threshold), HEIGHT=height, WIDTH=64, EARLY=early,
        num_warps=4, **begins(early),
    )  # fmt: skip


def held(tokens: int, filled: int) -> bool:
    """Whether registers hold so many tokens of so many columns, each program's all of them; half as many of the longest."""
    numbers = triton.next_power_of_2(filled) * triton.next_power_of_2(tokens)
    return numbers <= (HELD if filled <= WHOLE // 2 else HELD // 2)


def taken_apart(x: Tensor, filled: int, input_scale: Tensor | None, threshold: float, early: bool) -> Split:
    """The few tokens of x [M, K] as four rows of codes each, K filled up.

    Each program looks for outliers in all tokens; where registers do not hold them, a kernel in front does.
    """
    (tokens, features), width = x.shape, triton.next_power_of_2(filled)
    codes = torch.empty(4 * tokens, filled, dtype=torch.int8, device=x.device)
    scales = torch.empty(4 * tokens, dtype=torch.float32, device=x.device)
    together, flags = triton.next_power_of_2(tokens), codes
    if not held(tokens, filled):
        together, flags = 0, torch.empty(1, features, dtype=torch.int8, device=x.device)
        find_outliers(x, flags, threshold, 64, early)
    numbers = width * max(1, together)
    warps = 8 if numbers <= WHOLE // 2 else 16 if numbers <= WHOLE or width == WHOLE else 32
    kernels.take_apart[(tokens,)](
        x, flags, codes, scales, scales if input_scale is None else input_scale,
        tokens, features, filled, x.stride(0), float(threshold),
        TOKENS=together, STATIC=input_scale is not None, WIDTH=width, EARLY=early, num_warps=warps, **begins(early),
    )  # fmt: skip
    return Split(codes, scales, features, apart=True)


def few_product(a: Split, weight: Bytes, bias: Tensor | None, y: Tensor, card: tiles.Card) -> None:
    """y [M, N] of up to 16 rows of codes."""
    rows, filled = weight.codes.shape
    warps, turns = integer_tiles.few(rows, filled // 64, card.units)
    width = max(card.narrow, triton.next_power_of_2(len(a.codes)))
    kernels.few_integers[(triton.cdiv(rows, 16),)](
        a.codes, a.scales, weight.codes, weight.rows, _shift(weight, bias), y,
        len(a.codes), rows, filled, y.stride(0),
        WARPS=warps, TOKENS=width, TURNS=turns, RAGGED=warps * turns * 64 != filled, BIAS=bias is not None, APART=a.apart,
        EARLY=card.early, SUM=assembly.summed(warps, width, "s32") if card.ptx else "",
        num_warps=warps, num_stages=1, **begins(card.early),
    )  # fmt: skip


def many_product(
    a: Split, weight: Bytes, bias: Tensor | None, y: Tensor, cut: integer_tiles.Integers, card: tiles.Card
) -> None:  # fmt: skip
    """y [M, N], a program for each tile."""
    (tokens, filled), rows = a.codes.shape, len(weight.codes)
    wild = a.wild or Wild(a.codes, a.codes, a.codes, a.codes)  # which nobody reads
    kernels.many_integers[(tiles.number_of_tiles(rows, tokens, (cut.bn, cut.bm)),)](
        TensorDescriptor(a.codes, [tokens, filled], [filled, 1], [cut.bm, cut.bk]),
        TensorDescriptor(weight.codes, [rows, filled], [filled, 1], [cut.bn, cut.bk]),
        a.scales, weight.rows, _shift(weight, bias), wild.numbers, weight.codes, wild.gathered, wild.columns, wild.count, y,
        tokens, rows, a.features, filled, y.stride(0),
        BM=cut.bm, BN=cut.bn, BK=cut.bk, TOGETHER=TOGETHER, STAGES=cut.stages, SWAP=cut.swap,
        BIAS=bias is not None, APART=a.apart, WILD=a.wild is not None, ROOM=ROOM, EARLY=card.early,
        num_warps=cut.warps, **begins(card.early),
    )  # fmt: skip


def _shift(weight: Bytes, bias: Tensor | None) -> Tensor:
    """The bias; where there is none, what is not read."""
    return weight.rows if bias is None else bias.contiguous()
