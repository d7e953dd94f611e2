"""What of a laid weight the kernels of floats are given, and x as they read it: the same for each of them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from qkit.backends.triton import tiles
from qkit.backends.triton.layout import BLOCK, KIND, Laid
from qkit.backends.triton.new_enough import triton
from qkit_kernels.triton import assembly, pieces
from qkit_kernels.triton import many as kernels

TOGETHER = 8  # rows of tiles that are worked on together
ADDED = 1024  # numbers that a program of `add_up` makes


def constants(weight: Laid, ptx: bool) -> dict[str, object]:
    """What of a weight a kernel is compiled for."""
    kind, table, offset = KIND[weight.dtype], weight.table is not None, weight.off is not None
    text = assembly.table(kind) if table else assembly.affine(weight.bits, kind, offset)
    a, b, c = (*assembly.PLANES[weight.bits], 0, 0)[:3]
    return {
        "A": a,
        "B": b,
        "C": c,
        "S": weight.grid.shape[2],
        "SPAN": weight.span,
        "BIAS": assembly.bias(weight.bits, kind),
        "OFFSET": offset,
        "TABLE": table,
        "BF16": kind == "bf16",
        "PTX": text if ptx else "",
    }


def in_pairs(weight: Laid, warps: int) -> dict[str, str]:
    """What a kernel that can look a table's numbers up two at a time is compiled for beside that.

    Args:
        warps: that put them into shared memory; 0: it is not to.
    """
    if weight.table is None or not warps:
        return {"FILL": ""}
    return {"PTX": assembly.paired(KIND[weight.dtype]), "FILL": assembly.pairs(32 * warps)}


def pointers(weight: Laid) -> tuple[Tensor, ...]:
    """Words, scales, offsets, rows, table; one that a kernel does not read stands for one that is not there."""
    off, table = (weight.grid if part is None else part for part in (weight.off, weight.table))
    return weight.words, weight.grid, off, weight.rows, table


def sizes(weight: Laid) -> tuple[int, int]:
    """Rows of eight, and blocks of columns."""
    return weight.grid.shape[0], weight.blocks


def aligned(x: Tensor) -> Tensor:
    """x [tokens, K] with K filled up to whole blocks and rows that begin at multiples of 16 bytes."""
    if x.shape[1] % BLOCK:
        x = F.pad(x, (0, -x.shape[1] % BLOCK))
    fine = x.stride(1) == 1 and x.stride(0) % 8 == 0 and x.data_ptr() % 16 == 0
    return x if fine else x.clone(memory_format=torch.contiguous_format)


def begins(early: bool) -> dict[str, bool]:
    """How a kernel is launched that may begin before the one before it has ended."""
    return {"launch_pdl": True} if early else {}


def reordered(x: Tensor, early: bool) -> Tensor:
    """Aligned x in the order of columns in which wgmma meets them."""
    tokens, features = x.shape
    ordered = torch.empty(tokens, features, dtype=x.dtype, device=x.device)
    kernels.reorder[(tokens, triton.cdiv(features, 2048))](
        x, ordered, features, x.stride(0), BLOCK=2048, EARLY=early, **begins(early)
    )
    return ordered


def dealt_out(cut: tiles.Many | tiles.Hopper, weight: Laid, y: Tensor) -> tuple[int, int, Tensor]:
    """Tiles of y, programs for them, and room for the parts of those that programs share; y, to which no part is written, where
    none is shared.
    """
    (tokens, rows), (bn, bm) = y.shape, cut.tile
    work = tiles.number_of_tiles(rows, tokens, cut.tile)
    programs = tiles.launched(cut, work, weight.blocks)
    parts = torch.empty(2 * programs, bm, bn, dtype=torch.float32, device=y.device) if cut.split else y
    return work, programs, parts


def add_up(parts: Tensor, cut: tiles.Many | tiles.Hopper, weight: Laid, work: int, y: Tensor, early: bool) -> None:
    """y where its `work` tiles were made in parts."""
    if cut.split:
        (bn, bm), (tokens, rows) = cut.tile, y.shape
        pieces.add_up[(work, triton.cdiv(bn * bm, ADDED))](
            parts, y, tokens, rows, weight.blocks, len(parts) // 2, work, rows,
            BN=bn, BM=bm, TOGETHER=TOGETHER, BLOCK=ADDED, EARLY=early, **begins(early),
        )  # fmt: skip
