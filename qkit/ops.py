"""The operations that a quantized model runs, each with several backends: check here, choose here, then launch.

`torch` is the specification: plain, slow, everywhere. `numba` is for CPUs. An explicit choice must work or say why it
cannot; the automatic one takes the first backend of `ORDER` that can run where the tensors are.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from qkit.numerics.codebook_qtensor import CodebookQTensor
from qkit.numerics.mapping import choose_scale, integer_range, quantize
from qkit.numerics.mapping import dequantize as dequantize_codes
from qkit.numerics.qtensor import QTensor

ORDER = ("numba", "torch")


def _dequantize_numba(q: QTensor) -> Tensor:
    from qkit_kernels.numba.dequantize import (
        dequantize as kernel,  # compiled when first used, not when qkit is imported
    )

    rows, groups = q.shape[0], q.scales.shape[1]
    offsets = torch.zeros(()) if q.offsets is None else q.offsets.float()
    spread = [t.expand(rows, groups).contiguous().numpy() for t in (q.scales.float(), q.zeros(), offsets)]
    out = torch.empty(q.shape)
    kernel(q.packed.numpy(), *spread, q.bits, out.numpy())
    return out


def _gptq_columns_numba(w: Tensor, upper: Tensor, group: Tensor, scale: Tensor, zero: Tensor, q_max: int) -> Tensor:
    from qkit_kernels.numba import gptq, threads

    codes = torch.empty(w.shape, dtype=torch.uint8)
    blocks = F.pad(upper, (0, -len(upper) % gptq.BLOCK)).reshape(len(upper), -1, gptq.BLOCK).transpose(0, 1)
    arrays = (w.clone(memory_format=torch.contiguous_format), blocks.contiguous(), group)
    grids = (scale.float().contiguous(), zero.float().contiguous())
    args = (*(t.numpy() for t in (*arrays, *grids)), np.float32(q_max), codes.numpy())
    threads.run(gptq.columns, gptq.columns_rows, args, len(w), gptq.TILE)
    return codes


def _round_trip_torch(groups: Tensor, scale: Tensor, zero: Tensor, q_max: int) -> Tensor:
    return dequantize_codes(quantize(groups, scale, zero, 0, q_max), scale, zero)


def _round_trip_numba(groups: Tensor, scale: Tensor, zero: Tensor, q_max: int) -> Tensor:
    from qkit_kernels.numba import rounding, threads

    w, out = groups.float().contiguous(), torch.empty(groups.shape)
    rows = w.shape[:-1].numel()
    grids = [t.float().expand(*groups.shape[:-1], 1).reshape(-1).numpy() for t in (scale, zero)]
    args = (w.reshape(rows, -1).numpy(), *grids, np.float32(q_max), out.reshape(rows, -1).numpy())
    threads.run(rounding.round_trip, rounding.round_trip_rows, args, rows, serial=w.numel() < 2**16)
    return out


def _count_magnitudes_torch(x: Tensor, bins: int, shift: int, lowest: int) -> Tensor:
    places = (x.abs().view(torch.int32) >> shift) - lowest
    return torch.bincount(places.clamp(0, bins - 1).flatten(), minlength=bins)


def _count_magnitudes_numba(x: Tensor, bins: int, shift: int, lowest: int) -> Tensor:
    from qkit_kernels.numba import histogram, threads

    parts = min(len(x), threads.CHUNKS_PER_THREAD * threads.thread_count())
    counts = np.zeros((parts, bins), np.int64)
    args = (x.contiguous().view(torch.int32).numpy(), shift, lowest, counts)
    threads.run(histogram.count, histogram.count_rows, args, parts, serial=x.numel() < 2**16)
    return torch.from_numpy(counts.sum(0))


def _linear_torch(x: Tensor, q: QTensor, activations: str | None) -> Tensor:
    x = quantize_activations(x) if activations == "int8" else x
    return F.linear(x, dequantize(q, "torch").to(x.dtype))


def _linear_numba(x: Tensor, q: QTensor, activations: str | None) -> Tensor:
    from qkit.backends import numba as cpu

    if x.dtype == torch.float64 or (x.requires_grad and torch.is_grad_enabled()) or not cpu.fits(q):
        x = quantize_activations(x) if activations == "int8" else x
        return F.linear(x, dequantize(q).to(x.dtype))  # the weight as floats: for gradients, and for what has no kernel
    if activations is None:
        y = cpu.linear(x, q)
    elif cpu.fits_integers(q):
        y = cpu.integer_linear(x, q)
    else:  # a table has no integers to multiply
        y = cpu.linear(quantize_activations(x), q)
    return y.to(x.dtype).reshape(*x.shape[:-1], q.shape[0])


def _int8_linear_torch(x: Tensor, q: QTensor, input_scale: Tensor | None, outliers: Tensor | None) -> Tensor:
    tokens, weight, weight_scales = x.float(), int8_codes(q), q.scales.float().reshape(1, -1)
    floats = 0.0
    if outliers is not None:
        floats = tokens[:, outliers] @ (weight[:, outliers].float() * weight_scales.T).T
        tokens = tokens.masked_fill(outliers, 0)
    codes, scales = quantize_activations_int8(tokens, input_scale)
    return int8_matmul(codes, weight).float() * scales * weight_scales + floats


def _int8_linear_numba(x: Tensor, q: QTensor, input_scale: Tensor | None, outliers: Tensor | None) -> Tensor:
    from qkit.backends import numba as cpu

    x = x.float() if x.dtype == torch.float64 else x
    run = cpu.integer_linear if cpu.fits_integers(q) else _int8_linear_torch
    return run(x, q, input_scale, outliers)


BACKENDS: dict[tuple[str, str], Callable] = {
    ("dequantize", "torch"): QTensor.dequantize,
    ("dequantize", "numba"): _dequantize_numba,
    ("dequantize_codebook", "torch"): CodebookQTensor.dequantize,
    ("gptq", "numba"): _gptq_columns_numba,
    ("round_trip", "torch"): _round_trip_torch,
    ("round_trip", "numba"): _round_trip_numba,
    ("count_magnitudes", "torch"): _count_magnitudes_torch,
    ("count_magnitudes", "numba"): _count_magnitudes_numba,
    ("linear", "torch"): _linear_torch,
    ("linear", "numba"): _linear_numba,
    ("int8_linear", "torch"): _int8_linear_torch,
    ("int8_linear", "numba"): _int8_linear_numba,
}
NUMBA_MODULES = {
    "dequantize": "qkit_kernels.numba.dequantize",
    "gptq": "qkit_kernels.numba.gptq",
    "round_trip": "qkit_kernels.numba.rounding",
    "count_magnitudes": "qkit_kernels.numba.histogram",
    "linear": "qkit.backends.numba",
    "int8_linear": "qkit.backends.numba",
}


@cache
def _why_not_importable(module: str) -> str | None:
    try:
        import_module(module)
    except (ImportError, RuntimeError) as error:  # not installed; or Numba finds no folder to keep compiled code in
        if getattr(error, "name", None) and error.name.startswith(("qkit.", "qkit_kernels.")):
            raise  # a mistake of ours is not an older machine
        return str(error)
    return None


def _obstacle(op: str, backend: str, device: torch.device) -> str | None:
    """Why `backend` cannot run `op` on `device`, or None when it can."""
    if (op, backend) not in BACKENDS:
        have = ", ".join(name for known, name in BACKENDS if known == op)
        return f"there is no such kernel; use one of: {have}, or None"
    if backend == "numba" and device.type != "cpu":
        return f'it runs on the CPU and the weight is on {device}; use backend="torch" or move the weight'
    if backend == "numba" and (why := _why_not_importable(NUMBA_MODULES[op])):
        return f'its kernel cannot be imported ({why}); pip install qkit, set NUMBA_CACHE_DIR, or use backend="torch"'
    return None


def select(op: str, backend: str | None, device: torch.device) -> Callable:
    """The function for `op`: of the named backend, or of the first in `ORDER` that can run on `device`."""
    if backend is not None:
        if obstacle := _obstacle(op, backend, device):
            raise ValueError(f"backend={backend!r} cannot be used: {obstacle}")
        return BACKENDS[op, backend]
    return next(BACKENDS[op, name] for name in ORDER if _obstacle(op, name, device) is None)


def fast(op: str, device: torch.device) -> Callable | None:
    """The first backend that can run `op` on `device`; None where only the caller's plain version can."""
    return next((BACKENDS[op, name] for name in ORDER if _obstacle(op, name, device) is None), None)


