"""FP32 to integers and back: the one mapping under every method in qkit.

What
    A range of real numbers [lo, hi] is laid on the integers q_min .. q_max. Two numbers say how: the scale s (the width
    of one step) and the zero point z (the code that stands for 0.0).

Formula (Jacob et al. 2018, arXiv 1712.05877, eq. 1: r = S (q - Z), here r = ŵ, S = s, Z = z)
        q = clamp(round(w / s) + z, q_min, q_max)              quantize
        ŵ = s (q - z)                                          dequantize
    asymmetric    s = (hi - lo) / (q_max - q_min),    z = q_min + round(-lo / s)
    symmetric     s = 2 max(|lo|, |hi|) / (q_max - q_min),    z fixed in the middle: 0 signed, 2^(b-1) unsigned

Choices, and why
    round is half to even, as in IEEE 754 and torch.round: a tie goes up as often as down, so no bias is added.
    The asymmetric range always includes zero: zero is then an exact code (padding and pruned weights stay zero) and z
        fits in b bits. A group whose weights are all far from zero wastes its codes that way; `quantize_offset` lays the
        range on [lo, hi] alone and stores the real number lo instead of z.
    signed and unsigned codes are one grid under two names (q_signed = q_unsigned - 2^(b-1)); qkit stores unsigned ones.
    narrow drops the lowest signed code (-128), so that q and -q both exist: integer kernels like it.
    A scale that is to be stored in 16 bits is rounded *up*, and the codes are computed with the stored scale. The range
        is therefore never cut, and |w - ŵ| <= s/2 holds for every weight, not for most of them.

Trade-off
    One outlier in [lo, hi] widens every step of that range. How many weights share a range (the granularity: a tensor, a
    row, a group of g) buys precision with scales to store; `group_size` says which.
"""

from typing import Literal

import torch
from torch import Tensor

from qkit.numerics.arithmetic import divided

GroupSize = int | Literal["tensor"] | None  # g weights | "tensor" | None: one row
FLOATS = {"float16": torch.float16, "float32": torch.float32}  # what scales are stored in


def check_bits(bits: int) -> None:
    """Refuse anything but a whole number from 2 to 8."""
    if not isinstance(bits, int) or isinstance(bits, bool) or not 2 <= bits <= 8:
        raise ValueError(f"bits={bits!r} is outside 2..8; use a whole number from 2 to 8 (2, 3, 4 and 8 are usual)")


def check_finite(tensor: Tensor, name: str) -> None:
    """Refuse NaN and infinity, naming the tensor and counting both."""
    if not torch.isfinite(tensor).all():
        nan, inf = int(tensor.isnan().sum()), int(tensor.isinf().sum())
        raise ValueError(
            f"{name} holds {nan} NaN and {inf} infinite values of {tensor.numel()}; quantization needs finite numbers: "
            f"repair the checkpoint, or leave this layer out with exclude="
        )


def check_group_size(group_size: GroupSize, in_features: int | None = None, name: str = "the weight") -> None:
    """Refuse a group size that is not a size, or (with `in_features`) that does not divide the row, naming divisors."""
    if group_size is None or group_size == "tensor":
        return
    if not isinstance(group_size, int) or isinstance(group_size, bool) or group_size < 1:
        raise ValueError(
            f"group_size={group_size!r} is not a group size; use a positive whole number, None (one scale a row) "
            f'or "tensor" (one scale for all)'
        )
    if in_features is not None and in_features % group_size:
        divisors = [d for d in range(8, in_features + 1) if in_features % d == 0 and d <= 2 * group_size]
        usual = [
            d for d in divisors if d >= 16 and d & (d - 1) == 0
        ]  # 32, 64, 128: what kernels and formats of others like
        near = sorted({*divisors[-4:], *usual[-1:]})
        raise ValueError(
            f"group_size={group_size} does not divide in_features={in_features} of {name}; "
            f"use a divisor ({', '.join(map(str, near)) or in_features}) or None"
        )


def scale_dtype(name: str) -> torch.dtype:
    """The dtype of scales that a scheme calls by this name."""
    if name not in FLOATS:
        raise ValueError(f'scale_dtype={name!r} is not one of {", ".join(FLOATS)}; use "float16"')
    return FLOATS[name]


def granularity_name(group_size: GroupSize) -> str:
    """How tables and reprs call it: "g128", "per channel" for None, "per tensor"."""
    return {None: "per channel", "tensor": "per tensor"}.get(group_size, f"g{group_size}")


def integer_range(bits: int, signed: bool = False, narrow: bool = False) -> tuple[int, int]:
    """(q_min, q_max) of a b-bit code: unsigned 0 .. 2^b - 1, signed -2^(b-1) .. 2^(b-1) - 1, narrow without -2^(b-1)."""
    check_bits(bits)
    if narrow and not signed:
        raise ValueError("narrow=True drops the lowest signed code and says nothing of unsigned ones; use signed=True")
    half = 2 ** (bits - 1)
    return (-half + narrow, half - 1) if signed else (0, 2 * half - 1)


def grouped(weight: Tensor, group_size: GroupSize, name: str = "the weight") -> Tensor:
    """View `weight` [out, in] so that the last axis is what shares one scale.

    Returns [out, in/g, g] for a group size g, [out, 1, in] for None, [1, 1, out*in] for "tensor".
    """
    out_features, in_features = weight.shape
    check_group_size(group_size, in_features, name)
    if group_size == "tensor":
        return weight.reshape(1, 1, -1)
    return weight.reshape(out_features, -1, in_features if group_size is None else group_size)


