"""Exercises of lesson 01: scale and zero point, quantizing, and how many bits a tolerance asks for."""

import math
from collections.abc import Callable

import torch

from qkit.exercises.core import Exercise
from qkit.exercises.draws import Draw, off_halves
from qkit.exercises.open_task import OpenTask, percent_off, the_layer


def scale_and_zero_point(lo: float, hi: float, bits: int) -> tuple[float, int]:
    """Scale and zero point that lay [lo, hi], with zero included, on the unsigned codes 0 .. 2^bits - 1."""
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    scale = (hi - lo) / (2**bits - 1)
    return scale, round(-lo / scale)


def quantize(w: torch.Tensor, scale: float, zero_point: int, bits: int) -> torch.Tensor:
    """Codes 0 .. 2^bits - 1: round half to even, add the zero point, clamp."""
    return (torch.round(w / scale) + zero_point).clamp(0, 2**bits - 1)


def bits_needed(lo: float, hi: float, tolerance: float) -> int:
    """The fewest bits with which every number in [lo, hi] (zero inside) comes back with an error of at most `tolerance`."""
    return math.ceil(math.log2((hi - lo) / (2 * tolerance) + 1))


def one_grid_a_row(answer: Callable) -> tuple[float, float] | None:
    """What `answer`, a function of a weight [N, K] that gives a step and a zero point [N, 1] for each row, makes of a layer.

    Returns:
        4 bits, and the error in percent; None where the function gives None.

    Raises:
        ValueError: a step that is not above 0, a zero point that is no code of 4 bits.
    """
    weight = the_layer()
    given = answer(weight.clone())
    if given is None:
        return None
    steps, zeros = (torch.as_tensor(part).double() for part in given)
    for name, part in (("steps", steps), ("zero points", zeros)):
        if part.shape != (len(weight), 1):
            raise ValueError(f"the {name} are {list(part.shape)}; give one for each row, [{len(weight)}, 1]")
    if not (steps > 0).all() or not steps.isfinite().all():
        raise ValueError("a step is not above 0; every row needs one")
    if not ((zeros == zeros.round()) & (zeros >= 0) & (zeros <= 15)).all():
        raise ValueError("a zero point is no whole number from 0 to 15; round and clamp it")
    codes = (torch.round(weight.double() / steps) + zeros).clamp(0, 15)
    return 4.0, percent_off(weight, steps * (codes - zeros))


def _zero_by(rounding, lo: float, hi: float, bits: int) -> tuple[float, int]:
    scale = scale_and_zero_point(lo, hi, bits)[0]
    return scale, rounding(-min(lo, 0.0) / scale)


def _from(lo: float, hi: float, steps: int) -> tuple[float, int]:
    scale = (hi - lo) / steps
    return scale, round(-lo / scale)


def _weight_and_grid(d: Draw) -> tuple[torch.Tensor, float, int, int]:
    bits, w = d.whole(2, 8), d.weight(d.whole(1, 5), d.whole(1, 9))
    scale = float(w.abs().max()) / 2**bits * d.real(1, 3) + 1e-6
    return off_halves(w if d.whole(0, 1) else w[0], scale), scale, d.whole(0, 2**bits - 1), bits


