"""INT8 times INT8: whole numbers in, whole numbers out."""

import torch
import torch.nn.functional as F
from torch import Tensor

from qkit.numerics.qtensor import QTensor

INT8_MAX_FEATURES = 2**17  # so many products of up to 128 * 127 stay inside int32


def check_int8_weight(q: QTensor) -> None:
    """Refuse a weight that integer arithmetic cannot take: it must be 8 bits, symmetric, one scale a row (or for all)."""
    if q.bits != 8 or not q.symmetric or q.scales.shape[1] != 1:
        raise ValueError(f"INT8 arithmetic takes 8 bits, symmetric, one scale a row, this is {q!r}; use int8_rows")
    if q.shape[1] > INT8_MAX_FEATURES:
        raise ValueError(f"in_features={q.shape[1]} may overflow int32; the limit is {INT8_MAX_FEATURES}: use QLinear")


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
