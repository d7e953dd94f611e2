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

from qkit.numerics.codebook_qtensor import CodebookQTensor
from qkit.numerics.codebooks import codebook, dynamic_map
from qkit.numerics.qtensor import QTensor
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


def fits(q: QTensor) -> bool:
    """Whether the kernels can read `q`: blocks of a codebook must not run over the ends of rows."""
    out_features, in_features = q.shape
    whole = not isinstance(q, CodebookQTensor) or in_features % q.block_size == 0
    return out_features > 0 and 0 < in_features <= MAX_FEATURES and whole


def fits_integers(q: QTensor) -> bool:
    """Whether the kernels can multiply `q` with INT8 activations: whole numbers, in groups of whole fours."""
    return fits(q) and not isinstance(q, CodebookQTensor) and _groups_are_multiples_of(4, q)


def _groups_are_multiples_of(unit: int, q: QTensor) -> bool:
    groups = _groups(q)
    return groups == 1 or (groups <= MAX_GROUPS and q.shape[1] // groups % unit == 0)


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
    """The scales of `q` as `qkit_kernels.numba.grid` reads them."""
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


def _laid(shape: tuple[int, ...], dtype: torch.dtype, zeros: bool = False) -> np.ndarray:
    """Room that begins with a cache line; zeros where some of the tokens that a kernel takes together are missing."""
    return (torch.zeros if zeros else torch.empty)(shape, dtype=dtype).numpy()


def _are_few(tokens: int, q: QTensor) -> bool:
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


def linear(x: Tensor, q: QTensor) -> Tensor:
    """x ŵᵀ with float activations: float32 [tokens, out] of x [..., in], float32, float16 or bfloat16."""
    (out_features, in_features), groups = q.shape, _groups(q)
    given = _floats(x.reshape(-1, in_features))
    serial = len(given) * out_features * in_features < SERIAL_WEIGHTS
    table = _table(q.codebook) if isinstance(q, CodebookQTensor) else None
    packed, grid, bits = q.packed.contiguous().numpy(), _grid(q), _STATIC[q.bits]
    if _are_few(len(given), q):
        together = _few(len(given))
        n, (block_group, lane_group) = len(together), _geometry(q.bits, in_features, groups)
        laid = _laid((len(block_group), streams.UNIT[q.bits], n, LANES), torch.float32, n > len(given))
        sums, y = np.zeros((-(-groups // LANES), n, LANES), np.float32), torch.empty(n, out_features)
        streams.lay_floats(given, groups, laid, sums)
        args = (laid, sums, packed, grid, table, block_group, lane_group, bits, together, y.numpy())
        run(weight_only.gemv, weight_only.gemv_rows, args, out_features, serial=serial)
        return y[: len(given)]
    y = torch.empty(len(given), out_features)
    if len(given):
        vectors, lanes, count = _tiles(len(given))
        laid = _laid((count, in_features, lanes), torch.float32)
        run(streams.lay_float_tiles, streams.lay_float_tiles_rows, (given, laid), count * lanes, lanes, count == 1)
        share, pieces = tiles.shares(len(given), out_features, lanes, thread_count())
        args = (laid, packed, grid, table, bits, vectors, share, y.numpy())
        run(weight_only.gemm, weight_only.gemm_rows, args, pieces, serial=serial, chunk=1)
    return y


def integer_linear(x: Tensor, q: QTensor, input_scale: Tensor | None = None, outliers: Tensor | None = None) -> Tensor:
    """x ŵᵀ with INT8 activations: float32 [tokens, out].

    Args:
        x: float32, float16 or bfloat16 [..., in].
        q: any weight that `fits_integers`.
        input_scale: float32 [], the step of all activations; None: absmax / 127 of each token.
        outliers: bool [in], columns that stay floats; only where a row of `q` has one scale, 8 bits and no zero point.
    """
    (out_features, in_features), groups = q.shape, _groups(q)
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
        sums, y = np.zeros((-(-groups // LANES), n, LANES), np.float32), torch.empty(n, out_features)
        scales = np.ones(n, np.float32)
        streams.quantize(given, keep, fixed, groups, scales, laid, sums)
        args = (laid, scales, sums, _wild(x, outliers, n), *weight, block_group, lane_group, bits, together, y.numpy())
        run(integer.gemv, integer.gemv_rows, args, out_features, serial=serial)
        return y[: len(given)]
    y = torch.empty(len(given), out_features)
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