def value_range(groups: Tensor) -> tuple[Tensor, Tensor]:
    """(lo, hi) over the last axis, kept as an axis of length 1."""
    return groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)


def round_up(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The smallest numbers of `dtype` that are not below `scale` (float32, positive); float32 comes back unchanged.

    If any scale is outside float16's normal range (6.1e-5 .. 65504), where its precision or its range ends, all of them
    stay float32: a layer of tiny weights must not lose its steps to the format of its scales.
    """
    if dtype == torch.float32:
        return scale
    if dtype != torch.float16:
        raise ValueError(f"scale_dtype={dtype} is not supported; use torch.float16 or torch.float32")
    limits = torch.finfo(torch.float16)
    if scale.numel() and (scale.min() < limits.tiny or scale.max() > limits.max):
        return scale
    stored = scale.to(torch.float16)
    above = (stored.view(torch.int16) + 1).view(torch.float16)  # the next float16: positive floats count up as integers
    return torch.where(stored.float() < scale, above, stored)


def choose_scale(
    lo: Tensor,
    hi: Tensor,
    bits: int,
    symmetric: bool = False,
    signed: bool = False,
    narrow: bool = False,
    scale_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Scale and zero point that lay [lo, hi] on b-bit integers.

    Args:
        lo, hi: float, any one shape: the range of each group. Zero is always included in it.
        bits: 2 .. 8.
        symmetric: the same reach on both sides of zero; the zero point is then fixed.
        signed, narrow: which integers, see `integer_range`.
        scale_dtype: torch.float32, or torch.float16 rounded up, see `round_up`.

    Returns:
        scale in `scale_dtype`, zero point in float32 holding whole numbers q_min .. q_max; both shaped like `lo`.
        A group of zeros gets scale 1, so that nothing is ever divided by zero, and its zero point is the middle code: what
        kernels take off all codes, so that a product with it is exactly 0 and not what two large sums leave of each other.
    """
    q_min, q_max = integer_range(bits, signed, narrow)
    steps = q_max - q_min
    if symmetric:
        hi = torch.maximum(lo.abs(), hi.abs())
        lo = -hi
    else:
        lo, hi = lo.clamp(max=0), hi.clamp(min=0)
    scale = _stored_scale(lo.float(), hi.float(), steps, scale_dtype)
    if symmetric:
        zero_point = torch.full_like(scale, 0 if signed else 2 ** (bits - 1), dtype=torch.float32)
    else:
        zero_point = (q_min + torch.round(-lo.float() / scale.float())).clamp(q_min, q_max)
        zero_point = torch.where(lo == hi, float(q_min + 2 ** (bits - 1)), zero_point)
    return scale, zero_point


def quantize(w: Tensor, scale: Tensor, zero_point: Tensor, q_min: int, q_max: int) -> Tensor:
    """q = clamp(round(w / s) + z, q_min, q_max), as float32 whole numbers shaped like `w` (scale, zero_point broadcast)."""
    return (torch.round(w.float() / scale.float()) + zero_point).clamp(q_min, q_max)


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """ŵ = s (q - z), float32."""
    return scale.float() * (q.float() - zero_point.float())


def choose_offset(lo: Tensor, hi: Tensor, bits: int, scale_dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Scale and offset of a range that need not include zero: ŵ = s q + offset, where code 0 is the offset.

    Both are stored in `scale_dtype`. The offset goes down first, the scale is then taken from it and rounded up, so hi
    stays inside and |w - ŵ| <= s/2 holds here too. (GGUF's Q4_1 blocks have this form.)

    Where all weights of a group are one number, a step is a share of it, because the errors of a product go by the steps; and
    where that number is 0, the middle code stands for it, as in `choose_scale`.
    """
    steps, middle = integer_range(bits)[1], 2 ** (bits - 1)
    zero, alone = (
        (lo == 0) & (hi == 0),
        divided(lo.float().abs(), steps).clamp(min=torch.finfo(torch.float16).tiny),
    )
    alone = torch.where(zero, 1.0, alone)
    scale, offset = _stored_scale(lo.float(), hi.float(), steps, scale_dtype, alone), lo.float()
    if scale.dtype == torch.float16 and offset.abs().max() < 0.99 * torch.finfo(torch.float16).max:
        # One part in 1024 and one smallest step: more than rounding to nearest in float16 can move it back up.
        nearest, below = offset.half(), (offset - offset.abs() * 2**-10 - 2**-24).half()
        offset = torch.where(nearest.float() <= lo, nearest, below)
        scale = _stored_scale(offset.float(), hi.float(), steps, scale_dtype, alone)
    return scale, torch.where(zero, (-middle * scale).to(offset.dtype), offset)


def _stored_scale(lo: Tensor, hi: Tensor, steps: int, dtype: torch.dtype, alone: Tensor | float = 1.0) -> Tensor:
    """(hi - lo) / steps in the dtype it is stored in: never denormal, and `alone` where the range is empty."""
    span = hi - lo
    # The difference of huge numbers overflows
    scale = torch.where(span.isinf(), divided(hi, steps) - divided(lo, steps), divided(span, steps))
    scale = torch.where(scale > 0, scale.clamp(min=torch.finfo(torch.float32).tiny), alone)
    return round_up(scale, dtype)
