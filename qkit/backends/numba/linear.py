"""Quantized linear layers on the CPU: lays out what the Numba kernels read, allocates, launches.

The kernels stand in `qkit_kernels`: `weight_only` (float activations) and `integer` (INT8 activations), each for up to four
tokens (`gemv`: bound by reading the weight) and for many (`gemm`: bound by arithmetic). They read a QTensor's buffers as they are
stored; only the activations are laid out anew.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from qkit.backends import torch as plain
from qkit.backends.numba.few import FEW, SERIAL_WEIGHTS, can_be_added, taken_together
from qkit.backends.numba.ready import NO_BYTES, NONE, Ready, floats, limit_of, readied, ready
from qkit.dispatch import select
from qkit.numerics.activations import Activations, quantize_activations
from qkit.numerics.qtensor import QTensor
from qkit.numerics.stored import StoredWeight
from qkit_kernels.numba import amx, integer, streams, tiles, weight_only
from qkit_kernels.numba.threads import run, thread_count
from qkit_kernels.numba.vector import BYTES, LANES

_NO_OUTLIERS = (np.zeros(0, np.int64), np.zeros((0, 0, 0), np.float32))


def _laid(shape: tuple[int, ...], dtype: torch.dtype, zeros: bool = False) -> np.ndarray:
    """Room that begins with a cache line; zeros where some of the tokens that a kernel takes together are missing."""
    return (torch.zeros if zeros else torch.empty)(shape, dtype=dtype, device="cpu").numpy()


def _tiles(tokens: int) -> tuple[tuple[None, ...], int, int]:
    """The size of a tile in vectors; in tokens; and how many tiles."""
    vectors = tiles.tile(tokens)
    lanes = LANES * len(vectors)
    return vectors, lanes, -(-tokens // lanes)


def weight_only_linear(x: Tensor, q: StoredWeight) -> Tensor:
    """x ŵᵀ with float activations: float32 [..., out] of x [..., in], float32, float16 or bfloat16."""
    return _with_floats(x, readied(q), None)


def _with_floats(x: Tensor, weight: Ready, bias: Tensor | None) -> Tensor:
    """The same with a bias, float32 [out] and contiguous, or None."""
    (out_features, in_features), groups = weight.shape, weight.groups
    tokens = x.numel() // in_features
    if (y := weight.with_floats(x, bias)) is not None:
        return y
    few = weight.together and 0 < tokens <= FEW
    given = floats(x.reshape(-1, in_features))
    serial = tokens * out_features * in_features < SERIAL_WEIGHTS
    packed, grid, table, *geometry, bits = weight.arrays
    if few:
        together, masked = taken_together(tokens), weight_only.masked(len(bits), table is None)
        n, blocks, places = len(together), len(geometry[0]), streams.UNIT[len(bits)] + (masked > 0)
        laid = _laid((blocks, places, n, LANES), torch.float32, n > tokens)
        sums = np.zeros((-(-groups // LANES), n, LANES), np.float32)
        y = torch.empty(n, out_features, dtype=torch.float32, device="cpu")
        streams.lay_floats(given, groups, laid, sums, masked)
        args = (laid, sums, packed, grid, table, *geometry, bits, together, y.numpy())
        run(weight_only.gemv, weight_only.gemv_rows, args, out_features, serial=serial)
        return _finished(y[:tokens], x, bias)
    y = torch.empty(tokens, out_features, dtype=torch.float32, device="cpu")
    if tokens:
        vectors, lanes, count = _tiles(tokens)
        laid = _laid((count, in_features, lanes), torch.float32)
        run(streams.lay_float_tiles, streams.lay_float_tiles_rows, (given, laid), count * lanes, lanes, count == 1)
        share, pieces = tiles.shares(tokens, out_features, lanes, thread_count())
        args = (laid, packed, grid, table, bits, vectors, share, y.numpy())
        run(weight_only.gemm, weight_only.gemm_rows, args, pieces, serial=serial, chunk=1)
    return _finished(y, x, bias)


def _finished(y: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    """y [tokens, out] with the bias, in the shape of a layer's output."""
    y = y.view(*x.shape[:-1], y.shape[1])
    return y if bias is None else y + bias


def integer_linear(
    x: Tensor, q: StoredWeight, input_scale: Tensor | None = None, outliers: Tensor | None = None
) -> Tensor:
    """x ŵᵀ with INT8 activations: float32 [..., out].

    Args:
        x: float32, float16 or bfloat16 [..., in].
        q: any weight that `fits_integers`.
        input_scale: float32 [], the step of all activations; None: absmax / 127 of each token.
        outliers: bool [in], columns that stay floats; only where a row of `q` has one scale, 8 bits and no zero point.
    """
    return _with_integers(x, readied(q), None, input_scale, outliers)


