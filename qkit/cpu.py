"""Quantized linear layers on the CPU: lays out what the Numba kernels read, allocates, launches.

The kernels stand in `qkit_kernels`: `weight_only` (float activations) and `integer` (INT8 activations), each for one token
(`gemv`: bound by reading the weight) and for many (`gemm`: bound by arithmetic). They read a QTensor's buffers as they are
stored; only the activations are laid out anew.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from qkit.codebook_qtensor import CodebookQTensor
from qkit.codebooks import codebook, dynamic_map
from qkit.qtensor import QTensor
from qkit_kernels import integer, streams, weight_only
from qkit_kernels.threads import run
from qkit_kernels.vector import LANES, Static

SERIAL_WEIGHTS = 2**17  # times tokens: less is done before a second thread has woken
MAX_FEATURES, MAX_GROUPS = 2**16, 2**11  # a row of each stands on a thread's stack
_NOTHING = np.zeros((0, 0), np.float32)
_NO_BYTES = np.zeros(0, np.uint8)
_NO_OUTLIERS = (np.zeros(0, np.int64), np.zeros((0, 0), np.float32))
_STATIC = {bits: Static(bits) for bits in range(2, 9)}


def fits(q: QTensor) -> bool:
    """Whether the kernels can read `q`: groups are whole lanes, and blocks of a codebook do not run over the ends of rows."""
    out_features, in_features = q.shape
    if not out_features or not 0 < in_features <= MAX_FEATURES or _groups(q) > MAX_GROUPS:
        return False
    if isinstance(q, CodebookQTensor):
        return in_features % q.block_size == 0
    groups = q.scales.shape[1]
    return groups == 1 or in_features // groups % streams.UNIT[q.bits] == 0


@lru_cache(maxsize=256)
def _geometry(bits: int, features: int, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """The group of each block's first lane, and of each lane counted from there ([0, 16] where that is always 0)."""
    codes = LANES * streams.UNIT[bits]
    blocks, size = -(-features // codes), features // groups
    of_lane = np.minimum(np.arange(blocks * LANES) * streams.UNIT[bits] // size, groups - 1).reshape(blocks, LANES)
    of_block = np.ascontiguousarray(of_lane[:, 0], np.int32)
    inside = np.ascontiguousarray(of_lane - of_lane[:, :1], np.int32)
    return of_block, inside if inside.any() else inside[:0]


def _floats(tensor: Tensor) -> np.ndarray:
    """A float32, float16 or bfloat16 tensor as the kernels see it, a copy only if it has gaps: see `vector.as_float`."""
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.float16:
        tensor = tensor.view(torch.uint16)
    elif tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.int16)
    return tensor.numpy()


def _grid(q: QTensor) -> tuple[np.ndarray, ...]:
    """The scales of `q` as `qkit_kernels.grid` reads them."""
    if not isinstance(q, CodebookQTensor):
        zero_points = _NO_BYTES if q.zero_points is None else q.zero_points.contiguous().numpy()
        return _floats(q.scales), zero_points, _NOTHING if q.offsets is None else _floats(q.offsets)
    absmax = q.scales.contiguous().numpy().reshape(q.shape[0], -1)
    if q.nested_scales is None:
        return absmax, _NO_BYTES, _NOTHING
    return absmax, _table("dynamic"), q.nested_scales.contiguous().numpy(), q.scale_offset.reshape(1).numpy()


@lru_cache
def _table(name: str) -> np.ndarray:
    return (dynamic_map() if name == "dynamic" else codebook(name)).numpy()


def _groups(q: QTensor) -> int:
    return q.shape[1] // q.block_size if isinstance(q, CodebookQTensor) else q.scales.shape[1]


def _rows_of(x: Tensor) -> tuple[np.ndarray, int, int]:
    """The activations as [tokens, features] for a kernel; how many tokens; and how many with those that fill up fours."""
    x = x.reshape(-1, x.shape[-1])
    tokens = len(x)
    return _floats(x), tokens, tokens if tokens == 1 else -(-tokens // 4) * 4


def _laid(of_token: tuple[int, int], lanes: int, tokens: int, padded: int, dtype: torch.dtype) -> np.ndarray:
    """Room for activations in the order of the streams; tokens that are not there are zeros."""
    together = min(padded, 4)
    laid = torch.empty(padded // together, *of_token, together, lanes, dtype=dtype).numpy()  # begins with a cache line
    laid[-1:, ..., tokens % together or together :, :] = 0
    return laid


def linear(x: Tensor, q: QTensor) -> Tensor:
    """x ŵᵀ with float activations: float32 [tokens, out] of x [..., in], float32, float16 or bfloat16."""
    given, tokens, padded = _rows_of(x)
    (out_features, in_features), groups = q.shape, _groups(q)
    if not tokens:
        return torch.empty(0, out_features)
    unit, (block_group, lane_group) = streams.UNIT[q.bits], _geometry(q.bits, in_features, groups)
    laid = _laid((len(block_group), unit), LANES, tokens, padded, torch.float32)
    sums = np.zeros((padded, -(-groups // LANES) * LANES), np.float32)
    run(streams.lay_floats, streams.lay_floats_rows, (given, groups, laid, sums), tokens, serial=tokens < 16)
    table = _table(q.codebook) if isinstance(q, CodebookQTensor) else None
    weight = (q.packed.contiguous().numpy(), _grid(q), table, block_group, lane_group, _STATIC[q.bits])
    y = np.zeros((padded, out_features), np.float32)
    serial = padded * out_features * in_features < SERIAL_WEIGHTS
    if tokens == 1:
        run(weight_only.gemv, weight_only.gemv_rows, (laid, sums, *weight, y), out_features, serial=serial)
    else:
        run(weight_only.gemm, weight_only.gemm_rows, (laid, *weight, y), out_features, weight_only.PANEL_ROWS, serial)
    return torch.from_numpy(y)[:tokens]


def integer_linear(x: Tensor, q: QTensor, input_scale: Tensor | None = None, outliers: Tensor | None = None) -> Tensor:
    """x ŵᵀ with INT8 activations: float32 [tokens, out].

    Args:
        x: float32, float16 or bfloat16 [..., in].
        q: any weight that `fits` and has no codebook.
        input_scale: float32 [], the step of all activations; None: absmax / 127 of each token.
        outliers: bool [in], columns that stay floats; only where a row of `q` has one scale, 8 bits and no zero point.
    """
    given, tokens, padded = _rows_of(x)
    (out_features, in_features), groups = q.shape, _groups(q)
    if not tokens:
        return torch.empty(0, out_features)
    unit, (block_group, lane_group) = streams.UNIT[q.bits], _geometry(q.bits, in_features, groups)
    laid = _laid((len(block_group), unit // 4), 4 * LANES, tokens, padded, torch.int8)
    sums = np.zeros((padded, -(-groups // LANES) * LANES), np.float32)
    scales = np.zeros(padded, np.float32)
    keep, floats = _NO_BYTES, _NO_OUTLIERS
    if outliers is not None:
        columns = outliers.nonzero().flatten()
        values = torch.zeros(len(columns), padded)
        values[:, :tokens] = x.reshape(-1, in_features)[:, columns].T
        keep, floats = (~outliers).view(torch.uint8).numpy(), (columns.numpy(), values.numpy())
    fixed = np.float32(0 if input_scale is None else input_scale)
    quantized = (given, keep, fixed, groups, scales, laid, sums)
    run(streams.quantize, streams.quantize_rows, quantized, tokens, serial=tokens < 16)
    y = np.empty((padded, out_features), np.float32)
    args = (
        laid,
        scales,
        sums,
        floats,
        q.packed.contiguous().numpy(),
        _grid(q),
        block_group,
        lane_group,
        _STATIC[q.bits],
        y,
    )
    serial = padded * out_features * in_features < SERIAL_WEIGHTS
    if tokens == 1:
        run(integer.gemv, integer.gemv_rows, args, out_features, serial=serial)
    else:
        run(integer.gemm, integer.gemm_rows, args, out_features, weight_only.PANEL_ROWS, serial)
    return torch.from_numpy(y)[:tokens]
