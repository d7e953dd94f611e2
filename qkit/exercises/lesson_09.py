"""Exercises of lesson 09: a mask, zero points, the crossing of two rooflines, a dot product of bytes; three are kernels."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qkit.exercises.core import Exercise
from qkit.exercises.draws import Draw
from qkit.exercises.kernels import KernelExercise
from qkit.exercises.lesson_09_open import OPEN

__all__ = ["EXERCISES", "OPEN"]

KERNELS = Path(__file__).with_name("lesson_09_kernels.py")


def token_scales(x: Tensor) -> Tensor:
    """max |x| of each row over 127, float32 [M]."""
    return x.abs().amax(1) / 127


def w4_zeros(x: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """sum over k of x s (q - z), float32 [N]; codes are packed two to a byte, uint8 [N, K / 2], scales and zeros [N, groups]."""
    return _w4(x, codes, scales, zeros)


def crossing(rows: int, features: int, gigabytes: float, gops: float) -> float:
    """From how many tokens on the product in bfloat16 is bound by its operations: from there on no 4-bit kernel beats it.

    M tokens take 2 M N K operations, and read and write 2 (N K + M (N + K)) bytes. inf: there is no such M.
    """
    operations, numbers = 2 * rows * features / gops, 2 * (rows + features) / gigabytes  # nanoseconds a token
    if operations <= numbers:
        return math.inf
    return math.ceil(2 * rows * features / gigabytes / (operations - numbers))


def w8a8_one(x: Tensor, codes: Tensor, scales: Tensor, x_scale: float) -> Tensor:
    """scales x_scale times the whole-number products of x int8 [K] and codes int8 [N, K], float32 [N]."""
    return (codes.long() @ x.long()).float() * scales * x_scale


# ---- how the kernels are launched


def _programs(rows: int, each: int) -> tuple[int]:
    return (-(-rows // each),)


def _launch_scales(kernel: Any, x: Tensor, out: Tensor) -> None:
    tokens, features = x.shape
    width = 1 << (features - 1).bit_length()
    kernel[_programs(tokens, 4)](x, out, tokens, features, ROWS=4, WIDTH=width)


def _launch_w4(kernel: Any, x: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor, out: Tensor) -> None:
    rows, features = len(codes), len(x)
    group = features // scales.shape[1]
    kernel[_programs(rows, 4)](x, codes, scales, zeros, out, rows, features, GROUP=group, ROWS=4)


def _launch_w8a8(kernel: Any, x: Tensor, codes: Tensor, scales: Tensor, x_scale: float, out: Tensor) -> None:
    rows, features = codes.shape
    kernel[_programs(rows, 4)](x, codes, scales, x_scale, out, rows, features, ROWS=4, BLOCK=256)


# ---- inputs, and what known mistakes store


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _whole(low: int, high: int, *shape: int, seed: int) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def _w4_case(rows: int, features: int, group: int, seed: int) -> tuple[Tensor, ...]:
    packed = _whole(0, 256, rows, features // 2, seed=seed).to(torch.uint8)
    scales = _whole(1, 9, rows, features // group, seed=seed + 1) / 8
    zeros = _whole(0, 16, rows, features // group, seed=seed + 2).to(torch.uint8)
    return _normal(features, seed=seed), packed, scales.half(), zeros


def _w4(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor,
    value: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda q, s, z: s * (q - z),
) -> Tensor:
    codes = torch.stack([packed & 15, packed >> 4], -1).flatten(1).float().unflatten(1, (scales.shape[1], -1))
    weight = value(codes, scales.float()[..., None], zeros.float()[..., None])
    return weight.flatten(1).double().matmul(x.double()).float()


def _w4_wrong(value: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda x, packed, scales, zeros: _w4(x, packed, scales, zeros, value)


def _another_zero(x: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    return _w4(x, packed, scales, zeros[:, :1].expand_as(zeros))


def _crossed(
    rows: int,
    features: int,
    gigabytes: float,
    gops: float,
    operations: float = 2,
    weight: float = 2,
    number: float = 2,
    rounded: Callable[[float], float] = math.ceil,
) -> float:
    each, moved = operations * rows * features / gops, number * (rows + features) / gigabytes
    return math.inf if each <= moved else rounded(weight * rows * features / gigabytes / (each - moved))


_X = _normal(7, 13, seed=3)
_X[1:, :] *= 3  # rows are unlike, and the next one is larger
_LARGE = (
    torch.full((500,), 127, dtype=torch.int8),
    _whole(64, 128, 3, 500, seed=9).to(torch.int8),
    torch.tensor([1.0, 0.5, 2.0]),
    0.25,
)
_LONG = (
    torch.full((4000,), 127, dtype=torch.int8),
    _whole(100, 128, 2, 4000, seed=10).to(torch.int8),
    torch.ones(2),
    1.0,
)


def _bytes_to_multiply(d: Draw) -> tuple[Tensor, Tensor, Tensor, float]:
    rows, features = d.whole(1, 9), d.whole(1, 700)
    codes = d.integers(-127, 127, rows, features, dtype=torch.int8)
    return (
        d.integers(-127, 127, features, dtype=torch.int8),
        codes,
        2.0 ** -d.integers(0, 5, rows),
        2.0 ** -d.whole(0, 5),
    )


EXERCISES = (
    KernelExercise(
        name="09.1",
        minutes=8,
        difficulty="medium",
        hints=(
            "Which numbers does the last program read that belong to no token? And where does a row that is shorter than "
            "WIDTH end?",
            "A mask for a tile is made like its addresses: one condition for m, one for k, each with None where the other has "
            "its axis, joined by &.",
            "What should a lane that is masked off put into a maximum of sizes? And a row that does not exist has no scale to "
            "store.",
        ),
        solution=token_scales,
        launch=_launch_scales,
        names=("x",),
        kernels=KERNELS,
        kernel="token_scales",
        cases=(
            (torch.tensor([[1.0, -3.0, 2.0], [10.0, 20.0, -30.0], [0.5, 0.25, -0.125]]),),
            (_X,),
            (_X[:4, :8].contiguous(),),
            (-_X[:1, :1].abs(),),
            (torch.zeros(5, 3),),
        ),
        draw=lambda d: (d.weight(d.whole(1, 9), d.whole(1, 40)),),
        draws=3,
        mistakes=(
            (
                lambda x: x.amax(1) / 127,
                "that is the largest number, not the largest size: a row may reach further down.",
            ),
            (lambda x: x.abs().amax(1), "divide by 127, so that the largest becomes code 127."),
            (lambda x: x.abs().amax(1) / 128, "127, not 128: code 128 does not exist."),
            (
                lambda x: x.abs().amax().expand(len(x)) / 127,
                "all rows have one scale: the maximum goes along axis 1, the columns.",
            ),
            (
                lambda x: x.abs().amax(1).clamp(min=1.0 if x.shape[1] & x.shape[1] - 1 else 0.0) / 127,
                "lanes that are masked off take part in the maximum with other=1: they must not count.",
            ),
        ),
    ),
    KernelExercise(
        name="09.2",
        minutes=8,
        difficulty="medium",
        hints=(
            "A zero point belongs to a group of a row, as a scale does. Where is it loaded, and at which address?",
            "Codes and zero points come as bytes, which know no numbers below 0. What is 3 - 5 in a byte?",
            "The 8 stood for the middle of the codes. What takes its place, and with which shape beside a tile [ROWS, pairs]?",
        ),
        solution=w4_zeros,
        launch=_launch_w4,
        names=("x", "packed", "scales", "zeros"),
        kernels=KERNELS,
        kernel="w4_zeros",
        cases=(
            _w4_case(3, 16, 16, seed=20),
            _w4_case(6, 48, 16, seed=30),
            _w4_case(4, 64, 32, seed=40),
            _w4_case(1, 32, 8, seed=50),
        ),
        draw=lambda d: _w4_case(d.whole(1, 9), 16 * d.whole(1, 3), d.one_of(4, 8, 16), seed=d.whole(100, 10**6)),
        draws=3,
        mistakes=(
            (_w4_wrong(lambda q, s, z: s * (q - 8)), "that is the symmetric product: zeros_ptr is not used."),
            (
                _w4_wrong(lambda q, s, z: s * (q - 8 - z)),
                "8 and the zero point are both subtracted: z takes the place of 8.",
            ),
            (_w4_wrong(lambda q, s, z: s * (q + z)), "the zero point is subtracted: code z stands for 0."),
            (
                _w4_wrong(lambda q, s, z: s * q - z),
                "the zero point is a code: it is subtracted before the scale comes in.",
            ),
            (_w4_wrong(lambda q, s, z: s * q), "the zero point is missing, and the 8 is gone too."),
            (
                _w4_wrong(lambda q, s, z: s * ((q - z) % 256)),
                "q - z was taken in bytes, where -1 is 255: make both float32 before subtracting.",
            ),
            (_w4_wrong(lambda q, s, z: q - z), "the scale is missing."),
            (_another_zero, "every group of a row has the zero point of its first: the address must move with g."),
        ),
    ),
    Exercise(
        name="09.3",
        minutes=8,
        difficulty="medium",
        hints=(
            "Write down bytes and operations of the bfloat16 product for M tokens. Which of them grow with M?",
            "A multiplication and an addition are two operations. A weight, an x and a y have 2 bytes each.",
            "Both times are straight lines in M. Where do they cross, and what if one is never the steeper?",
        ),
        solution=crossing,
        cases=(
            (4096, 4096, 1000.0, 100_000.0),
            (14336, 4096, 2800.0, 790_000.0),
            (4096, 4096, 3300.0, 990_000.0),
            (8192, 1024, 32.0, 430.0),
            (128, 128, 3000.0, 900_000.0),
            (1024, 1024, 1024.0, 262_144.0),
            (1000, 1000, 1000.0, 4000.0),
        ),
        edges={
            "a layer of one output": (1, 4096, 1000.0, 100_000.0),
            "a layer of one input and one output": (1, 1, 1000.0, 400.0),
            "operations that never take longer": (2, 2, 1000.0, 1000.0),
            "a card that is slow at computing": (4096, 4096, 1000.0, 1000.5),
            "one token": (4096, 4096, 1000.0, 500.0),
        },
        draw=lambda d: (d.whole(200, 20_000), d.whole(200, 20_000), d.size(20, 4000), d.size(2e4, 2e5)),
        mistakes=(
            (
                lambda *a: _crossed(*a, operations=1),
                "about twice too many: a multiplication and an addition are two operations; a number of bfloat16 has 2 bytes.",
            ),
            (
                lambda *a: _crossed(*a, weight=0.5, number=2),
                "that is where the 4-bit product itself becomes bound by operations; from there on it still beats bfloat16, "
                "which waits for its bytes.",
            ),
            (
                lambda *a: _crossed(*a, number=0),
                "that is the ridge in operations a byte; x comes in and y goes out too.",
            ),
            (
                lambda *a: _crossed(*a, rounded=math.floor),
                "that M is one too few: with it the bytes still take longer; round up.",
            ),
            (
                lambda *a: _crossed(*a, rounded=lambda m: m),
                "tokens are whole: give the smallest whole M from which on the operations take as long.",
            ),
            (
                lambda *a: _crossed(*a, rounded=lambda m: math.floor(m) + 1),
                "where both times are equal the operations decide already: as long is long enough.",
            ),
        ),
    ),
    KernelExercise(
        name="09.4",
        minutes=12,
        difficulty="hard",
        hints=(
            "Begin with one block of columns: which addresses, which mask? Then let a loop walk over K.",
            "The product of two int8 is an int8 again, in Triton as in lesson 08. Where does 127 times 127 fit?",
            "float32 holds whole numbers up to 2²⁴; a sum of 4000 products of 127 and 127 is larger. In which type is `total`?",
        ),
        solution=w8a8_one,
        launch=_launch_w8a8,
        names=("x", "codes", "scales", "x_scale"),
        kernels=KERNELS,
        kernel="w8a8_one",
        cases=(
            (
                torch.tensor([10, 20, -3], dtype=torch.int8),
                torch.tensor([[1, -1, 2], [127, 127, 127]], dtype=torch.int8),
                torch.tensor([0.5, 0.25]),
                2.0,
            ),
            (
                _whole(-127, 128, 64, seed=7).to(torch.int8),
                _whole(-127, 128, 8, 64, seed=8).to(torch.int8),
                2.0 ** -_whole(0, 5, 8, seed=6),
                0.5,
            ),
            _LARGE,
            _LONG,
        ),
        draw=_bytes_to_multiply,
        draws=3,
        mistakes=(
            (
                lambda x, w, s, r: (w * x).int().sum(1).float() * s * r,
                "the products were taken in int8, and wrapped around: make both int32 before multiplying.",
            ),
            (
                lambda x, w, s, r: (w.to(torch.int16) * x).sum(1, dtype=torch.int16).float() * s * r,
                "the products fit into int16, their sum does not: it needs int32.",
            ),
            (lambda x, w, s, r: w8a8_one(x, w, s, 1.0), "the scale of x is missing."),
            (lambda x, w, s, r: w8a8_one(x, w, torch.ones_like(s), r), "the scales of the rows are missing."),
            (
                lambda x, w, s, r: w8a8_one(x, w, s[:1].expand_as(s), r),
                "every row has a scale of its own: scales_ptr + n.",
            ),
            (
                lambda x, w, s, r: w8a8_one(x[:256], w[:, :256], s, r),
                "that is the first block of columns alone: a loop must walk over K in steps of BLOCK.",
            ),
        ),
        hint_if_equal="close, but the sum is not exact: float32 holds whole numbers up to 2²⁴ only, so keep the total in int32.",
    ),
)
