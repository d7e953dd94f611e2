"""A few tokens times a weight in one compiled call: to lay out the inputs of a small layer takes Python longer than the layer.

A kernel is handed addresses, and what they stand for is looked at here.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from qkit_kernels.numba import streams
from qkit_kernels.numba.threads import team_of
from qkit_kernels.numba.vector import Static

SERIAL_WEIGHTS = 2**17  # times tokens: less is done before a second thread has woken
MAX_LAID = 2**14  # features: of more, a few laid tokens are too much for the stack of a thread
_DTYPES = {getattr(torch, name): number for number, name in enumerate(streams.DTYPES)}
_TOGETHER = {count: Static(count) for count in (1, 2, 4)}
FEW = max(_TOGETHER)  # tokens: more are multiplied in tiles


def taken_together(tokens: int) -> tuple[None, ...]:
    """How many tokens a kernel takes at once: 1, 2 or 4."""
    return _TOGETHER[tokens if tokens < 3 else FEW]


def as_it_lies(x: Tensor) -> bool:
    """Whether a kernel may read x where it is: numbers in memory, as torch itself keeps them, without gaps."""
    return type(x) in (Tensor, Parameter) and x.dtype in _DTYPES and x.is_cpu and x.is_contiguous() and not x.is_neg()


def can_be_added(bias: Tensor, rows: int) -> bool:
    """Whether a kernel adds the bias itself: it is float32 [rows], as kernels read it by its address."""
    return bias.dtype == torch.float32 and bias.shape == (rows,) and as_it_lies(bias)


def in_one_call(
    kernel: Callable[..., None], x: Tensor, shape: tuple[int, int], bias: Tensor | None, more: tuple[Any, ...]
) -> Tensor | None:
    """x ŵᵀ + bias, float32 [..., out]; None: x, or this machine, needs one step after the other.

    Args:
        kernel: `layer` of `qkit_kernels.numba.weight_only` or `.integer`.
        x: [..., in].
        shape: (out, in).
        bias: [out], one that `can_be_added`, or None.
        more: what the kernel takes between the threads and the number of tokens.
    """
    (rows, features), sizes = shape, x.shape
    tokens = x.numel() // features
    if not 0 < tokens <= FEW or features > MAX_LAID or not as_it_lies(x) or not sizes or sizes[-1] != features:
        return None
    team = team_of(rows, tokens * rows * features < SERIAL_WEIGHTS)
    if team is None:
        return None
    together, before, start = taken_together(tokens), sizes[:-1], 0 if bias is None else bias.data_ptr()
    whole = len(together) == tokens
    size = (*before, rows) if whole else (len(together), rows)
    # sizes by themselves rather than in a tuple, and no dtype where it is that of x: half the time
    y = x.new_empty(*size) if x.dtype == torch.float32 else x.new_empty(*size, dtype=torch.float32)
    kernel(x.data_ptr(), _DTYPES[x.dtype], tokens, features, start, y.data_ptr(), *team, *more, together)
    return y if whole else y[:tokens].view(*before, rows)
