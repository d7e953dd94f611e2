"""Lesson 08's kernel: exact and vector code passes, whatever the processor; each other kind is told what it is."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba import njit

from qkit import exercises
from qkit.exercises.lesson_08_kernel import codes_dot
from qkit_kernels.numba import steps


def one_by_one(packed, x, y):
    for row in range(len(y)):
        total = 0
        for k in range(2 * packed.shape[1]):
            byte = packed[row, k // 2]
            code = byte & 15 if k % 2 == 0 else byte >> 4
            total += (code - 8) * x[k % 2, k // 2]
        y[row] = total


def in_32_bits(packed, x, y):
    eight = np.int32(8)
    for row in range(len(packed)):
        total = np.int32(0)
        for i in range(packed.shape[1]):
            byte = np.int32(packed[row, i])
            low, high = np.int32(byte & np.int32(15)), np.int32(byte >> np.int32(4))
            total += np.int32((low - eight) * np.int32(x[0, i]) + (high - eight) * np.int32(x[1, i]))
        y[row] = total


def in_floats(packed, x, y):
    for row in range(len(y)):
        total = np.float32(0)
        for i in range(packed.shape[1]):
            total += np.float32(((packed[row, i] & 15) - 8) * x[0, i] + ((packed[row, i] >> 4) - 8) * x[1, i])
        y[row] = total


def in_16_bits(packed, x, y):
    for row in range(len(y)):
        total = np.int16(0)
        for i in range(packed.shape[1]):
            byte = packed[row, i]
            total = np.int16(total + ((byte & 15) - 8) * x[0, i] + ((byte >> 4) - 8) * x[1, i])
        y[row] = total


def swapped(packed, x, y):
    for row in range(len(y)):
        total = 0
        for i in range(packed.shape[1]):
            total += ((packed[row, i] >> 4) - 8) * x[0, i] + ((packed[row, i] & 15) - 8) * x[1, i]
        y[row] = total


def no_zero_point(packed, x, y):
    for row in range(len(y)):
        total = 0
        for i in range(packed.shape[1]):
            total += (packed[row, i] & 15) * x[0, i] + (packed[row, i] >> 4) * x[1, i]
        y[row] = total


def whole_sixteens(packed, x, y):
    for row in range(len(y)):
        total = 0
        for i in range(packed.shape[1] // 16 * 16):
            total += ((packed[row, i] & 15) - 8) * x[0, i] + ((packed[row, i] >> 4) - 8) * x[1, i]
        y[row] = total


def one_row_more(packed, x, y):
    codes = packed.shape[1]
    for row in range(len(y)):
        total = 0
        for i in range(codes):
            total += ((packed[row, i] & 15) - 8) * x[0, i] + ((packed[row, i] >> 4) - 8) * x[1, i]
        y[row] = total
    y[-len(y) - 1] = 0  # Numba looks at no bounds


def in_place(packed, x, y):
    for row in range(len(y)):
        total = 0
        for i in range(packed.shape[1]):
            high = packed[row, i] >> 4
            packed[row, i] &= 15
            total += (packed[row, i] - 8) * x[0, i] + (high - 8) * x[1, i]
        y[row] = total


def no_types(packed, x, y):
    y[0] = packed + "a"


@pytest.mark.parametrize("answer", [codes_dot, in_32_bits])
def test_an_exact_kernel_of_vectors_passes(answer):
    verdict = exercises.check("08.4", njit(answer))
    assert verdict.passed is True and "exact, and vector code" in verdict.message


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (one_by_one, "exact, but one number at a time"),
        (in_floats, "with packed [2, 20001] and x [2, 20001] it stores"),
        (in_16_bits, "wraps around at 32767"),
        (swapped, "the low half of a byte goes with x[0]"),
        (no_zero_point, "the zero point is missing"),
        (whole_sixteens, "with packed [2, 3] and x [2, 3] it stores 0 in y[0]"),
        (one_row_more, "it writes 1 numbers that lie outside of y"),
        (in_place, "it writes into what it was given to read"),
        (no_types, "it raises TypingError"),
    ],
)
def test_any_other_is_told_what_it_is(answer, words):
    verdict = exercises.check("08.4", njit(answer))
    assert verdict.passed is False and words in verdict.message


def test_nothing_attempted_and_no_kernel_are_told_apart():
    @njit
    def empty(packed, x, y): ...

    for answer in (None, ..., empty):
        assert exercises.check("08.4", answer).passed is None
    assert "a function under @njit, not function" in exercises.check("08.4", codes_dot).message


def test_the_solution_is_shown_as_a_kernel(capsys):
    exercises.solution("08.4")
    assert capsys.readouterr().out.startswith("@njit\ndef codes_dot(packed, x, y):")


def test_the_verdict_is_the_same_without_the_widest_registers():
    program = (
        "from numba import njit\nfrom qkit import exercises\nimport test_numba_kernel as answers\n"
        "for f in (answers.codes_dot, answers.in_32_bits, answers.one_by_one):\n"
        "    print(exercises.check('08.4', njit(f)).passed)\n"
    )
    environment = {**os.environ, **steps.processor_without("avx512", "vnni", "amx")}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True", "False"], done.stderr[-2000:]
