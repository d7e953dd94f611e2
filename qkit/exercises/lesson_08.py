"""Exercises of lesson 08: a dot product of bytes, a sum that overflows, what fewer bits are worth, and a vector kernel."""

import numpy as np
import torch
from torch import Tensor

from qkit.exercises.core import Exercise
from qkit.exercises.draws import Draw
from qkit.exercises.lesson_08_kernel import CODES_DOT
from qkit.exercises.lesson_08_open import OPEN

__all__ = ["EXERCISES", "OPEN"]


def dot_w8(codes: Tensor, x: Tensor, scale: float, x_scale: float) -> float:
    """sum_k (q_k - 128) scale · x_k x_scale for codes uint8 [n] and x int8 [n]: exact up to the last multiplication."""
    return int((codes.int() - 128).mul(x.int()).sum()) * scale * x_scale


def careless_dot(codes: Tensor, x: Tensor) -> int:
    """sum_k codes_k x_k for codes uint8 [n] and x int8 [n], n even; neighbours are added first, two to an int16."""
    products = codes.to(torch.int16) * x.to(torch.int16)
    pairs = products[0::2] + products[1::2]
    return int(pairs.sum())


def overflow(n: int, largest_code: int, largest_x: int) -> tuple[Tensor, ...]:
    """(codes, x), each [n], on which `careless_dot` is wrong, with codes <= largest_code and |x| <= largest_x; or ().

    A pair is largest when all in it is. An int16 holds it while 2 · largest_code · largest_x is at most 32767.
    """
    if 2 * largest_code * largest_x <= 32767:
        return ()
    return torch.full((n,), largest_code, dtype=torch.uint8), torch.full((n,), largest_x, dtype=torch.int8)


def speed_up(bits: int, fewer_bits: int, group_size: int, features: int, gigabytes: float, fixed: float) -> float:
    """How many times faster one token gets through a square layer when its codes have `fewer_bits`.

    A call takes `fixed` microseconds, and reading codes and 16-bit scales at `gigabytes` (10^9 bytes) a second.
    """
    rate = 1000 * gigabytes  # bytes a microsecond
    times = [fixed + features**2 * (b + 16 / group_size) / 8 / rate for b in (bits, fewer_bits)]
    return times[0] / times[1]


def _what_it_does(found: object, arguments: tuple) -> object:
    """The answer with its tensors tried out: a sentence on what they do, since many are right."""
    n, largest_code, largest_x = arguments
    if isinstance(found, tuple | list) and len(found) == 0:
        return "nothing"
    if not (isinstance(found, tuple | list) and len(found) == 2):
        return found
    if not all(isinstance(part, Tensor | np.ndarray) for part in found):
        return found
    codes, x = (torch.as_tensor(part) for part in found)
    if codes.dtype != torch.uint8 or x.dtype != torch.int8:
        return f"codes of {codes.dtype} and x of {x.dtype}"
    if codes.shape != (n,) or x.shape != (n,):
        return f"tensors of shapes {list(codes.shape)} and {list(x.shape)}"
    if codes.int().max() > largest_code or x.int().abs().max() > largest_x:
        return f"a code of {codes.max()} and |x| of {x.int().abs().max()}"
    exact = int((codes.int() * x.int()).sum())
    return "a wrong sum" if careless_dot(codes, x) != exact else "the right sum"


def _pair(codes: int, x: int, n: int) -> tuple[Tensor, Tensor]:
    return torch.full((n,), codes, dtype=torch.uint8), torch.full((n,), x, dtype=torch.int8)


def _times(bits: int, fewer: int, size: float, features: int, gigabytes: float, fixed: float, unit: float = 8) -> float:
    times = [fixed + features**2 * (b + 16 / size) / unit / (1000 * gigabytes) for b in (bits, fewer)]
    return times[0] / times[1]


