"""The specification of every operation: plain torch, slow, on any device. Each fast kernel is tested against it."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from qkit.numerics.activations import Activations, outlier_columns, quantize_activations, quantize_activations_int8
from qkit.numerics.integers import int8_codes, int8_matmul
from qkit.numerics.mapping import dequantize as dequantize_codes
from qkit.numerics.mapping import quantize
from qkit.numerics.qtensor import QTensor
from qkit.numerics.stored import StoredWeight

LAZY = 128  # columns that are finished before the rest of the matrix is updated (the B of GPTQ, 2210.17323)
Regrid = Callable[[Tensor, int], tuple[Tensor, Tensor] | None]
RoundBlock = Callable[[Tensor, Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]


def dequantize(q: StoredWeight) -> Tensor:
    """ŵ, float32 [out, in]."""
    return q.dequantize()


def round_trip(groups: Tensor, scale: Tensor, zero: Tensor, q_max: int) -> Tensor:
    """`qkit.ops.round_trip` of float [..., g]."""
    return dequantize_codes(quantize(groups, scale, zero, 0, q_max), scale, zero)


def count_magnitudes(x: Tensor, bins: int, shift: int, lowest: int) -> Tensor:
    """`qkit.ops.count_magnitudes` of float32 [tokens, features]."""
    places = (x.abs().view(torch.int32) >> shift) - lowest
    return torch.bincount(places.clamp(0, bins - 1).flatten(), minlength=bins)


def round_columns(w: Tensor, upper: Tensor, scale: Tensor, zero: Tensor, q_max: int) -> tuple[Tensor, Tensor]:
    """Round a few columns, and let those of them that are still free make good the error.

    Args:
        w: float64 [out, b].
        upper: float64 [b, b], their part of U.
        scale, zero: float [out, b], of the group of each column.

    Returns:
        Codes uint8 [out, b], and the errors e = (w_j - ŵ_j) / U_jj that the columns behind them are to make good.
    """
    w, codes, errors = w.clone(), torch.empty(w.shape, dtype=torch.uint8, device=w.device), torch.empty_like(w)
    for j in range(w.shape[1]):
        q = quantize(w[:, j], scale[:, j], zero[:, j], 0, q_max)
        error = (w[:, j] - dequantize_codes(q, scale[:, j], zero[:, j])) / upper[j, j]
        w[:, j + 1 :] -= error[:, None] * upper[j, j + 1 :]
        codes[:, j] = q.to(torch.uint8)
        errors[:, j] = error
    return codes, errors


def gptq_columns(
    w: Tensor,
    upper: Tensor,
    group: Tensor,
    scale: Tensor,
    zero: Tensor,
    q_max: int,
    regrid: Regrid | None = None,
    round_block: RoundBlock = round_columns,
) -> Tensor:
    """`qkit.ops.gptq_columns`: columns in lazy batches, so that most of the work is matrix products.

    Args:
        round_block: what rounds the columns of a batch.
    """
    w, codes = w.clone(), torch.empty(w.shape, dtype=torch.uint8, device=w.device)
    for start in range(0, w.shape[1], LAZY):
        end = min(start + LAZY, w.shape[1])
        here = group[start:end]
        if regrid is not None:
            for j, g in enumerate(here.tolist(), start):
                if (grid := regrid(w, j)) is not None:
                    scale[:, g], zero[:, g] = grid
        part = upper[start:end, start:end]
        codes[:, start:end], errors = round_block(w[:, start:end], part, scale[:, here], zero[:, here], q_max)
        w[:, end:] -= errors @ upper[start:end, end:]
    return codes


def linear(x: Tensor, q: StoredWeight, activations: Activations | None, bias: Tensor | None = None) -> Tensor:
    """`qkit.ops.linear` without its checks and gradient."""
    x = x if activations is None else quantize_activations(x)
    return with_bias(F.linear(x, q.dequantize().to(x.dtype)), bias)


def with_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    """y + bias in the dtype of y: of a product that has been rounded to it."""
    return y if bias is None else y + bias.to(y.dtype)


def int8_linear(
    x: Tensor, q: QTensor, input_scale: Tensor | None, threshold: float, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """`qkit.ops.int8_linear` without its checks and gradient, [tokens, out] in `dtype`."""
    tokens, weight, weight_scales = x.float(), int8_codes(q), q.scales.float().reshape(1, -1)
    floats = 0.0
    outliers = some_outliers(x, threshold)
    if outliers is not None:
        floats = tokens[:, outliers] @ (weight[:, outliers].float() * weight_scales.T).T
        tokens = tokens.masked_fill(outliers, 0)
    codes, scales = quantize_activations_int8(tokens, input_scale)
    y = int8_matmul(codes, weight).float() * scales * weight_scales + floats
    return (y if bias is None else y + bias.float()).to(dtype)


def products(x: Tensor, weights: Sequence[StoredWeight], activations: Activations | None) -> Tensor:
    """`qkit.ops.products` of x [tokens, in]."""
    return torch.cat([linear(x, q, activations) for q in weights], dim=-1)


def int8_products(x: Tensor, weights: Sequence[QTensor], threshold: float) -> Tensor:
    """The same of INT8 weights."""
    return torch.cat([int8_linear(x, q, None, threshold, None, x.dtype) for q in weights], dim=-1)


def some_outliers(x: Tensor, threshold: float) -> Tensor | None:
    """`outlier_columns` where there are any; None, also with threshold 0."""
    outliers = outlier_columns(x, threshold) if threshold else None
    return outliers if outliers is not None and outliers.any() else None


def add_norm(x: Tensor, more: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x + more [tokens, features], and its root mean square norm times `weight` [features]."""
    total = x + more
    wide = total.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return total, weight * wide.to(weight.dtype)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """SiLU(gate) up, [tokens, features]."""
    return F.silu(gate) * up


def attend(query: Tensor, keys: Tensor, values: Tensor, seen: Tensor, scale: float) -> Tensor:
    """Attention of one token: heads that share keys are the rows of one small product.

    Args:
        query: [groups, heads, dim].
        keys, values: [groups, length, dim].
        seen: bool [length], the positions that there are.
    """
    scores = (query @ keys.transpose(1, 2)).float() * scale
    return scores.masked_fill(~seen, -torch.inf).softmax(-1).to(values.dtype) @ values
