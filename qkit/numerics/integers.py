"""INT8 times INT8: whole numbers in, whole numbers out."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from qkit.numerics.qtensor import QTensor

INT8_MAX_FEATURES = 2**17  # so many products of up to 128 * 127 stay inside int32
FLOAT32_FEATURES = 2**10  # so many of up to 128 * 128 are whole numbers up to 2^24, which float32 adds exactly


def check_int8_weight(q: QTensor) -> None:
    """Refuse a weight that integer arithmetic cannot take: it must be 8 bits, symmetric, one scale a row (or for all)."""
    if q.bits != 8 or not q.symmetric or q.scales.shape[1] != 1:
        raise ValueError(f"INT8 arithmetic takes 8 bits, symmetric, one scale a row, this is {q!r}; use int8_rows")
    if q.shape[1] > INT8_MAX_FEATURES:
        raise ValueError(f"in_features={q.shape[1]} may overflow int32; the limit is {INT8_MAX_FEATURES}: use QLinear")


def int8_codes(q: QTensor) -> Tensor:
    """The codes of an 8-bit symmetric weight as int8 [out, in]: q - 128."""
    return (q.packed ^ 128).view(torch.int8)


@cache
def _saturates() -> bool:
    """Whether torch._int_mm adds neighbours in 16 bits on this processor, where two products of INT8 do not always fit."""
    ones = torch.full((32, 64), 127, dtype=torch.int8, device="cpu")
    return bool((torch._int_mm(ones, ones.T) != 64 * 127 * 127).any())


def int_mm_saturates() -> bool:
    """Whether torch._int_mm is wrong on the CPU: oneDNN is, on an x86 without VNNI. Asked of the processor once, at first use."""
    return _saturates()


# What torch.compiler.assume_constant_result does, which imports the compiler, a second of every `import qkit`
int_mm_saturates._dynamo_marked_constant = True  # type: ignore[attr-defined]


def matmul_in_floats(a: Tensor, b: Tensor) -> Tensor:
    """a bᵀ exactly, by products of float32: int8 [M, K] and int8 [N, K] to int32 [M, N], `FLOAT32_FEATURES` columns at a time."""
    total = torch.zeros(len(a), len(b), dtype=torch.int32, device=a.device)
    for some, others in zip(a.split(FLOAT32_FEATURES, 1), b.split(FLOAT32_FEATURES, 1), strict=True):
        total += (some.float() @ others.float().T).to(torch.int32)
    return total


def int8_matmul(a: Tensor, b: Tensor) -> Tensor:
    """a bᵀ exactly: int8 [M, K] and int8 [N, K] to int32 [M, N], for any M, N and K up to `INT8_MAX_FEATURES`.

    torch._int_mm returns wrong sums on the CPU for K = 1 (torch 2.13), and on CUDA takes no M below 17 and no N or K that
    is not a multiple of 8: zeros fill up what is missing. On an x86 without VNNI it may be wrong for any K: floats multiply.
    """
    if not a.is_cuda and int_mm_saturates():
        return matmul_in_floats(a, b)
    m, n = len(a), len(b)
    columns = -a.shape[1] % 8
    rows_a, rows_b = (max(17 - m, 0), -n % 8) if a.is_cuda else (0, 0)
    a = F.pad(a, (0, columns, 0, rows_a)) if columns or rows_a else a
    b = F.pad(b, (0, columns, 0, rows_b)) if columns or rows_b else b
    return torch._int_mm(a, b.T)[:m, :n]
