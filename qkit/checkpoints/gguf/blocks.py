"""The blocks of GGUF that are our codes in another order: Q4_0, Q4_1, Q8_0, exactly, both ways.

What
    A row of a weight is cut into blocks of 32. Each block begins with its scale d in float16, and holds its codes behind it:

        Q4_0    d             16 bytes of codes q, 0 .. 15      ŵ = d (q - 8)     18 bytes, 4.5 bits a weight
        Q4_1    d, minimum m  16 bytes of codes q, 0 .. 15      ŵ = d q + m       20 bytes, 5 bits a weight
        Q8_0    d             32 signed bytes q, -128 .. 127    ŵ = d q           34 bytes, 8.5 bits a weight

    In 4 bits the low half of byte j is weight j, the high half is weight j + 16: one shift and one mask make 16 neighbours of
    a vector register of each. Here, as everywhere in qkit, the low half is weight 2j, so only the order changes.

Why they are ours
    Q4_0 is a symmetric `QTensor` of groups of 32 (its zero point is 8 everywhere), Q4_1 one with offsets, Q8_0 a symmetric one
    of 8 bits (its unsigned code is q + 128). Larger groups that are whole blocks fit as well: each block repeats the scale.
    llama.cpp gives a Q4_0 block the scale (its weight with the largest |w|, sign and all) / -8. So d is often negative. That
    weight gets the code 0, the lowest, which no code of a positive scale could be exchanged for: the sign is kept.

What is lost
    A zero point becomes the minimum m = -s z, which float16 rounds: at most one part in 2048 of m. Everything else is exact,
    or refused.

Source: ggml-common.h (block_q4_0, block_q4_1, block_q8_0) and the reference functions of ggml-quants.c, as described in
github.com/ggml-org/ggml/blob/master/docs/gguf.md and by the package `gguf`, which the tests hold this against.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from qkit.numerics.qtensor import QTensor
from qkit.numerics.stored import StoredWeight

WEIGHTS = 32  # of a block


def from_q4_0(raw: Tensor) -> QTensor:
    """Blocks uint8 [out, 18 in / 32] -> 4 bits, symmetric, groups of 32."""
    blocks = raw.reshape(len(raw), -1, 18)
    return QTensor.from_codes(_from_halves(blocks[..., 2:]), _float16(blocks[..., :2]), 4)


def from_q4_1(raw: Tensor) -> QTensor:
    """Blocks uint8 [out, 20 in / 32] -> 4 bits with offsets, groups of 32."""
    blocks = raw.reshape(len(raw), -1, 20)
    scales, offsets = _float16(blocks[..., :2]), _float16(blocks[..., 2:4])
    return QTensor.from_codes(_from_halves(blocks[..., 4:]), scales, 4, offsets=offsets)


def from_q8_0(raw: Tensor) -> QTensor:
    """Blocks uint8 [out, 34 in / 32] -> 8 bits, symmetric, groups of 32."""
    blocks = raw.reshape(len(raw), -1, 34)
    codes = blocks[..., 2:].reshape(len(raw), -1) ^ 128  # a signed byte q is the unsigned code q + 128
    return QTensor.from_codes(codes, _float16(blocks[..., :2]), 8)


def to_q4_0(q: QTensor) -> Tensor:
    """4 bits, symmetric -> blocks uint8 [out, 18 in / 32]."""
    return torch.cat([_bytes(_of_blocks(q.scales, q)), _to_halves(q.codes())], -1).reshape(q.shape[0], -1)


def to_q4_1(q: QTensor) -> Tensor:
    """4 bits, with zero points or offsets -> blocks uint8 [out, 20 in / 32]."""
    scales, minima = _of_blocks(q.scales, q), _of_blocks(minimum(q), q)
    return torch.cat([_bytes(scales), _bytes(minima), _to_halves(q.codes())], -1).reshape(q.shape[0], -1)


def to_q8_0(q: QTensor) -> Tensor:
    """8 bits, symmetric -> blocks uint8 [out, 34 in / 32]."""
    codes = (q.codes() ^ 128).reshape(q.shape[0], -1, WEIGHTS)
    return torch.cat([_bytes(_of_blocks(q.scales, q)), codes], -1).reshape(q.shape[0], -1)


FROM: dict[str, Callable[[Tensor], QTensor]] = {"Q4_0": from_q4_0, "Q4_1": from_q4_1, "Q8_0": from_q8_0}
TO: dict[str, Callable[[QTensor], Tensor]] = {"Q4_0": to_q4_0, "Q4_1": to_q4_1, "Q8_0": to_q8_0}


def minimum(q: QTensor) -> Tensor:
    """The number that code 0 stands for in each group, float32, shaped like the scales: the offset, or -s z."""
    return q.offsets.float() if q.offsets is not None else -q.scales.float() * q.zeros()


def why_no_block(stored: StoredWeight) -> str | None:
    """Why no block holds a weight, as the end of a sentence that begins with its name; None: `block_type` does."""
    if stored.kind != QTensor.kind:
        return f"has codes that are places in a table ({stored!r})"
    q = cast(QTensor, stored)
    group = q.shape[1] // q.row_groups
    if q.bits not in (4, 8):
        return f"has {q.bits} bits"
    if q.bits == 8 and not q.symmetric:
        return "has 8 bits that are not symmetric (a block of 8 bits has no minimum)"
    if q.shape[1] % WEIGHTS:
        return f"has in_features={q.shape[1]}, no multiple of {WEIGHTS}, the length of a block (leave it in float with exclude=)"
    if group % WEIGHTS:
        return f"has groups of {group}, which are no whole blocks of {WEIGHTS}"
    if not torch.equal(q.scales.half().float(), q.scales.float()):
        return "has scales that float16 does not hold exactly (schemes with INT8 activations, or scale_dtype='float32')"
    if not minimum(q).half().isfinite().all():
        return (
            f"has a minimum of {float(minimum(q).abs().max()):g}, and float16, in which a block has it, ends at 65504"
        )
    return None


def block_type(q: QTensor) -> str:
    """Which blocks hold a weight that `why_no_block` lets through."""
    return "Q8_0" if q.bits == 8 else "Q4_0" if q.symmetric else "Q4_1"


def is_exact(stored: StoredWeight) -> bool:
    """Whether the blocks of a weight that `why_no_block` lets through dequantize to the same numbers."""
    q = cast(QTensor, stored)
    return q.symmetric or torch.equal(minimum(q).half().float(), minimum(q))


def check_finite_blocks(q: QTensor, name: str) -> None:
    """Refuse a scale or minimum that is NaN or infinite."""
    for what, numbers in (("scale", q.scales), ("minimum", q.offsets)):
        if numbers is not None and not numbers.isfinite().all():
            raise ValueError(f"{name} has a {what} that is NaN or infinite; the file was altered: copy it again")


def _of_blocks(numbers: Tensor, q: QTensor) -> Tensor:
    """Numbers of groups [out or 1, groups] for each block, float16 [out, in / 32]."""
    blocks = q.shape[1] // WEIGHTS
    return numbers.half().repeat_interleave(blocks // numbers.shape[1], 1).expand(q.shape[0], blocks)


def _float16(octets: Tensor) -> Tensor:
    """uint8 [out, blocks, 2] -> float16 [out, blocks]."""
    return octets.contiguous().view(torch.float16)[..., 0]


def _bytes(numbers: Tensor) -> Tensor:
    """float16 [out, blocks] -> uint8 [out, blocks, 2]."""
    return numbers.contiguous()[..., None].view(torch.uint8)


def _from_halves(octets: Tensor) -> Tensor:
    """uint8 [out, blocks, 16] -> codes 0 .. 15, uint8 [out, in]."""
    return torch.cat([octets & 15, octets >> 4], -1).reshape(len(octets), -1)


def _to_halves(codes: Tensor) -> Tensor:
    """The inverse of `_from_halves`."""
    low, high = codes.reshape(len(codes), -1, 2, WEIGHTS // 2).unbind(2)
    return low | high << 4