EXERCISES = (
    Exercise(
        name="01.1",
        minutes=8,
        difficulty="easy",
        hints=(
            "Widen the range first: lo is never above 0, hi never below. They are plain numbers: min(lo, 0.0), max(hi, 0.0).",
            "2^b codes have 2^b - 1 steps between them.",
            "z is the code on which 0.0 falls. lo falls on code 0; how many steps above it is 0.0?",
        ),
        solution=scale_and_zero_point,
        cases=((-1.0, 0.9, 8), (-0.3, 1.0, 4), (-0.5, 1.5, 4), (0.25, 1.0, 4), (-3.0, -1.0, 3), (-0.72, 0.49, 2)),
        edges={
            "a zero point that lies halfway": (-1.25, 0.25, 2),
            "a range that begins at 0": (0.0, 3.0, 4),
            "a range that ends at 0": (-2.0, 0.0, 4),
            "all numbers above 0": (5.0, 6.0, 8),
            "all numbers below 0": (-6.0, -5.0, 8),
        },
        draw=lambda d: (*sorted(d.size(1e-4, 100) * d.one_of(1, -1) for _ in range(2)), d.whole(2, 8)),
        mistakes=(
            (
                lambda lo, hi, bits: _from(min(lo, 0.0), max(hi, 0.0), 2**bits),
                "2^b codes have 2^b - 1 steps between them; divided by 2^b the step is too small: hi falls on a code too many.",
            ),
            (
                lambda lo, hi, bits: _from(lo, hi, 2**bits - 1),
                "zero must be inside the range: without min(lo, 0) and max(hi, 0) the zero point falls off the codes.",
            ),
            (
                lambda lo, hi, bits: _zero_by(math.floor, lo, hi, bits),
                "the zero point is cut off there: round it to the nearest.",
            ),
            (
                lambda lo, hi, bits: _zero_by(math.ceil, lo, hi, bits),
                "the zero point is rounded up there: round to the nearest.",
            ),
            (
                lambda lo, hi, bits: scale_and_zero_point(lo, hi, bits)[::-1],
                "the two are swapped: return the scale first, then the zero point.",
            ),
            (
                lambda lo, hi, bits: _zero_by(lambda z: -round(z), lo, hi, bits),
                "the zero point has the wrong sign: lo falls on code 0, so 0.0 falls on -lo / s.",
            ),
            (
                lambda lo, hi, bits: _zero_by(lambda z: z, lo, hi, bits),
                "the zero point is a code, a whole number: round it, or 0.0 is not exact.",
            ),
            (
                lambda lo, hi, bits: (
                    2 * max(abs(lo), abs(hi)) / (2**bits - 1),
                    2 ** (bits - 1),
                ),
                "that is the symmetric mapping; here lo and hi have a reach each.",
            ),
        ),
    ),
    Exercise(
        name="01.2",
        minutes=6,
        difficulty="easy",
        hints=(
            "Which of torch.round, torch.floor and torch.trunc errs by half a step at most?",
            "Four things in a row: steps, whole steps, codes, codes that exist. The zero point comes in at the third.",
        ),
        solution=quantize,
        cases=(
            (torch.tensor([-1.0, 0.0, 0.26, 1.0]), 0.5, 2, 3),
            (torch.tensor([0.25, 0.75, 1.25, 1.75]), 0.5, 1, 4),
            (torch.tensor([-9.0, 9.0, 0.1]), 0.1, 8, 4),
            (torch.tensor([[-0.33, 0.2], [0.9, -0.04]]), 0.01, 100, 8),
        ),
        edges={
            "numbers that lie halfway": (torch.arange(-9, 10) / 4, 0.5, 7, 4),
            "one number": (torch.tensor([0.7]), 0.2, 3, 3),
            "zeros": (torch.zeros(2, 3), 0.1, 5, 3),
            "codes that all fall off the upper end": (torch.tensor([5.0, 50.0]), 0.1, 0, 2),
            "codes that all fall off the lower end": (torch.tensor([-5.0, -50.0]), 0.1, 3, 2),
        },
        draw=_weight_and_grid,
        rtol=0.0,
        mistakes=(
            (
                lambda w, s, z, b: (torch.trunc(w / s) + z).clamp(0, 2**b - 1),
                "that truncates: the error reaches a whole step instead of half. Round.",
            ),
            (
                lambda w, s, z, b: (torch.floor(w / s) + z).clamp(0, 2**b - 1),
                "that takes the floor: every error points the same way. Round to the nearest.",
            ),
            (
                lambda w, s, z, b: torch.round(w / s + z).clamp(0, 2**b - 1),
                "round w / s first, then add the zero point: with an odd zero point the two differ at ties.",
            ),
            (lambda w, s, z, b: (w / s + z).clamp(0, 2**b - 1), "codes are whole numbers: round w / s."),
            (
                lambda w, s, z, b: torch.round(w / s) + z,
                "codes outside 0 .. 2^bits - 1 do not exist: clamp after adding the zero point.",
            ),
            (
                lambda w, s, z, b: (torch.floor(w / s + 0.5) + z).clamp(0, 2**b - 1),
                "ties go up there; round half to even (torch.round), or a bias is added.",
            ),
            (
                lambda w, s, z, b: (torch.round(w / s) - z).clamp(0, 2**b - 1),
                "the zero point is added when quantizing, and subtracted when dequantizing.",
            ),
            (
                lambda w, s, z, b: torch.round(w / s).clamp(0, 2**b - 1) + z,
                "clamp last: the zero point moves the codes, and only then must they fit.",
            ),
        ),
    ),
    Exercise(
        name="01.3",
        minutes=8,
        difficulty="medium",
        hints=(
            "The largest error is half a step.",
            "Write half a step as a formula of b. Solve for b with log2, or try b = 1, 2, 3 ... until it is small enough.",
        ),
        solution=bits_needed,
        cases=(
            (-1.0, 1.0, 0.1),
            (-1.0, 1.0, 0.01),
            (-4.0, 3.0, 0.5),
            (0.0, 1.0, 0.07),
            (-2.0, 2.0, 0.25),
            (-1.0, 1.0, 0.068),
        ),
        edges={
            "a tolerance that is met exactly": (0.0, 1.5, 0.25),
            "a tolerance that eight codes meet exactly": (-1.0, 0.75, 0.125),
            "a tolerance that one bit meets": (-1.0, 1.0, 1.5),
            "a range that ends at 0": (-3.0, 0.0, 0.01),
        },
        draw=lambda d: (-d.size(0.01, 50), d.size(0.01, 50), d.size(1e-4, 1e-2)),
        mistakes=(
            (
                lambda lo, hi, t: math.ceil(math.log2((hi - lo) / t + 1)),
                "that keeps a whole step within the tolerance; rounding errs by half a step, so you ask for a bit too many.",
            ),
            (
                lambda lo, hi, t: math.floor(math.log2((hi - lo) / (2 * t) + 1)),
                "rounding the bits down misses the tolerance: round up.",
            ),
            (
                lambda lo, hi, t: math.floor(math.log2((hi - lo) / (2 * t) + 1)) + 1,
                "an error of exactly the tolerance is allowed: at most is <=, not <.",
            ),
            (
                lambda lo, hi, t: round(math.log2((hi - lo) / (2 * t) + 1)),
                "rounding the bits to the nearest can miss the tolerance: round up.",
            ),
            (
                lambda lo, hi, t: math.ceil(math.log2((hi - lo) / (2 * t))),
                "2^b codes have 2^b - 1 steps, not 2^b: it matters at few bits.",
            ),
        ),
    ),
)

OPEN = OpenTask("01", one_grid_a_row, budget=4.0, to_beat=12.63, cost="bits a code", loss="% error")
