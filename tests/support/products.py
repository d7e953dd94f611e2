"""What x ŵᵀ has to be, in float64, and how far a kernel that sums in float32 may be from it.

Two kinds of numbers are multiplied. *Whole* ones are small multiples of one half: float32 adds them up exactly, in whatever
order, so that a kernel must return the very same number and a single wrong code shows. *Real* ones are what a model has;
there the roundings are counted.
"""

import torch
from torch import Tensor

from qkit.numerics.codebook_qtensor import CodebookQTensor
from qkit.numerics.qtensor import QTensor
from qkit.ops import quantize_activations_int8

KINDS = ("symmetric", "zero points", "offsets")
ROUNDING = 2.0**-24  # the largest relative error of a number rounded to float32


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def whole(*shape: int, seed: int = 0) -> Tensor:
    """Whole numbers -4 .. 4, as float32."""
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(seed)).float()


def whole_codes(tokens: int, features: int, seed: int = 0) -> Tensor:
    """The same, but for one 127 or -127 in each token: its INT8 scale is 1 then, and its codes are its numbers."""
    x, token = whole(tokens, features, seed=seed), torch.arange(tokens)
    x[token, token * 7 % features] = 127 - 254.0 * (token % 2)
    return x


def weight(
    bits: int,
    rows: int,
    features: int,
    group_size: int | str | None = None,
    kind: str = "symmetric",
    dtype: torch.dtype = torch.float16,
    real: bool = False,
    seed: int = 0,
) -> QTensor:
    """A weight of random codes and zero points; scales and offsets are multiples of one half, or real numbers."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1, 1) if group_size == "tensor" else (rows, 1 if group_size is None else features // group_size)
    codes = torch.randint(0, 2**bits, (rows, features), generator=generator)
    zero_points = torch.randint(0, 2**bits, shape, generator=generator)
    scales = torch.randint(1, 3, shape, generator=generator) / 2
    offsets = torch.randint(-(2**bits), 2**bits, shape, generator=generator) / 2
    if real:
        scales, offsets = (part + torch.rand(shape, generator=generator) for part in (scales, offsets))
    return QTensor.from_codes(
        codes,
        scales.to(dtype),
        bits,
        zero_points if kind == "zero points" else None,
        offsets.to(dtype) if kind == "offsets" else None,
    )


def values(q: QTensor) -> tuple[Tensor, Tensor]:
    """ŵ from the stored parts, and the sizes of what is added up instead of it; both float64 [out, in].

    A kernel multiplies x with s q or s (q - 2^(b-1)), and with the rest of ŵ apart: each is larger than ŵ itself.
    """
    if isinstance(q, CodebookQTensor):
        found = q.dequantize().double()  # a number of the table times an absmax, rounded once
        return found, found.abs()
    scales, zeros, offsets = (
        part.double().repeat_interleave(q.shape[1] // part.shape[1], 1).expand(q.shape)
        for part in (q.scales, q.zeros(), torch.zeros(1, 1) if q.offsets is None else q.offsets)
    )
    codes = q.codes().double()
    found = scales * (codes - zeros) + offsets
    products = [scales * (codes - middle) for middle in (0, 2 ** (q.bits - 1))]
    return found, torch.maximum(*(product.abs() + (found - product).abs() for product in products))


def exact(x: Tensor, q: QTensor) -> Tensor:
    """x ŵᵀ of whole numbers, float64 [tokens, out]: every sum of products is a multiple of 1/2 that float32 holds."""
    found, sizes = values(q)
    assert all(largest < 2**23 for largest in (x.double().abs() @ sizes.T).flatten().tolist())
    return x.double() @ found.T


def off(found: Tensor, x: Tensor, q: QTensor, scales: Tensor | float = 1.0) -> float:
    """The largest error of x ŵᵀ times scales, as a share of what its roundings can make; above 1 something is wrong.

    Up to four tokens: sixteen lanes add up K / 16 products each, block by block, and are added up themselves: no term passes more
    than K / 8 + 32 roundings. More: a stretch of up to 512 products is added up one by one, and the stretches: 512 + K / 512,
    and a few for the weight and its scale. Where a group has a shift, that comes in with the sum of the group's activations:
    at most as many roundings more as a group has weights. A result in 16 bits is rounded once more.
    """
    weights, sizes = values(q)
    features = q.shape[1]
    shifted = any(getattr(q, part, None) is not None for part in ("zero_points", "offsets"))
    one_by_one = min(features, 512) + features // 512 + 8
    roundings = features // 8 + 32 if x[..., 0].numel() <= 4 else one_by_one
    roundings += features // q.scales.shape[1] if shifted else 0
    expected, terms = x.double() @ weights.T * scales, x.double().abs() @ sizes.T * scales
    limit = roundings * ROUNDING * terms + 2.0**-140
    if found.dtype in (torch.float16, torch.bfloat16):
        limit += torch.finfo(found.dtype).eps / 2 * expected.abs() + torch.finfo(found.dtype).smallest_normal
    return float(((found.double() - expected).abs() / limit).max())  # NaN where anything is


def off_int8(found: Tensor, x: Tensor, q: QTensor) -> float:
    """`off` with activations quantized to INT8, token by token, as the torch backend does."""
    codes, scales = quantize_activations_int8(x)
    return off(found, codes, q, scales.double())


def off_where_read(y: Tensor, x: Tensor, q: QTensor) -> float:
    """The largest error of a product by a kernel that only reads its weight, as a share of what the roundings can make.

    Those are: the result's; the scales', where x is bfloat16; float32 sums; of the token as whole numbers of 22 bits, or of the
    numbers of a table and their scales, whatever x is. Infinite for NaN.
    """
    w, sizes = values(q.to("cpu"))
    y, x, eps = y.cpu(), x.cpu().double(), torch.finfo(y.dtype).eps
    expected, terms = x @ w.T, x.abs() @ sizes.T
    if isinstance(q, CodebookQTensor):
        rounded, steps = eps, 0.0
    else:
        rounded, steps = eps / 2 if y.dtype == torch.bfloat16 else 0.0, 2.0**-22 * x.abs().amax(1, keepdim=True)
    bound = expected.abs() * eps / 2 + terms * (rounded + eps**2 + 2.0**-19) + steps * sizes.sum(1) + 2.0**-14
    return float(((y.double() - expected).abs() / bound).nan_to_num(torch.inf).max())