def dequantize(q: QTensor, backend: str | None = None) -> Tensor:
    """ŵ, float32 [out, in]; every backend returns the same bits."""
    op = "dequantize_codebook" if isinstance(q, CodebookQTensor) else "dequantize"
    return select(op, backend, q.packed.device)(q)


@torch.no_grad()
def round_trip(groups: Tensor, scale: Tensor, zero: Tensor, bits: int, backend: str | None = None) -> Tensor:
    """ŵ = s (clamp(round(w / s) + z, 0, 2^b - 1) - z), float32; every backend returns the same bits.

    Args:
        groups: float [..., g].
        scale, zero: float [..., 1].
    """
    return select("round_trip", backend, groups.device)(groups, scale, zero, integer_range(bits)[1])


@torch.no_grad()
def count_magnitudes(x: Tensor, bins: int, shift: int, lowest: int, backend: str | None = None) -> Tensor:
    """How many |x| lie in each bin, int64 [bins]; every backend returns the same.

    A float32 without its sign, seen as an integer and shifted right by `shift`, less `lowest`, is the number of its bin; what
    lies outside counts in the first or the last.

    Args:
        x: float32 [tokens, features].
    """
    return select("count_magnitudes", backend, x.device)(x, bins, shift, lowest)


def quantize_activations(x: Tensor) -> Tensor:
    """Fake INT8: each token (row of the last axis) to 255 symmetric levels -127 .. 127 of its own absmax, and back."""
    reach = x.detach().float().abs().amax(-1, keepdim=True)
    scale, zero = choose_scale(-reach, reach, bits=8, symmetric=True, signed=True, narrow=True)
    return (quantize(x, scale, zero, *integer_range(8, signed=True, narrow=True)) * scale).to(x.dtype)


