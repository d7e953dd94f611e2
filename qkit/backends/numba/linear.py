"""Quantized linear layers on the CPU: lays out what the Numba kernels read, allocates, launches.

The kernels stand in `qkit_kernels`: `weight_only` (float activations) and `integer` (INT8 activations), each for up to four
tokens (`gemv`: bound by reading the weight) and for many (`gemm`: bound by arithmetic). They read a QTensor's buffers as they are
stored; only the activations are laid out anew.
"""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from qkit.backends import torch as plain
from qkit.dispatch import select
from qkit.numerics.activations import Activations, quantize_activations
from qkit.numerics.qtensor import QTensor
from qkit.numerics.stored import StoredWeight
from qkit_kernels.numba import integer, streams, tiles, weight_only
from qkit_kernels.numba.threads import run, thread_count
from qkit_kernels.numba.vector import LANES, Static

SERIAL_WEIGHTS = 2**17  # times tokens: less is done before a second thread has woken
MAX_FEATURES, MAX_GROUPS = 2**16, 2**11  # a row of features, and one of groups, stand on a thread's stack
_NOTHING = np.zeros((0, 0), np.float32)
_NO_BYTES = np.zeros(0, np.uint8)
_NO_OUTLIERS = (np.zeros(0, np.int64), np.zeros((0, 0, 0), np.float32))
_TOGETHER = {count: Static(count) for count in (1, 2, 4)}
FEW = max(_TOGETHER)  # tokens: more are multiplied in tiles
_STATIC = {bits: Static(bits) for bits in range(2, 9)}


def fits(q: StoredWeight) -> bool:
    """Whether the kernels can read `q`: groups must not run over the ends of rows."""
    out_features, in_features = q.shape
    return out_features > 0 and 0 < in_features <= MAX_FEATURES and q.row_groups is not None


def fits_integers(q: StoredWeight) -> bool:
    """Whether the kernels can multiply `q` with INT8 activations: whole numbers, in groups of whole fours."""
    return fits(q) and q.table() is None and _groups_are_multiples_of(4, q)


def _groups_are_multiples_of(unit: int, q: StoredWeight) -> bool:
    groups = q.row_groups
    return groups == 1 or (groups is not None and groups <= MAX_GROUPS and q.shape[1] // groups % unit == 0)


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
    tensor = (tensor.detach() if tensor.requires_grad else tensor).contiguous()
    if tensor.dtype == torch.float16:
        tensor = tensor.view(torch.uint16)
    elif tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.int16)
    return tensor.numpy()


def _grid(q: StoredWeight) -> tuple[np.ndarray, ...]:
    """What the codes of `q` are worth, as `qkit_kernels.numba.grid` reads it."""
    scales, second, third, *offset = q.grid()
    seconds = _NO_BYTES if second is None else second.contiguous().numpy()
    thirds = _NOTHING if third is None else _floats(third)
    return (_floats(scales), seconds, thirds, *(_floats(part) for part in offset))


def _table(q: StoredWeight) -> np.ndarray | None:
    table = q.table()
    return None if table is None else table.numpy()


def _laid(shape: tuple[int, ...], dtype: torch.dtype, zeros: bool = False) -> np.ndarray:
    """Room that begins with a cache line; zeros where some of the tokens that a kernel takes together are missing."""
    return (torch.zeros if zeros else torch.empty)(shape, dtype=dtype, device="cpu").numpy()


def _are_few(tokens: int, q: StoredWeight) -> bool:
    """Whether a kernel takes the tokens together, a lane of which must hold codes of one group."""
    return 0 < tokens <= FEW and _groups_are_multiples_of(streams.UNIT[q.bits], q)


def _few(tokens: int) -> tuple[None, ...]:
    """How many tokens a kernel takes together: 1, 2 or 4."""
    return _TOGETHER[min(n for n in _TOGETHER if n >= tokens)]


