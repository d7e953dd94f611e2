"""GPTQ's column loop on a GPU: blocks of columns by a kernel, and what they owe to the rest by cuBLAS."""

import torch
from torch import Tensor

from qkit.backends import torch as plain
from qkit.backends.triton.new_enough import triton
from qkit_kernels.triton import columns as kernels

ROWS = 4  # of a program, which is one warp: its lanes share the columns, and the rows' chains of divisions overlap


def gptq_columns(
    w: Tensor, upper: Tensor, group: Tensor, scale: Tensor, zero: Tensor, q_max: int, regrid: plain.Regrid | None = None
) -> Tensor:
    """`qkit.backends.torch.gptq_columns`, with its blocks rounded by a kernel.

    The product between blocks stays what it is there, in float64: a data center's card multiplies that on tensor cores, and in
    float32, let alone TF32 with its 10 bits, the codes would no more be the CPU's. (Other cards do float64 at 1/64 of the rate.)
    """
    return plain.gptq_columns(w, upper, group, scale, zero, q_max, regrid, round_block)


def round_block(w: Tensor, upper: Tensor, scale: Tensor, zero: Tensor, q_max: int) -> tuple[Tensor, Tensor]:
    """`qkit.backends.torch.round_columns`."""
    rows, width = w.shape
    w, upper = (t if t.stride(1) == 1 else t.contiguous() for t in (w, upper))  # a Cholesky factor lies by columns
    codes, errors = (torch.empty(w.shape, dtype=dtype, device=w.device) for dtype in (torch.uint8, torch.float64))
    kernels.round_block[(triton.cdiv(rows, ROWS),)](
        w, upper, scale.float().contiguous(), zero.float().contiguous(), codes, errors,
        rows, width, w.stride(0), upper.stride(0), float(q_max),
        ROWS=ROWS, WIDTH=triton.next_power_of_2(width), num_warps=1, enable_fp_fusion=False,
    )  # fmt: skip
    return codes, errors
