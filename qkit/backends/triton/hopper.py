"""Many tokens on Hopper: describes what the copy engine reads, allocates, launches."""

from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from qkit.backends.triton import tiles
from qkit.backends.triton.arguments import (
    TOGETHER,
    add_up,
    begins,
    constants,
    dealt_out,
    in_pairs,
    pointers,
    reordered,
    sizes,
)
from qkit.backends.triton.layout import BLOCK, Laid
from qkit_kernels.triton import assembly, hopper


def described(tensor: Tensor, block: list[int]) -> TensorDescriptor:
    """How blocks of a matrix are copied: 16-bit floats in the order that the tensor cores want, words as they are."""
    bits = 8 * tensor.element_size()
    return TensorDescriptor.from_tensor(tensor, block, gl.NVMMASharedLayout(128 if bits == 16 else 0, bits, 2))


def planes(weight: Laid) -> list[TensorDescriptor]:
    """Of a weight's words, three; the first stands for those that are not there."""
    rows, blocks = sizes(weight)
    found, start = [], 0
    for width in assembly.PLANES[weight.bits]:
        end = start + rows * blocks * 32 * width
        found.append(described(weight.words[start:end].view(rows, -1), [16, 32 * width]))
        start = end
    return found + found[:1] * (3 - len(found))


def many(x: Tensor, weight: Laid, y: Tensor, cut: tiles.Hopper) -> None:
    """y [M, N] of aligned x."""
    tokens, rows, ordered = len(x), weight.shape[0], reordered(x, early=True)
    grid, off = (
        described(part.view(part.shape[0], -1), [16, 8 * part.shape[2]])
        for part in (weight.grid, weight.grid if weight.off is None else weight.off)
    )
    work, programs, parts = dealt_out(cut, weight, y)
    hopper.many_hopper[(programs,)](
        described(ordered, [cut.bm, BLOCK]), described(ordered, [cut.more or cut.bm, BLOCK]), *planes(weight), grid, off,
        *pointers(weight)[1:], y, parts, tokens, rows, weight.blocks, work, rows,
        BM=cut.bm, MORE=cut.more, **constants(weight, True) | in_pairs(weight, hopper.WARPS), STAGES=cut.stages,
        TOGETHER=TOGETHER, TURNS=cut.in_turns, SPLIT=cut.split, num_warps=hopper.WARPS, maxnreg=hopper.REGISTERS, **begins(True),
    )  # fmt: skip
    add_up(parts, cut, weight, work, y, early=True)
