"""Codes and grids on the CPU: packing, dequantizing, rounding, GPTQ's columns, the calibration histogram."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from qkit.backends import torch as plain
from qkit.numerics.packing import packed_length
from qkit.numerics.qtensor import QTensor
from qkit_kernels.numba import dequantize as dequantizing
from qkit_kernels.numba import gptq, histogram, packing, rounding, threads

SERIAL = 2**16  # numbers: less is done before a second thread has woken


def pack(codes: Tensor, bits: int) -> Tensor:
    """`qkit.numerics.packing.pack` without its checks."""
    return _by_rows(packing.pack, packing.pack_rows, codes, bits, packed_length(codes.shape[1], bits))


def unpack(packed: Tensor, bits: int, length: int) -> Tensor:
    """`qkit.numerics.packing.unpack` without its checks."""
    return _by_rows(packing.unpack, packing.unpack_rows, packed, bits, length)


def _by_rows(kernel, kernel_rows, source: Tensor, bits: int, length: int) -> Tensor:
    out = torch.empty(len(source), length, dtype=torch.uint8, device="cpu")
    args = (source.to(torch.uint8).contiguous().numpy(), bits, out.numpy())
    threads.run(kernel, kernel_rows, args, len(source), serial=source.numel() < SERIAL)
    return out


def dequantize(q: QTensor) -> Tensor:
    """ŵ of affine codes, float32 [out, in]."""
    rows, groups = q.shape[0], q.row_groups
    offsets = torch.zeros((), dtype=torch.float32, device="cpu") if q.offsets is None else q.offsets.float()
    spread = [t.expand(rows, groups).contiguous().numpy() for t in (q.scales.float(), q.zeros(), offsets)]
    out = torch.empty(q.shape, dtype=torch.float32, device="cpu")
    dequantizing.dequantize(q.packed.numpy(), *spread, q.bits, out.numpy())
    return out


def round_trip(groups: Tensor, scale: Tensor, zero: Tensor, q_max: int) -> Tensor:
    """`qkit.ops.round_trip` of float [..., g]."""
    w, out = groups.float().contiguous(), torch.empty(groups.shape, dtype=torch.float32, device="cpu")
    rows = w.shape[:-1].numel()
    grids = [t.float().expand(*groups.shape[:-1], 1).reshape(-1).numpy() for t in (scale, zero)]
    args = (w.reshape(rows, -1).numpy(), *grids, np.float32(q_max), out.reshape(rows, -1).numpy())
    threads.run(rounding.round_trip, rounding.round_trip_rows, args, rows, serial=w.numel() < SERIAL)
    return out


def count_magnitudes(x: Tensor, bins: int, shift: int, lowest: int) -> Tensor:
    """`qkit.ops.count_magnitudes` of float32 [tokens, features]."""
    parts = min(len(x), threads.CHUNKS_PER_THREAD * threads.thread_count())
    counts = np.zeros((parts, bins), np.int64)
    args = (x.contiguous().view(torch.int32).numpy(), shift, lowest, counts)
    threads.run(histogram.count, histogram.count_rows, args, parts, serial=x.numel() < SERIAL)
    return torch.from_numpy(counts.sum(0))


def gptq_columns(w: Tensor, upper: Tensor, group: Tensor, scale: Tensor, zero: Tensor, q_max: int) -> Tensor:
    """`qkit.ops.gptq_columns` of float64 [out, in]."""
    return _columns(w, upper, group, scale, zero, q_max)[0]


def _columns(w: Tensor, upper: Tensor, group: Tensor, scale: Tensor, zero: Tensor, q_max: int) -> tuple[Tensor, Tensor]:
    """Codes uint8 [out, in], and the errors e = (w_j - ŵ_j) / U_jj, float64 [out, in]."""
    codes, errors = (
        torch.empty(w.shape, dtype=torch.uint8, device="cpu"),
        w.clone(memory_format=torch.contiguous_format),
    )
    blocks = F.pad(upper, (0, -len(upper) % gptq.BLOCK)).reshape(len(upper), -1, gptq.BLOCK).transpose(0, 1)
    arrays = (errors, blocks.contiguous(), group, scale.float().contiguous(), zero.float().contiguous())
    args = (*(t.numpy() for t in arrays), np.float32(q_max), codes.numpy())
    threads.run(gptq.columns, gptq.columns_rows, args, len(w), gptq.TILE)
    return codes, errors


def gptq_moving_columns(
    w: Tensor, upper: Tensor, group: Tensor, scale: Tensor, zero: Tensor, q_max: int, regrid: plain.Regrid
) -> Tensor:
    """`qkit.ops.gptq_columns` of groups whose grid is taken on the way: between batches as in torch, inside one by the kernel."""
    return plain.gptq_columns(w, upper, group, scale, zero, q_max, regrid, round_block)


def round_block(w: Tensor, upper: Tensor, scale: Tensor, zero: Tensor, q_max: int) -> tuple[Tensor, Tensor]:
    """`qkit.backends.torch.round_columns`: a batch is a layer whose every column has a grid of its own."""
    return _columns(w, upper, torch.arange(w.shape[1], device="cpu"), scale, zero, q_max)