def linear(
    x: Tensor, q: QTensor, bias: Tensor | None = None, backend: str | None = None, activations: str | None = None
) -> Tensor:
    """x ŵᵀ + bias with a quantized weight.

    "torch" makes the weight floats and multiplies in the dtype of x. "numba" multiplies with the codes as they are stored,
    in float32 whatever x is; float64 and inputs that need a gradient take torch's way.

    Args:
        x: float [..., in].
        q: the weight, [out, in].
        bias: [out] or None.
        backend: "torch", "numba" or None (chosen by device).
        activations: None, or "int8" to quantize each token of `x` to INT8 on the fly, which changes the result.

    Returns:
        [..., out], in the dtype of `x`.
    """
    _check_linear(x, q, bias)
    if activations not in (None, "int8"):
        raise ValueError(f'activations={activations!r} is not known; use None or "int8"')
    y = select("linear", backend, q.packed.device)(x, q, activations)
    return y if bias is None else y + bias.to(x.dtype)


def _check_linear(x: Tensor, q: QTensor, bias: Tensor | None) -> None:
    if not isinstance(q, QTensor):
        raise TypeError(f"the weight is a {type(q).__name__}, linear takes a QTensor; make one with quantize_tensor")
    out_features, in_features = q.shape
    if x.dim() == 0 or x.shape[-1] != in_features:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, the weight takes [..., {in_features}]; check which layer this is"
        )
    if not x.is_floating_point():
        raise ValueError(f"x is {x.dtype}, linear takes floats; call x.float() first")
    if bias is not None and tuple(bias.shape) != (out_features,):
        raise ValueError(
            f"bias has shape {tuple(bias.shape)}, the weight has {out_features} outputs; give [{out_features}]"
        )


# ---- INT8 times INT8: the activations are integers too, and so is the sum

INT8_MAX_FEATURES = 2**17  # so many products of up to 128 * 127 stay inside int32


def check_int8_weight(q: QTensor) -> None:
    """Refuse a weight that integer arithmetic cannot take: it must be 8 bits, symmetric, one scale a row (or for all)."""
    if q.bits != 8 or not q.symmetric or q.scales.shape[1] != 1:
        raise ValueError(f"INT8 arithmetic takes 8 bits, symmetric, one scale a row, this is {q!r}; use int8_rows")
    if q.shape[1] > INT8_MAX_FEATURES:
        raise ValueError(f"in_features={q.shape[1]} may overflow int32; the limit is {INT8_MAX_FEATURES}: use QLinear")