_RANDOM = torch.Generator().manual_seed(0)
_CODES = torch.randint(0, 256, (300,), generator=_RANDOM).to(torch.uint8)
_X = torch.randint(-127, 128, (300,), generator=_RANDOM).to(torch.int8)
_FULL = (torch.full((4096,), 255, dtype=torch.uint8), torch.full((4096,), 127, dtype=torch.int8))
_LARGE = torch.randint(200, 256, (2047,), generator=_RANDOM), torch.randint(100, 128, (2047,), generator=_RANDOM)
_TURNED = torch.randperm(2047, generator=_RANDOM)  # the same products again, below 0 and in another order; and 3 more
_CANCELLING = (
    torch.cat([_LARGE[0], _LARGE[0][_TURNED], torch.tensor([129])]).to(torch.uint8),
    torch.cat([_LARGE[1], -_LARGE[1][_TURNED], torch.tensor([3])]).to(torch.int8),
    0.5,
    2.0,
)
_LOW = (torch.zeros(1024, dtype=torch.uint8), torch.full((1024,), 127, dtype=torch.int8))


def _bytes_to_multiply(d: Draw) -> tuple[Tensor, Tensor, float, float]:
    n = d.whole(1, 4096)
    codes, x = d.integers(0, 255, n, dtype=torch.uint8), d.integers(-127, 127, n, dtype=torch.int8)
    return codes, x, d.size(1e-4, 1), d.size(1e-4, 1)


