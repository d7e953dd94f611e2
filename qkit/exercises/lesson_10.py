"""Exercises of lesson 10: a word in AWQ's order, one zero point that is wrong, a block Q4_0."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qkit.exercises.compare import array
from qkit.exercises.core import Exercise
from qkit.exercises.draws import Draw, off_halves
from qkit.exercises.lesson_10_open import OPEN

__all__ = ["EXERCISES", "OPEN"]


def unpack_awq(word: int) -> list[int]:
    """The codes of rows 0 .. 7 in a word of AWQ's, an int32 that may be negative; place i is bits 4 i .. 4 i + 3.

    Places 0 .. 7 hold rows 0 2 4 6 1 3 5 7, so rows 0 .. 7 are in places 0 4 1 5 2 6 3 7.
    """
    return [word >> 4 * place & 15 for place in (0, 4, 1, 5, 2, 6, 3, 7)]


def wrong_zero_point(weight: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor) -> tuple[int, int, int]:
    """(row, group, what it should be) of the one zero point that does not fit.

    q = round(w / s) + z, so q - w / s is z up to half a step, and closer in the mean of a group. Weight and codes are
    [out, in], scales and zeros [out, groups].
    """
    groups = zeros.shape[1]
    steps = codes.float().unflatten(1, (groups, -1)) - weight.unflatten(1, (groups, -1)) / scales[..., None]
    right = steps.mean(-1).round()
    row, group = (right != zeros).nonzero()[0].tolist()
    return row, group, int(right[row, group])


def q4_0(w: Tensor) -> Tensor:
    """32 weights as a block Q4_0, uint8 [18]: d in float16, then 16 bytes of codes, of weight j low and j + 16 high.

    d is the weight of the largest |w|, with its sign, over -8; the codes are w / d + 8.5 cut off, at most 15; of zeros 8.
    """
    d = w[w.abs().argmax()] / -8
    steps = w / d if d else torch.zeros_like(w)
    codes = (steps + 8.5).floor().clamp(0, 15).to(torch.uint8)
    return torch.cat([d.half().reshape(1).view(torch.uint8), codes[:16] | codes[16:] << 4])


# ---- how an answer is compared


def _without_sign(block: Any, arguments: tuple) -> Any:
    """The block, of which a scale of 0 is 0 and not -0: both are right."""
    found = array(block)
    if found is not None and found.shape == (18,) and found[:2].tolist() == [0, 128]:
        return np.concatenate([np.zeros_like(found[:2]), found[2:]])
    return block


# ---- inputs, and what known mistakes give


def _by_places(places: tuple[int, ...]) -> Callable[[int], list[int]]:
    return lambda word: [word >> 4 * place & 15 for place in places]


def _case(rows: int, columns: int, groups: int, at: tuple[int, int], change: int, seed: int) -> tuple[Tensor, ...]:
    """A weight, its codes and scales, and zero points of which that at `at` has been changed (modulo 16)."""
    random = torch.Generator().manual_seed(seed)
    weight = (
        torch.randn(rows, columns, generator=random)
        * torch.logspace(-2, 0.5, rows)[torch.randperm(rows, generator=random), None]
    )
    parts = weight.unflatten(1, (groups, -1)) + 0.4 * weight.std() * torch.randn(rows, groups, 1, generator=random)
    low, high = parts.amin(-1).clamp(max=0), parts.amax(-1).clamp(min=0)
    scales = (high - low) / 15
    zeros = (-low / scales).round()
    codes = ((parts / scales[..., None]).round() + zeros[..., None]).clamp(0, 15)
    zeros[at] = (zeros[at] + change) % 16
    return parts.flatten(1), codes.flatten(1).to(torch.uint8), scales, zeros.to(torch.uint8)


def _steps(weight: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """q - w / s, [out, groups, g]."""
    groups = zeros.shape[1]
    return codes.float().unflatten(1, (groups, -1)) - weight.unflatten(1, (groups, -1)) / scales[..., None]


def _largest_error(
    weight: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor, by: str = "sum"
) -> tuple[int, int, int]:
    steps = _steps(weight, codes, scales, zeros)
    errors = ((steps - zeros[..., None]) * scales[..., None]).abs()
    worst = errors.sum(-1) if by == "sum" else errors.amax(-1)
    row, group = divmod(int(worst.argmax()), zeros.shape[1])
    return row, group, int(steps[row, group].mean().round())


def _also(change: Callable[[int, int, int, int], tuple]) -> Callable[..., tuple]:
    """What `change` makes of (row, group, right, stored)."""

    def mistaken(weight: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor) -> tuple:
        row, group, right = wrong_zero_point(weight, codes, scales, zeros)
        return change(row, group, right, int(zeros[row, group]))

    return mistaken


def _cut_off(weight: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor) -> tuple[int, int, int]:
    row, group, _ = wrong_zero_point(weight, codes, scales, zeros)
    return row, group, int(_steps(weight, codes, scales, zeros)[row, group].mean())


def _block(
    w: Tensor,
    scale: Callable[[Tensor], Tensor] = lambda w: w[w.abs().argmax()] / -8,
    codes: Callable[[Tensor], Tensor] = lambda steps: (steps + 8.5).floor().clamp(0, 15),
    order: Callable[[Tensor], Tensor] = lambda q: q[:16] | q[16:] << 4,
    head: Callable[[Tensor], Tensor] = lambda d: d.half().reshape(1).view(torch.uint8),
    divisor: Callable[[Tensor], Tensor] = lambda d: d,
) -> Tensor:
    d = scale(w)
    q = codes(w / divisor(d)) if d else torch.full_like(w, 8)
    return torch.cat([head(d), order(q.to(torch.uint8))])


def _block_with(**changes: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda w: _block(w, **changes)


def _nan_of_zeros(w: Tensor) -> Tensor:
    return q4_0(w) if w.any() else torch.cat([q4_0(w)[:2], torch.zeros(16, dtype=torch.uint8)])


_WORDS = (0x76543210, 0x0F000000, -0x12345679, -1, -0x80000000, 0x13579BDF, -0x35014542)
_NORMAL = (
    torch.randn(5, 32, generator=torch.Generator().manual_seed(10)) * torch.tensor([1, 0.02, 5e-3, 300, 3e-6])[:, None]
)
_HALVES = torch.arange(-16, 16).float() / 2  # -8 is the largest: d = 1, and every other weight lies between two codes
_RAMP = torch.arange(32).float() - 12  # 19 is the largest, and positive


def _drawn_case(d: Draw) -> tuple[Tensor, ...]:
    rows, groups, size = d.whole(1, 6), d.whole(1, 4), d.whole(24, 48)
    at = d.whole(0, rows - 1), d.whole(0, groups - 1)
    return _case(rows, size * groups, groups, at, d.one_of(1, -1, d.whole(2, 14)), d.whole(0, 10**6))


def _off_edges(w: Tensor) -> Tensor:
    """w without the weights that lie nearly halfway between two codes of its block."""
    return off_halves(w, w[w.abs().argmax()] / -8)


EXERCISES = (
    Exercise(
        name="10.1",
        minutes=6,
        difficulty="easy",
        hints=(
            "A code is four bits: word >> 4 * place & 15. A negative word is no trouble, if the mask comes after the shift.",
            "Place 1 holds row 2. In which place is row 1?",
            "The rows of places 0 .. 7 are 0 2 4 6 1 3 5 7. Row 1 is in place 4; turn the whole list round like that.",
        ),
        solution=unpack_awq,
        cases=tuple((word,) for word in _WORDS),
        edges={"zeros": (0,), "the lowest bit": (1,), "the highest bit alone": (-(2**31),), "all bits": (-1,)},
        draw=lambda d: (d.whole(-(2**31), 2**31 - 1),),
        mistakes=(
            (
                _by_places(tuple(range(8))),
                "that is GPTQ's order, one place after the other; AWQ's has the rows interleaved.",
            ),
            (
                _by_places((0, 2, 4, 6, 1, 3, 5, 7)),
                "0 2 4 6 1 3 5 7 are the rows of places 0 .. 7; you need it the other way round, the place of each row.",
            ),
            (_by_places(tuple(range(7, -1, -1))), "place 0 is in the lowest bits, and rows are interleaved."),
            (_by_places((7, 3, 6, 2, 5, 1, 4, 0)), "place 0 is in the lowest bits, not in the highest."),
            (lambda word: [word >> 4 * p for p in (0, 4, 1, 5, 2, 6, 3, 7)], "mask each with & 15 after shifting."),
            (
                lambda word: [int(word / 16**p) % 16 for p in (0, 4, 1, 5, 2, 6, 3, 7)],
                "a negative word is rounded towards zero by int(); shift it, word >> 4 * place & 15.",
            ),
            (
                lambda word: [abs(word) >> 4 * p & 15 for p in (0, 4, 1, 5, 2, 6, 3, 7)],
                "a negative word has other bits than its absolute value; shift it as it is.",
            ),
            (_by_places((1, 5, 0, 4, 3, 7, 2, 6)), "in each byte the lower half comes first."),
        ),
    ),
    Exercise(
        name="10.2",
        minutes=9,
        difficulty="medium",
        hints=(
            "Solve q = round(w / s) + z for z. What is left of the rounding?",
            "q - w / s differs from z by half a step at most; the mean over a group differs by much less.",
            "So every group tells its own zero point: which of those in the file differs? (They are bytes: what is 3 - 5?)",
        ),
        solution=wrong_zero_point,
        cases=(
            _case(2, 16, 2, (1, 0), 1, 1),
            _case(3, 32, 2, (0, 1), -1, 2),
            _case(6, 96, 3, (4, 2), 15, 3),
            _case(5, 64, 1, (3, 0), 3, 4),
            _case(8, 64, 4, (6, 1), -4, 5),
            _case(4, 80, 5, (0, 0), 8, 6),
        ),
        edges={
            "one row": _case(1, 32, 2, (0, 1), 2, 7),
            "one group a row": _case(3, 32, 1, (2, 0), -1, 8),
            "small groups": _case(4, 32, 4, (1, 3), 5, 9),
            "the first place": _case(2, 48, 3, (0, 0), -2, 10),
        },
        draw=_drawn_case,
        rtol=0.0,
        mistakes=(
            (
                _largest_error,
                "a group with a large scale errs by more without being wrong: compare in steps, divided by its scale.",
            ),
            (
                lambda *a: _largest_error(*a, by="max"),
                "a group with a large scale errs by more without being wrong: compare in steps, divided by its scale.",
            ),
            (
                _also(lambda r, g, right, stored: (r, g, stored)),
                "the place is right; that zero point is the one in the file.",
            ),
            (_also(lambda r, g, right, stored: (g, r, right)), "row and group are swapped: the row comes first."),
            (
                _also(lambda r, g, right, stored: (r, g, 2 * stored - right)),
                "the place is right, and the correction goes the wrong way: the right one is q - w / s.",
            ),
            (
                _also(lambda r, g, right, stored: (r, g, stored + 1)),
                "the place is right, but not every wrong zero point is one too small: measure by how much.",
            ),
            (_cut_off, "the place is right; the mean is to be rounded, and yours is cut off."),
            (_also(lambda r, g, right, stored: (r, g)), "row and group are right; say as the third what it should be."),
        ),
    ),
    Exercise(
        name="10.3",
        minutes=10,
        difficulty="hard",
        hints=(
            "The largest weight, sign and all, becomes the code 0: w.abs().argmax() says where it is.",
            "The code 16 does not exist: which weight would get it? And what is w / d in a block of zeros?",
            "A float16 tensor of one number has .view(torch.uint8): two bytes, in the order of the file.",
        ),
        solution=q4_0,
        seen=_without_sign,
        cases=(
            (_RAMP,),
            (_HALVES,),
            *((w,) for w in _NORMAL),
            (torch.zeros(32),),
            (-_RAMP * 1e-3,),
            (torch.eye(32)[31] * -2,),
        ),
        edges={
            "positive weights only": (_RAMP.abs() + 0.5,),
            "negative weights only": (-_RAMP.abs() - 0.5,),
            "one outlier": (torch.where(torch.arange(32) == 20, 40.0, _NORMAL[0]),),
            "very large weights": (_NORMAL[0] * 1e4,),
        },
        draw=lambda d: (_off_edges(d.normal(32) * d.size(1e-3, 10)),),
        mistakes=(
            (
                _block_with(scale=lambda w: w.abs().max() / 7, codes=lambda s: s.round().clamp(-8, 7) + 8),
                "that is lesson 02's symmetric scale, absmax / 7; Q4_0 divides the largest weight, sign and all, by -8.",
            ),
            (_block_with(scale=lambda w: w.abs().max() / 8), "the sign of the largest weight is lost: it is over -8."),
            (
                _block_with(scale=lambda w: w.abs().max() / -8),
                "the sign of the largest weight is lost: no absolute value in d.",
            ),
            (
                _block_with(scale=lambda w: w.max() / -8),
                "the largest is the one of the largest |w|; it may be negative.",
            ),
            (
                _block_with(scale=lambda w: w[w.abs().argmax()] / 8),
                "divide by -8: the largest weight becomes the code 0.",
            ),
            (
                _block_with(scale=lambda w: w[w.abs().argmax()] / -7),
                "there are 8 steps below the middle: the largest weight is over -8, not -7.",
            ),
            (_block_with(order=lambda q: q[0::2] | q[1::2] << 4), "weights j and j + 16 share a byte, not neighbours."),
            (
                _block_with(order=lambda q: q[16:] | q[:16] << 4),
                "of weight j the code is in the lower half, of j + 16 in the upper.",
            ),
            (
                _block_with(order=lambda q: q[1::2] | q[0::2] << 4),
                "weights j and j + 16 share a byte, the first in its lower half.",
            ),
            (
                _block_with(head=lambda d: d.half().reshape(1).view(torch.uint8).flip(0)),
                "the bytes of the scale are the wrong way round: little-endian, the lower byte first.",
            ),
            (lambda w: q4_0(w).roll(-2), "the scale comes first, then the codes."),
            (_block_with(head=lambda d: d.float().reshape(1).view(torch.uint8)), "the scale takes two bytes, float16."),
            (
                _block_with(head=lambda d: d.bfloat16().reshape(1).view(torch.uint8)),
                "the scale is float16; yours is bfloat16, of as many bytes.",
            ),
            (
                _block_with(codes=lambda s: (s + 8.5).floor()),
                "a weight of the other sign that is as large would be code 16, which four bits do not hold: clamp to 15.",
            ),
            (
                _block_with(codes=lambda s: (s + 8.5).floor(), order=lambda q: q[:16] + (q[16:] << 4)),
                "a weight of the other sign that is as large would be code 16, which four bits do not hold: clamp to 15.",
            ),
            (
                _block_with(codes=lambda s: (s.round() + 8).clamp(0, 15)),
                "halves are rounded to even there; llama.cpp adds 8.5 and cuts off.",
            ),
            (
                _block_with(codes=lambda s: (s + 8).floor().clamp(0, 15)),
                "that cuts off without rounding: add 8.5, not 8.",
            ),
            (
                _block_with(codes=lambda s: s.round().clamp(-8, 7).to(torch.int8).to(torch.uint8) & 15),
                "codes are 0 .. 15 with 8 for zero, not two's complement: add 8.",
            ),
            (
                _block_with(divisor=lambda d: d.half().float()),
                "codes are taken with d as it is, before it is rounded to float16 for the file.",
            ),
            (_nan_of_zeros, "in a block of zeros w / d is no number: its codes are 8."),
            (lambda w: q4_0(w).int(), "the numbers are right; return bytes: torch.uint8."),
        ),
    ),
)
