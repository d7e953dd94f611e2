"""INT8 layers on a GPU: chooses how, allocates, launches. Nothing here waits for the card.

Launches: 2 (activations, product); with a threshold 3 (a list of the outliers), or 4 where several tokens say which they are.
"""

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


@dataclass(frozen=True, eq=False)
class Bytes:
    """An INT8 weight as the kernels read it.

    Attributes:
        codes: int8 [N, K filled up with zeros].
        rows: float32 [N], the scales.
    """

    codes: Tensor
    rows: Tensor


def lay(q: QTensor) -> Bytes:
    """The signed codes and a scale for each row."""
    codes = F.pad(int8_codes(q), (0, -q.shape[1] % BLOCK)).contiguous()
    return Bytes(codes, q.scales.float().reshape(-1).expand(q.shape[0]).contiguous())


def int8_linear(
    x: Tensor, q: QTensor, input_scale: Tensor | None, threshold: float, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """`qkit.ops.int8_linear` without its checks and gradient, [tokens, out] in `dtype`."""
    if x.dtype not in KIND or not tiles.card(x.device.index).tensor_cores:
        return plain.int8_linear(x, q, input_scale, threshold, bias, dtype)
    y = torch.empty(len(x), q.shape[0], dtype=dtype, device=x.device)
    if y.numel():
        x = x if x.stride(1) == 1 else x.contiguous()
        with torch.cuda.device_of(x):  # Triton launches on the card that is current
            launch(x, kept(q, "int8", lay), input_scale, threshold, bias, y, tiles.card(x.device.index))
    return y


def launch(
    x: Tensor, weight: Bytes, input_scale: Tensor | None, threshold: float, bias: Tensor | None, y: Tensor, card: tiles.Card,
    cut: integer_tiles.Integers | None = None,
) -> None:  # fmt: skip
    """y [M, N] of x [M, K]; cut so, or as the table says."""
    (tokens, features), (rows, filled) = x.shape, weight.codes.shape
    new, early = {"device": x.device}, card.early
    codes = torch.empty(tokens, filled, dtype=torch.int8, **new)
    scales = torch.empty(tokens, dtype=torch.float32, **new)
    static = input_scale is not None
    fixed = input_scale if static else scales
    wild = columns = count = gathered = codes  # pointers that nobody reads
    width = min(triton.next_power_of_2(filled), WHOLE)
    turns, warps = triton.cdiv(filled, width), 16 if width > WHOLE // 2 else 8
    few = cut is None and tokens <= integer_tiles.few_tokens(card)
    if threshold:
        wild = torch.empty(tokens, features, dtype=x.dtype, **new)
        columns, count = (torch.empty(n, dtype=torch.int32, **new) for n in (features, 1))
        flags, stretches = torch.empty(1 + STRETCHES, features, dtype=torch.int8, **new), 0
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
        gathering = 0
        if not few:
            gathered, gathering = torch.empty(rows, ROOM, dtype=torch.int8, **new), triton.cdiv(rows, 64)
        kernels.split_tokens[(tokens + gathering,)](
            x, flags, codes, scales, fixed, wild, columns, count, weight.codes, gathered,
            tokens, rows, features, filled, x.stride(0),
            STATIC=static, WIDTH=width, TURNS=turns, ROOM=ROOM, R=64, EARLY=early, num_warps=warps, **begins(early),
        )  # fmt: skip
    else:
        kernels.quantize_tokens[(tokens,)](
            x, codes, scales, fixed, features, filled, x.stride(0),
            STATIC=static, WIDTH=width, TURNS=turns, EARLY=early, num_warps=warps, **begins(early),
        )  # fmt: skip
    shift = weight.rows if bias is None else bias.contiguous()
    if few:
        warps, turns = integer_tiles.few(rows, filled // 64, card.units)
        kernels.few_integers[(triton.cdiv(rows, 16),)](
            codes, scales, weight.codes, weight.rows, shift, wild, columns, count, y,
            tokens, rows, features, filled, y.stride(0),
            WARPS=warps, TOKENS=card.narrow if tokens <= card.narrow else 16, TURNS=turns,
            RAGGED=warps * turns * 64 != filled, BIAS=bias is not None, WILD=bool(threshold), EARLY=early,
            num_warps=warps, num_stages=1, **begins(early),
        )  # fmt: skip
        return
    cut = cut or integer_tiles.many(tokens, rows, filled, card, outliers=threshold > 0)
    kernels.many_integers[(triton.cdiv(tokens, cut.bm) * triton.cdiv(rows, cut.bn),)](
        TensorDescriptor(codes, [tokens, filled], [filled, 1], [cut.bm, cut.bk]),
        TensorDescriptor(weight.codes, [rows, filled], [filled, 1], [cut.bn, cut.bk]),
        scales, weight.rows, shift, wild, weight.codes, gathered, columns, count, y,
        tokens, rows, features, filled, y.stride(0),
        BM=cut.bm, BN=cut.bn, BK=cut.bk, TOGETHER=TOGETHER, STAGES=cut.stages, SWAP=cut.swap,
        BIAS=bias is not None, WILD=bool(threshold), ROOM=ROOM, EARLY=early,
        num_warps=cut.warps, **begins(early),
    )  # fmt: skip