def quantize_activations_int8(x: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """INT8 codes -127 .. 127 of activations, and what one step of them is worth.

    Args:
        x: float [tokens, in].
        scale: float32 [], the same for all tokens, and larger values are clamped; None: absmax / 127 of each token.

    Returns:
        codes int8 [tokens, in], scales float32 [tokens, 1]. int8 has no NaN, so a token that holds NaN gets the scale NaN
        and comes out of a product as NaN; so does one that holds infinity, unless `scale` is given, which clamps it.
    """
    x = x.float()
    if scale is None:
        reach = x.abs().amax(-1, keepdim=True)
        scales, _ = choose_scale(-reach, reach, bits=8, symmetric=True, signed=True, narrow=True)
        bad = ~reach.isfinite()
    else:
        bad = x.isnan().any(-1, keepdim=True)
        scales = scale.float().expand(bad.shape)
    codes = torch.round(x / scales).clamp(-127, 127).nan_to_num(0).to(torch.int8)
    return codes, scales.masked_fill(bad, torch.nan)


def int8_codes(q: QTensor) -> Tensor:
    """The codes of an 8-bit symmetric weight as int8 [out, in]: q - 128."""
    return (q.packed ^ 128).view(torch.int8)


def int8_matmul(a: Tensor, b: Tensor) -> Tensor:
    """a bᵀ exactly: int8 [M, K] and int8 [N, K] to int32 [M, N], for any M, N and K up to `INT8_MAX_FEATURES`.

    torch._int_mm returns wrong sums on the CPU for K = 1 (torch 2.13), and on CUDA takes no M below 17 and no N or K that
    is not a multiple of 8: zeros fill up what is missing.
    """
    m, n = len(a), len(b)
    columns = -a.shape[1] % 8
    rows_a, rows_b = (max(17 - m, 0), -n % 8) if a.is_cuda else (0, 0)
    a = F.pad(a, (0, columns, 0, rows_a)) if columns or rows_a else a
    b = F.pad(b, (0, columns, 0, rows_b)) if columns or rows_b else b
    return torch._int_mm(a, b.T)[:m, :n]


def outlier_columns(x: Tensor, threshold: float) -> Tensor:
    """Which input columns hold any |x| >= threshold in any token: bool [in] of x [..., in]."""
    return (x.abs() >= threshold).reshape(-1, x.shape[-1]).any(0)


@torch.no_grad()
def int8_linear(
    x: Tensor,
    q: QTensor,
    bias: Tensor | None = None,
    input_scale: Tensor | None = None,
    threshold: float = 0.0,
    backend: str | None = None,
) -> Tensor:
    """x ŵᵀ + bias in integers: y[t, o] = s_x[t] s_w[o] sum_k (x codes)[t, k] (w codes)[o, k] + bias[o].

    The sum is exact in int32; scales, outliers and bias are float32. No gradient flows: rounding has none.

    Args:
        x: float [..., in].
        q: 8 bits, symmetric, one scale a row (`qkit.methods.bitsandbytes.int8_rows`).
        bias: [out] or None.
        input_scale: float32 [], a fixed step of the activations; None: absmax / 127 of each token.
        threshold: above 0, LLM.int8() (2208.07339, eq. 8): columns of x with any |x| >= threshold are multiplied as
            floats with the dequantized weight, and only the others are quantized.
        backend: "torch", "numba" or None (chosen by device).

    Returns:
        [..., out], in the dtype of `x`.
    """
    _check_linear(x, q, bias)
    check_int8_weight(q)
    tokens = x.reshape(-1, q.shape[1])
    outliers = outlier_columns(tokens, threshold) if threshold else None
    if outliers is not None and not outliers.any():
        outliers = None
    y = select("int8_linear", backend, q.packed.device)(tokens, q, input_scale, outliers)
    if bias is not None:
        y = y + bias.float()
    return y.to(x.dtype).reshape(*x.shape[:-1], q.shape[0])
