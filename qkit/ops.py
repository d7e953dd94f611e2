"""The operations that a quantized model runs, each with several backends: check here, choose here, then launch.

`torch` is the specification: plain, slow, everywhere. `numba` is for CPUs. An explicit choice must work or say why it
cannot; the automatic one takes the first backend of `ORDER` that can run where the tensors are.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor

from qkit.mapping import choose_scale, integer_range, quantize
from qkit.qtensor import QTensor

ORDER = ("numba", "torch")


def _dequantize_numba(q: QTensor) -> Tensor:
    from qkit_kernels.dequantize import dequantize as kernel  # compiled when first used, not when qkit is imported

    rows, groups = q.shape[0], q.scales.shape[1]
    offsets = torch.zeros(()) if q.offsets is None else q.offsets.float()
    spread = [t.expand(rows, groups).contiguous().numpy() for t in (q.scales.float(), q.zeros(), offsets)]
    out = torch.empty(q.shape)
    kernel(q.packed.numpy(), *spread, q.bits, out.numpy())
    return out


BACKENDS: dict[tuple[str, str], Callable] = {
    ("dequantize", "torch"): QTensor.dequantize,
    ("dequantize", "numba"): _dequantize_numba,
}


@cache
def _why_not_importable(module: str) -> str | None:
    try:
        import_module(module)
    except (ImportError, RuntimeError) as error:  # not installed; or Numba finds no folder to keep compiled code in
        return str(error)
    return None


def _obstacle(op: str, backend: str, device: torch.device) -> str | None:
    """Why `backend` cannot run `op` on `device`, or None when it can."""
    if (op, backend) not in BACKENDS:
        have = ", ".join(name for known, name in BACKENDS if known == op)
        return f"there is no such kernel; use one of: {have}, or None"
    if backend == "numba" and device.type != "cpu":
        return f'it runs on the CPU and the weight is on {device}; use backend="torch" or move the weight'
    if backend == "numba" and (why := _why_not_importable(f"qkit_kernels.{op}")):
        return f'its kernel cannot be imported ({why}); pip install qkit, set NUMBA_CACHE_DIR, or use backend="torch"'
    return None


def select(op: str, backend: str | None, device: torch.device) -> Callable:
    """The function for `op`: of the named backend, or of the first in `ORDER` that can run on `device`."""
    if backend is not None:
        if obstacle := _obstacle(op, backend, device):
            raise ValueError(f"backend={backend!r} cannot be used: {obstacle}")
        return BACKENDS[op, backend]
    return next(BACKENDS[op, name] for name in ORDER if _obstacle(op, name, device) is None)


def dequantize(q: QTensor, backend: str | None = None) -> Tensor:
    """ŵ, float32 [out, in]; every backend returns the same bits."""
    return select("dequantize", backend, q.packed.device)(q)


def quantize_activations(x: Tensor) -> Tensor:
    """Fake INT8: each token (row of the last axis) to 255 symmetric levels -127 .. 127 of its own absmax, and back."""
    reach = x.detach().float().abs().amax(-1, keepdim=True)
    scale, zero = choose_scale(-reach, reach, bits=8, symmetric=True, signed=True, narrow=True)
    return (quantize(x, scale, zero, *integer_range(8, signed=True, narrow=True)) * scale).to(x.dtype)


def linear(
    x: Tensor, q: QTensor, bias: Tensor | None = None, backend: str | None = None, activations: str | None = None
) -> Tensor:
    """x ŵᵀ + bias with a quantized weight.

    Args:
        x: float [..., in]; the product is taken in its dtype.
        q: the weight, [out, in].
        bias: [out] or None.
        backend: "torch", "numba" or None (chosen by device).
        activations: None, or "int8" to quantize each token of `x` to INT8 on the fly, which changes the result.

    Returns:
        [..., out], in the dtype of `x`.
    """
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
    if activations not in (None, "int8"):
        raise ValueError(f'activations={activations!r} is not known; use None or "int8"')
    weight = dequantize(q, backend).to(x.dtype)
    if activations == "int8":
        x = quantize_activations(x)
    return F.linear(x, weight, None if bias is None else bias.to(x.dtype))