def _tiles(tokens: int) -> tuple[tuple[None, ...], int, int]:
    """The size of a tile in vectors; in tokens; and how many tiles."""
    vectors = tiles.tile(tokens)
    lanes = LANES * len(vectors)
    return vectors, lanes, -(-tokens // lanes)


def weight_only_linear(x: Tensor, q: StoredWeight) -> Tensor:
    """x ŵᵀ with float activations: float32 [tokens, out] of x [..., in], float32, float16 or bfloat16."""
    (out_features, in_features), groups = q.shape, q.row_groups
    given = _floats(x.reshape(-1, in_features))
    serial = len(given) * out_features * in_features < SERIAL_WEIGHTS
    table = _table(q)
    packed, grid, bits = q.packed.contiguous().numpy(), _grid(q), _STATIC[q.bits]
    if _are_few(len(given), q):
        together = _few(len(given))
        n, (block_group, lane_group) = len(together), _geometry(q.bits, in_features, groups)
        laid = _laid((len(block_group), streams.UNIT[q.bits], n, LANES), torch.float32, n > len(given))
        sums, y = (
            np.zeros((-(-groups // LANES), n, LANES), np.float32),
            torch.empty(n, out_features, dtype=torch.float32, device="cpu"),
        )
        streams.lay_floats(given, groups, laid, sums)
        args = (laid, sums, packed, grid, table, block_group, lane_group, bits, together, y.numpy())
        run(weight_only.gemv, weight_only.gemv_rows, args, out_features, serial=serial)
        return y[: len(given)]
    y = torch.empty(len(given), out_features, dtype=torch.float32, device="cpu")
    if len(given):
        vectors, lanes, count = _tiles(len(given))
        laid = _laid((count, in_features, lanes), torch.float32)
        run(streams.lay_float_tiles, streams.lay_float_tiles_rows, (given, laid), count * lanes, lanes, count == 1)
        share, pieces = tiles.shares(len(given), out_features, lanes, thread_count())
        args = (laid, packed, grid, table, bits, vectors, share, y.numpy())
        run(weight_only.gemm, weight_only.gemm_rows, args, pieces, serial=serial, chunk=1)
    return y


def integer_linear(
    x: Tensor, q: StoredWeight, input_scale: Tensor | None = None, outliers: Tensor | None = None
) -> Tensor:
    """x ŵᵀ with INT8 activations: float32 [tokens, out].

    Args:
        x: float32, float16 or bfloat16 [..., in].
        q: any weight that `fits_integers`.
        input_scale: float32 [], the step of all activations; None: absmax / 127 of each token.
        outliers: bool [in], columns that stay floats; only where a row of `q` has one scale, 8 bits and no zero point.
    """
    (out_features, in_features), groups = q.shape, q.row_groups
    given = _floats(x.reshape(-1, in_features))
    serial = len(given) * out_features * in_features < SERIAL_WEIGHTS
    fixed = np.float32(0 if input_scale is None else input_scale)
    keep = _NO_BYTES if outliers is None else (~outliers).view(torch.uint8).numpy()
    weight = (q.packed.contiguous().numpy(), _grid(q))
    bits = _STATIC[q.bits]
    if _are_few(len(given), q):
        together = _few(len(given))
        n, (block_group, lane_group) = len(together), _geometry(q.bits, in_features, groups)
        laid = _laid((len(block_group), streams.UNIT[q.bits] // 4, n, 4 * LANES), torch.int8, n > len(given))
        sums, y = (
            np.zeros((-(-groups // LANES), n, LANES), np.float32),
            torch.empty(n, out_features, dtype=torch.float32, device="cpu"),
        )
        scales = np.ones(n, np.float32)
        streams.quantize(given, keep, fixed, groups, scales, laid, sums)
        args = (laid, scales, sums, _wild(x, outliers, n), *weight, block_group, lane_group, bits, together, y.numpy())
        run(integer.gemv, integer.gemv_rows, args, out_features, serial=serial)
        return y[: len(given)]
    y = torch.empty(len(given), out_features, dtype=torch.float32, device="cpu")
    if len(given):
        vectors, lanes, count = _tiles(len(given))
        laid = _laid((count, -(-in_features // 4), lanes, 4), torch.int8)
        sums, scales = np.empty((count, groups, lanes), np.float32), np.empty(count * lanes, np.float32)
        quantized = (given, keep, fixed, groups, scales, laid, sums)
        run(streams.quantize_tiles, streams.quantize_tiles_rows, quantized, count * lanes, lanes, count == 1)
        share, pieces = tiles.shares(len(given), out_features, lanes, thread_count())
        args = (laid, scales, sums, _wild(x, outliers, lanes), *weight, bits, vectors, share, y.numpy())
        run(integer.gemm, integer.gemm_rows, args, pieces, serial=serial, chunk=1)
    return y


def _wild(x: Tensor, outliers: Tensor | None, lanes: int) -> tuple[np.ndarray, np.ndarray]:
    """The columns that stay floats, int64 [n], and what they hold, float32 [tiles, n, lanes]."""
    if outliers is None:
        return _NO_OUTLIERS
    columns = outliers.nonzero().flatten()
    found = x.reshape(-1, x.shape[-1])[:, columns].float()
    found = F.pad(found, (0, 0, 0, -len(found) % lanes)).reshape(-1, lanes, len(columns))
    return columns.numpy(), found.transpose(1, 2).contiguous().numpy()


def linear(x: Tensor, q: StoredWeight, activations: Activations | None) -> Tensor:
    """`qkit.ops.linear` without its checks, bias and gradient."""
    if x.dtype == torch.float64 or not fits(q):  # for what has no kernel the weight becomes floats
        x = x if activations is None else quantize_activations(x)
        return F.linear(x, select(f"dequantize_{q.kind}", None, "cpu")(q).to(x.dtype))
    if activations is None:
        y = weight_only_linear(x, q)
    elif fits_integers(q):
        y = integer_linear(x, q)
    else:  # a table has no integers to multiply
        y = weight_only_linear(quantize_activations(x), q)
    return y.to(x.dtype).reshape(*x.shape[:-1], q.shape[0])


def int8_linear(
    x: Tensor, q: QTensor, input_scale: Tensor | None, threshold: float, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """`qkit.ops.int8_linear` without its checks and gradient, [tokens, out] in `dtype`."""
    if not fits_integers(q):
        return plain.int8_linear(x, q, input_scale, threshold, bias, dtype)
    outliers = plain.some_outliers(x, threshold)
    y = integer_linear(x.float() if x.dtype == torch.float64 else x, q, input_scale, outliers)
    return (y if bias is None else y + bias.float()).to(dtype)