EXERCISES = (
    Exercise(
        name="08.1",
        minutes=6,
        difficulty="easy",
        hints=(
            "Which numbers can an int8 hold, and which a uint8? Where does 200 - 128 times 127 fit?",
            "Make both int32 before anything is subtracted or multiplied: codes.int(), x.int().",
            "The scales are the same for all k: where do they stand outside of the sum?",
        ),
        solution=dot_w8,
        cases=(
            (torch.tensor([129, 127, 130], dtype=torch.uint8), torch.tensor([10, 20, -3], dtype=torch.int8), 0.5, 0.25),
            (_CODES[:8], _X[:8], 0.01, 0.1),
            (_CODES, _X, 0.02, 0.05),
            (*_FULL, 0.001, 0.01),
            (*_LOW, 0.001, 0.01),
        ),
        edges={
            "one code": (torch.tensor([3], dtype=torch.uint8), torch.tensor([-128], dtype=torch.int8), 0.5, 0.5),
            "codes of 128, which stand for 0": (torch.full((9,), 128, dtype=torch.uint8), _X[:9], 0.5, 0.5),
            "large products that cancel": _CANCELLING,
        },
        draw=_bytes_to_multiply,
        rtol=1e-6,
        mistakes=(
            (
                lambda q, x, s, r: int((q.to(torch.int8) * x).sum()) * s * r,
                "a code above 127 does not fit into int8, and neither do the products: make both int32 first.",
            ),
            (
                lambda q, x, s, r: int(((q - 128) * x).sum()) * s * r,
                "q - 128 stays uint8, where -1 is 255: make the codes int32 before subtracting.",
            ),
            (
                lambda q, x, s, r: int(((q.int() - 128).to(torch.int8) * x).sum()) * s * r,
                "the products of two int8 are int8 again, and wrap around: multiply as int32.",
            ),
            (
                lambda q, x, s, r: int(((q.to(torch.int16) - 128) * x).sum(dtype=torch.int16)) * s * r,
                "the products fit into int16, their sum does not: 4096 of them need int32.",
            ),
            (
                lambda q, x, s, r: int((q.int() * x.int()).sum()) * s * r,
                "the zero point is missing: code q stands for q - 128.",
            ),
            (
                lambda q, x, s, r: int((q.int() * x.int()).sum() - 128) * s * r,
                "128 is subtracted once; each code has it: subtract 128 times the sum of x.",
            ),
            (lambda q, x, s, r: int(((q.int() - 127) * x.int()).sum()) * s * r, "the middle of 8 bits is 128."),
            (lambda q, x, s, r: float(((q.int() - 128) * x.int()).sum()), "the scales are missing."),
            (
                lambda q, x, s, r: int(((q.int() - 128) * x.int()).sum()) * s,
                "the scale of the activations is missing.",
            ),
            (
                lambda q, x, s, r: int(((q.int() - 128) * x.int()).sum()) * r,
                "the scale of the weight is missing.",
            ),
        ),
    ),
    Exercise(
        name="08.2",
        minutes=10,
        difficulty="medium",
        hints=(
            "What is the largest number an int16 holds? What is the largest pair of products?",
            "All codes as large as allowed, and all x: if 2 · code · x is at most 32767, nothing can overflow.",
            "torch.full makes a tensor of equal numbers; its dtype says whether they are codes or x. When is () right?",
        ),
        solution=overflow,
        seen=_what_it_does,
        cases=((2, 255, 127), (64, 255, 127), (2, 127, 127), (4, 255, 64), (4, 255, 65), (2, 140, 127), (6, 129, 127)),
        edges={
            "products that int16 just holds": (4, 129, 127),
            "products that it just does not hold": (4, 130, 127),
            "many small numbers": (4096, 20, 20),
        },
        draw=lambda d: (2 * d.whole(1, 40), d.whole(1, 255), d.whole(1, 127)),
        mistakes=(
            (
                lambda n, c, x: _pair(c, x, n),
                "where no input breaks it, return (): compare the largest pair with 32767.",
            ),
            (
                lambda n, c, x: (),
                "you find nothing at all. One product always fits into a signed int16; two together need not.",
            ),
            (
                lambda n, c, x: _pair(c, x, n) if n * c * x > 32767 else (),
                "only neighbours are added in an int16, whatever n is.",
            ),
            (
                lambda n, c, x: tuple(t[:2] for t in _pair(c, x, n)) if 2 * c * x > 32767 else (),
                "the right idea; n of each are asked for.",
            ),
            (
                lambda n, c, x: (
                    (_pair(c, x, n)[0], _pair(c, x, n)[1] * torch.tensor([1, -1]).repeat(n // 2).to(torch.int8))
                    if 2 * c * x > 32767
                    else ()
                ),
                "those two products cancel; neighbours must have the same sign.",
            ),
        ),
    ),
    Exercise(
        name="08.3",
        minutes=8,
        difficulty="easy",
        hints=(
            "A layer has features² weights; each reads b + 16 / group_size bits.",
            "10⁹ bytes a second are 1000 bytes a microsecond.",
            "Each layer takes a fixed time and one for its bytes: add first, divide last. Which sum stands above?",
        ),
        solution=speed_up,
        cases=(
            (4, 2, 128, 4096, 30.0, 0.0),
            (4, 2, 128, 4096, 30.0, 40.0),
            (4, 2, 32, 4096, 20.0, 10.0),
            (8, 4, 64, 384, 30.0, 40.0),
            (4, 3, 128, 11008, 60.0, 25.0),
        ),
        edges={
            "no fixed time": (8, 3, 64, 1024, 20.0, 0.0),
            "as many bits as before": (4, 4, 128, 1024, 20.0, 5.0),
            "groups of one": (4, 2, 1, 512, 20.0, 5.0),
            "bytes that are no whole number": (4, 3, 32, 3, 0.001, 0.0),
        },
        draw=lambda d: (
            d.whole(5, 8),
            d.whole(2, 4),
            d.one_of(16, 32, 64, 128),
            d.whole(100, 12000),
            d.size(5, 3000),
            d.real(0, 60),
        ),
        rtol=1e-6,
        mistakes=(
            (lambda b, c, g, n, r, f: b / c, "the scales are missing, and the fixed time: codes alone are not all."),
            (
                lambda b, c, g, n, r, f: _times(b, c, float("inf"), n, r, f),
                "the scales are missing: 16 bits for each group, in both layers.",
            ),
            (
                lambda b, c, g, n, r, f: (b + 16 / g) / (c + 16 / g),
                "the fixed time is missing: it does not shrink with the bits.",
            ),
            (
                lambda b, c, g, n, r, f: 1 / _times(b, c, g, n, r, f),
                "that is the wrong way round: a speed-up is the old time over the new one.",
            ),
            (lambda b, c, g, n, r, f: _times(b, c, g, n, r, f, unit=1), "those are bits: a byte has 8."),
            (lambda b, c, g, n, r, f: _times(b, c, g / 2, n, r, f), "scales have 16 bits, not 32."),
            (
                lambda b, c, g, n, r, f: _times(b, c, g, n, r / 1000, f),
                "10⁹ bytes a second are 1000 bytes a microsecond, not one.",
            ),
            (
                lambda b, c, g, n, r, f: _times(b, c, g, n, r, f * 1000),
                "10⁹ bytes a second are 1000 bytes a microsecond, not a million.",
            ),
            (
                lambda b, c, g, n, r, f: _times(b, c, g, n, r, f) if f == 0 else f + (b + 16 / g) / (c + 16 / g),
                "the fixed time belongs to both calls, before dividing.",
            ),
        ),
    ),
    CODES_DOT,
)
