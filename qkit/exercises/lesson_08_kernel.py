"""The kernel of lesson 08's exercises: a loop for Numba that must be exact, on any shape, and become vector code.

What is asked for is read from what LLVM made of the answer, not from a clock: the same on AVX2, AVX-512 and Arm, and on a machine
that does something else at the moment.
"""

import inspect
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from qkit.exercises.core import KERNEL_LEFT, Exercise, Verdict, unwritten

AROUND = 64  # numbers on either side of the result
UNTOUCHED = -1_234_567_891  # stands where nothing was stored
VECTOR_PRODUCT = r"= mul [^<\n]*<\d+ x i(8|16|32)>|@llvm\.\S*(pmadd|pmul|vpdp|dot|mull)\S*\("  # in LLVM's own words
WIDE_PRODUCT = r"= mul [^<\n]*<\d+ x i64>"


def codes_dot(packed, x, y):
    """y[row] = sum of (q - 8) x over a row: no branch, whole numbers, and low and high halves each with an x of their own."""
    for row in range(len(y)):
        total = 0
        for i in range(packed.shape[1]):
            byte = packed[row, i]
            total += ((byte & 15) - 8) * x[0, i] + ((byte >> 4) - 8) * x[1, i]
        y[row] = total


def exactly(packed: np.ndarray, x: np.ndarray) -> np.ndarray:
    """int64 [rows]: sum over i of (low - 8) x[0, i] + (high - 8) x[1, i], for packed uint8 [rows, n] and x int8 [2, n]."""
    low, high = (packed & 15).astype(np.int64) - 8, (packed >> 4).astype(np.int64) - 8
    return low @ x[0].astype(np.int64) + high @ x[1].astype(np.int64)


def _swapped(packed: np.ndarray, x: np.ndarray) -> np.ndarray:
    return exactly(packed, x[::-1])


def _no_zero_point(packed: np.ndarray, x: np.ndarray) -> np.ndarray:
    return exactly(packed, x) + 8 * x.astype(np.int64).sum()


def _zero_point_once(packed: np.ndarray, x: np.ndarray) -> np.ndarray:
    return _no_zero_point(packed, x) - 8


def _low_only(packed: np.ndarray, x: np.ndarray) -> np.ndarray:
    return exactly(packed & 15 | 128, x)


def _in_16_bits(packed: np.ndarray, x: np.ndarray) -> np.ndarray:
    return exactly(packed, x).astype(np.int16).astype(np.int64)


def _case(seed: int, rows: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (rows, n), dtype=np.uint8), random.integers(-127, 128, (2, n)).astype(np.int8)


def _extremes(byte: int, x: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full((2, n), byte, np.uint8), np.full((2, n), x, np.int8)


class _Stray(Exception):
    """What a kernel did to memory that it must leave alone."""


@dataclass(frozen=True)
class NumbaExercise(Exercise):
    """A kernel under @njit; `solution` is its function, `mistakes` are what wrong ones store, in NumPy."""

    LEFT = KERNEL_LEFT

    def source(self) -> str:
        """The solution as one would write it in the lesson."""
        return "@njit\n" + inspect.getsource(self.solution)

    def check(self, answer: object) -> Verdict:
        """Judge `answer`, a function under @njit: exact first, then vector code."""
        if unwritten(answer):
            return self._not_attempted()
        if not hasattr(answer, "py_func") or not hasattr(answer, "inspect_llvm"):
            return self._not_yet(
                f"give the kernel itself, a function under @njit, not {type(answer).__name__} {answer!r}."
            )
        stored = []
        for packed, x in self.cases:
            shapes = f"packed {list(packed.shape)} and x {list(x.shape)}"
            try:
                stored.append(_stored(answer, packed, x))
            except _Stray as stray:
                return self._not_yet(f"with {shapes} {stray}.")
            except Exception as error:  # a learner's kernel may raise anything, and wants to know what
                first = next((line for line in str(error).splitlines() if line.strip()), "")
                return self._not_yet(f"with {shapes} it raises {type(error).__name__}: {first}")
        if all((one == UNTOUCHED).all() for one in stored):
            return self._not_attempted()
        inexact = self._inexact(stored)
        return self._vectors(answer) if inexact is None else inexact

    def _inexact(self, stored: list[np.ndarray]) -> Verdict | None:
        """None: all is exact."""
        expected = [exactly(*case) for case in self.cases]
        if all(map(np.array_equal, stored, expected)):
            return None
        for mistake, sentence in self.mistakes:
            if all(np.array_equal(one, mistake(*case)) for one, case in zip(stored, self.cases, strict=True)):
                return self._not_yet(sentence)
        got, wanted, (packed, x) = next(
            one for one in zip(stored, expected, self.cases, strict=True) if not np.array_equal(*one[:2])
        )
        row = int(np.argmax(got != wanted))
        left = "nothing" if got[row] == UNTOUCHED else str(got[row])
        return self._not_yet(
            f"with packed {list(packed.shape)} and x {list(x.shape)} it stores {left} in y[{row}], expected {wanted[row]}."
        )

    def _vectors(self, kernel: Any) -> Verdict:
        made = "\n".join(kernel.inspect_llvm(signature) for signature in kernel.signatures)
        if re.search(VECTOR_PRODUCT, made):
            return Verdict(True, f"{self.name} right: exact, and vector code.")
        if re.search(WIDE_PRODUCT, made):
            return self._not_yet("exact, and vector code, but of 64-bit numbers: products of bytes fit into 32.")
        return self._not_yet(
            "exact, but one number at a time: LLVM found no product of vectors. What forbids it? A branch for each code, or "
            "a sum of floats, whose order it must keep."
        )


def _stored(kernel: Any, packed: np.ndarray, x: np.ndarray) -> np.ndarray:
    """What the kernel stores, int32 [rows]; y lies amid other numbers, which must stay as they are."""
    given = packed.copy(), x.copy()
    whole = np.full(len(packed) + 2 * AROUND, UNTOUCHED, np.int32)
    kernel(*given, whole[AROUND:-AROUND])
    if not all(map(np.array_equal, given, (packed, x))):
        raise _Stray("it writes into what it was given to read")
    if (astray := int((whole[:AROUND] != UNTOUCHED).sum() + (whole[-AROUND:] != UNTOUCHED).sum())) > 0:
        raise _Stray(f"it writes {astray} numbers that lie outside of y")
    return whole[AROUND:-AROUND].copy()


CODES_DOT = NumbaExercise(
    name="08.4",
    minutes=12,
    difficulty="hard",
    hints=(
        "What does the loop ask for every single code, and what has it to do with k?",
        "Walk over bytes, not over codes: a byte has one code for x[0] and one for x[1].",
        "A sum of whole numbers may be taken in any order; a sum of floats may not, unless you allow it.",
    ),
    solution=codes_dot,
    cases=(
        _case(0, 2, 3),
        _case(1, 7, 64),
        _case(2, 5, 129),
        _case(3, 3, 2047),
        _case(4, 1, 1),
        _extremes(0xFF, 127, 20_001),  # a float32 has not enough digits for it
        _extremes(0x00, -127, 4096),
        _extremes(0xF0, 127, 77),
    ),
    mistakes=(
        (_swapped, "the low half of a byte goes with x[0], the high half with x[1]."),
        (_no_zero_point, "the zero point is missing: code q stands for q - 8."),
        (_zero_point_once, "8 is subtracted once a row; each code has it."),
        (_low_only, "the high halves are missing: each byte holds two codes."),
        (_in_16_bits, "the sum wraps around at 32767: make it a number of 32 bits."),
    ),
)