def _with_integers(
    x: Tensor,
    weight: Ready,
    bias: Tensor | None,
    input_scale: Tensor | None = None,
    outliers: Tensor | None = None,
    limit: float = NONE,
) -> Tensor:
    """The same with a bias, float32 [out] and contiguous, or None; instead of `outliers` the `limit` by which they are found."""
    (out_features, in_features), groups = weight.shape, weight.groups
    tokens = x.numel() // in_features
    scale = 0.0 if input_scale is None else float(input_scale)
    if outliers is None and (y := weight.with_integers(x, bias, scale, limit)) is not None:
        return y
    few = weight.together and 0 < tokens <= FEW
    packed, grid, _, *geometry, bits = weight.arrays
    given, fixed = floats(x.reshape(-1, in_features)), np.float32(scale)
    outliers = _outliers(given, limit) if limit >= 0 else outliers
    serial = tokens * out_features * in_features < SERIAL_WEIGHTS
    keep = NO_BYTES if outliers is None else (~outliers).view(torch.uint8).numpy()
    if few:
        together, unit = taken_together(tokens), streams.UNIT[len(bits)]
        n, blocks = len(together), len(geometry[0])
        laid = _laid((blocks, unit // 4, n, 4 * LANES), torch.int8, n > tokens)
        sums, scales = np.zeros((-(-groups // LANES), n, LANES), np.float32), np.ones(n, np.float32)
        y = torch.empty(n, out_features, dtype=torch.float32, device="cpu")
        streams.quantize(given, keep, fixed, groups, scales, laid, sums)
        args = (laid, scales, sums, _wild(x, outliers, n), packed, grid, *geometry, bits, together, y.numpy())
        run(integer.gemv, integer.gemv_rows, args, out_features, serial=serial)
        return _finished(y[:tokens], x, bias)
    y = torch.empty(tokens, out_features, dtype=torch.float32, device="cpu")
    if tokens:
        vectors, lanes, count = _tiles(tokens)
        by_amx = lanes == amx.TOKENS and _has_one_scale(weight) and amx.usable()
        together = BYTES if by_amx else 4  # features
        laid = _laid((count, -(-in_features // together) * together // 4, lanes, 4), torch.int8)
        sums, scales = np.empty((count, groups, lanes), np.float32), np.empty(count * lanes, np.float32)
        quantized = (given, keep, fixed, groups, scales, laid, sums)
        run(streams.quantize_tiles, streams.quantize_tiles_rows, quantized, count * lanes, lanes, count == 1)
        share, pieces = tiles.shares(tokens, out_features, lanes, thread_count())
        args = (laid, scales, sums, _wild(x, outliers, lanes), packed, grid, bits)
        if by_amx:
            run(amx.gemm, amx.gemm_rows, (*args, share, y.numpy()), pieces, serial=serial, chunk=1)
        else:
            run(integer.gemm, integer.gemm_rows, (*args, vectors, share, y.numpy()), pieces, serial=serial, chunk=1)
    return _finished(y, x, bias)


def _has_one_scale(weight: Ready) -> bool:
    """Whether a row has one scale and no zero point, so that its sums are whole numbers up to the last line."""
    _, (_, second, third, *_), *_ = weight.arrays
    return weight.groups == 1 and second.size == third.size == 0


def _outliers(given: np.ndarray, limit: float) -> Tensor | None:
    """`plain.some_outliers` of x as kernels see it."""
    tokens, features = given.shape
    found = np.zeros(features, np.uint8)
    args = (given, np.float32(limit), found)
    run(streams.find_outliers, streams.find_outliers_rows, args, tokens, serial=given.size < SERIAL_WEIGHTS)
    return torch.from_numpy(found).bool() if found.any() else None


def _wild(x: Tensor, outliers: Tensor | None, lanes: int) -> tuple[np.ndarray, np.ndarray]:
    """The columns that stay floats, int64 [n], and what they hold, float32 [tiles, n, lanes]."""
    if outliers is None:
        return _NO_OUTLIERS
    columns = outliers.nonzero().flatten()
    found = x.reshape(-1, x.shape[-1])[:, columns].float()
    found = F.pad(found, (0, 0, 0, -len(found) % lanes)).reshape(-1, lanes, len(columns))
    return columns.numpy(), found.transpose(1, 2).contiguous().numpy()


def linear(x: Tensor, q: StoredWeight, activations: Activations | None, bias: Tensor | None = None) -> Tensor:
    """`qkit.ops.linear` without its checks and gradient."""
    weight = None if x.dtype == torch.float64 else ready(q)
    if weight is None:  # for what has no kernel the weight becomes floats
        x = x if activations is None else quantize_activations(x)
        return plain.with_bias(F.linear(x, select(f"dequantize_{q.kind}", None, "cpu")(q).to(x.dtype)), bias)
    own = bias if bias is not None and x.dtype == torch.float32 and can_be_added(bias, len(q.packed)) else None
    if activations is None:
        y = _with_floats(x, weight, own)
    elif weight.integers:
        y = _with_integers(x, weight, own)
    else:  # a table has no integers to multiply
        y = _with_floats(quantize_activations(x), weight, own)
    y = y if y.dtype == x.dtype else y.to(x.dtype)
    return y if own is not None else plain.with_bias(y, bias)


def int8_linear(
    x: Tensor, q: QTensor, input_scale: Tensor | None, threshold: float, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """`qkit.ops.int8_linear` without its checks and gradient, [tokens, out] in `dtype`."""
    weight = ready(q)
    if weight is None or not weight.integers:
        return plain.int8_linear(x, q, input_scale, threshold, bias, dtype)
    own = bias if bias is not None and can_be_added(bias, len(q.packed)) else None
    if x.dtype == torch.float64:
        y = _with_integers(x.float(), weight, own, input_scale, plain.some_outliers(x, threshold))
    else:
        y = _with_integers(x, weight, own, input_scale, limit=limit_of(threshold, x.dtype))
    y = y if own is not None else plain.with_bias(y, bias)
    return y if y.dtype == dtype else y.to(dtype)
