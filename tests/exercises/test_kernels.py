"""The exercises that ask for a kernel: right ones pass, wrong ones are told what is wrong, and no address goes astray.

On Triton's interpreter; `tests/conftest.py` says so before Triton is imported.
"""

import pytest
import torch

from grids import thinned
from qkit import exercises
from qkit.exercises import kernels as machinery
from qkit.exercises.kernels import KernelExercise

pytest.importorskip("triton", reason="Triton is not installed: pip install 'qkit[gpu]'")

from kernel_mutants import kernel, mutants

NAMES = sorted(name for name, exercise in exercises.ALL.items() if isinstance(exercise, KernelExercise))
SOURCE = {name: exercises.ALL[name].source() for name in NAMES}

# The same product otherwise: q and the zero point apart, as section 4 of lesson 08 has it; x first made whole; clamped addresses
OTHERWISE = {
    "09.1": """
@triton.jit
def scales(x, out, M, K, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    for r in range(ROWS):
        m = tl.program_id(0) * ROWS + r
        if m < M:
            k = tl.minimum(tl.arange(0, WIDTH), K - 1)
            v = tl.load(x + m * K + k)
            tl.store(out + m, tl.maximum(tl.max(v, 0), -tl.min(v, 0)) / 127)
""",
    "09.2": """
@triton.jit
def product(x, packed, scales, zeros, y, N, K, GROUP: tl.constexpr, ROWS: tl.constexpr):
    for r in range(ROWS):
        n, total = tl.program_id(0) * ROWS + r, 0.0
        if n < N:
            for g in range(K // GROUP):
                k = g * GROUP + tl.arange(0, GROUP)
                q = (tl.load(packed + n * (K // 2) + k // 2).to(tl.int32) >> (k % 2 * 4)) & 15
                v = tl.load(x + k)
                z = tl.load(zeros + n * (K // GROUP) + g).to(tl.float32)
                total += tl.load(scales + n * (K // GROUP) + g) * (tl.sum(q * v, 0) - z * tl.sum(v, 0))
            tl.store(y + n, total)
""",
    "09.4": """
@triton.jit
def product(x, codes, scales, x_scale, y, N, K, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    for r in range(ROWS):
        n, total = tl.program_id(0) * ROWS + r, 0
        if n < N:
            for first in range(0, K, BLOCK):
                k = first + tl.arange(0, BLOCK)
                a = tl.load(x + k, mask=k < K, other=0).to(tl.int32)
                total += tl.sum(a * tl.load(codes + n * K + k, mask=k < K, other=0), 0)
            tl.store(y + n, total * (tl.load(scales + n) * x_scale))
""",
}

CODES = "(byte & 15).to(tl.float32) - z, (byte >> 4).to(tl.float32) - z"
ZERO = "tl.load(zeros_ptr + n * (K // GROUP) + g, mask=live, other=0).to(tl.float32)[:, None]"
AT_END = "tl.store(y_ptr + n"

# (exercise, what stands in the solution, what a learner may write, words of the message)
WRONG = [
    ("09.1", "mask=inside, other=0.0", "mask=(k < K)[None, :], other=0.0", "reads 3 numbers behind the end of x"),
    ("09.1", "mask=inside, other=0.0", "mask=(m < M)[:, None], other=0.0", "reads a number behind the end of x"),
    ("09.1", ", mask=inside, other=0.0", "", "behind the end of x"),
    ("09.1", "other=0.0", "other=1.0", "they must not count"),
    ("09.1", ", other=0.0", "", "a lane that is masked off holds anything"),
    ("09.1", ", mask=m < M", "", "writes a number behind the end of the result"),
    ("09.1", "mask=m < M)", "mask=m < M - 1)", "1 of 3 were not stored"),
    ("09.1", "mask=m < M)", "mask=m <= M)", "writes a number behind the end of the result"),
    ("09.1", "tl.max(tl.abs(x), 1)", "tl.max(x, 1)", "not the largest size"),
    ("09.1", " / 127", "", "divide by 127"),
    ("09.1", "/ 127", "/ 128", "code 128 does not exist"),
    ("09.1", "tl.max(tl.abs(x), 1)", "tl.max(tl.abs(x), 0)", "it raises"),
    ("09.1", "[:, None] & (k < K)", "[:, None] and (k < K)", "behind the end of x"),
    ("09.1", "x_ptr + m[:, None] * K", "x_ptr + m[:, None] * WIDTH", "behind the end of x"),
    ("09.2", ZERO, "8", "zeros_ptr is not used"),
    ("09.2", ".to(tl.float32)[:, None]", ".to(tl.float32)[:, None] + 8", "z takes the place of 8"),
    ("09.2", CODES, CODES.replace("-", "+"), "code z stands for 0"),
    ("09.2", "other=0).to(tl.float32)[:, None]", "other=0)[:, None]", None),
    ("09.2", CODES, "(byte & 15) - z.to(tl.uint8), (byte >> 4) - z.to(tl.uint8)", "where -1 is 255"),
    ("09.2", "zeros_ptr + n * (K // GROUP) + g", "zeros_ptr + n * (K // GROUP)", "the address must move with g"),
    ("09.2", "zeros_ptr + n * (K // GROUP) + g", "zeros_ptr + g * N + n", "with x"),
    ("09.2", "y += s * tl.sum(low * even + high * odd, 1)", "y += tl.sum(low * even + high * odd, 1)", "the scale is missing"),
    ("09.2", "low * even + high * odd", "low * odd + high * even", "expected"),
    ("09.2", "tl.store(y_ptr + n, y, mask=live)", "tl.store(y_ptr + n, y)", "behind the end of the result"),
    ("09.2", ZERO, ZERO.replace("live", "n <= N"), "behind the end of zeros"),
    ("09.4", ".to(tl.int32)", "", "products were taken in int8"),
    ("09.4", ".to(tl.int32)", ".to(tl.float32)", "keep the total in int32"),
    ("09.4", "total = tl.zeros((ROWS,), tl.int32)", "total = tl.zeros((ROWS,), tl.float32)", "keep the total in int32"),
    ("09.4", " * x_scale", "", "the scale of x is missing"),
    ("09.4", " * scale * x_scale", " * x_scale", "scales of the rows are missing"),
    ("09.4", "tl.load(scales_ptr + n, mask=n < N, other=0.0)", "tl.load(scales_ptr)", "every row has a scale of its own"),
    ("09.4", "range(0, K, BLOCK)", "range(0, BLOCK, BLOCK)", "a loop must walk over K"),
    ("09.4", "range(0, K, BLOCK)", "range(0, K - BLOCK, BLOCK)", "expected"),
    ("09.4", "mask=k < K, other=0)", "other=0)", "it raises"),
    ("09.4", "& (k < K)[None, :]", "", "behind the end of codes"),
    ("09.4", "n[:, None] * K", "n[:, None] * N", "expected"),
    ("09.4", AT_END, f"tl.store(x_ptr + n, n.to(tl.int8), mask=n < N)\n    {AT_END}", "writes into what it was given"),
]  # fmt: skip

# What a mutant changes without changing a result: rows that do not exist are not stored, whatever they hold; 0 times anything
# is 0 where one side has its `other`; a code is a whole number in every type that holds it.
ALIKE = {
    "09.1": set(),
    "09.2": {"without other", "0 -> -1", "0 -> 1", "float32 -> int32"},
    "09.4": {"without other", "0 -> -1", "0 -> 1", "float32 -> int32", "int32 -> int16", "int32 -> int8"},
}


@pytest.mark.parametrize("name", NAMES)
def test_the_solution_passes_and_so_does_one_written_otherwise(name, tmp_path):
    for number, source in enumerate((SOURCE[name], OTHERWISE[name])):
        verdict = exercises.check(name, kernel(source, tmp_path, number))
        assert verdict.passed is True and repr(verdict) == f"{name} right."


@pytest.mark.parametrize(("name", "old", "new", "words"), WRONG, ids=[f"{w[0]}-{n}" for n, w in enumerate(WRONG)])
def test_a_wrong_kernel_is_told_what_is_wrong(name, old, new, words, tmp_path):
    assert old in SOURCE[name]
    verdict = exercises.check(name, kernel(SOURCE[name].replace(old, new), tmp_path))
    if words is None:  # the same numbers in another type
        assert verdict.passed is True
    else:
        assert verdict.passed is False and words in verdict.message


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("name", thinned(NAMES, ("09.1", "09.4")))
def test_of_all_small_changes_only_those_pass_that_change_no_result(name, tmp_path):
    alive, count = [], 0
    for count, (what, source) in enumerate(mutants(SOURCE[name]), 1):
        if exercises.check(name, kernel(source, tmp_path, count)).passed is not False:
            alive.append(what)
    assert count > 20
    assert not [what for what in alive if not any(what.endswith(alike) for alike in ALIKE[name])]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_kernel_is_told_what_one_is(name):
    assert "a function under @triton.jit" in exercises.check(name, lambda *a: 0).message
    for answer in (None, ...):
        assert exercises.check(name, answer).passed is None


@pytest.mark.parametrize("name", NAMES)
def test_a_kernel_that_stores_nothing_was_not_attempted(name, tmp_path):
    head = SOURCE[name].splitlines()[1]
    verdict = exercises.check(name, kernel(f"@triton.jit\n{head}\n    pass\n", tmp_path))
    assert verdict.passed is None and "stores nothing" in verdict.message


def test_without_triton_it_says_where_triton_is(monkeypatch, capsys):
    monkeypatch.setattr(machinery.importlib.util, "find_spec", lambda name: None)
    verdict = exercises.check("09.1", print)
    assert verdict.passed is None and "Triton exists for Linux only" in verdict.message
    exercises.solution("09.1")
    assert capsys.readouterr().out.startswith("@triton.jit\ndef token_scales(")


def test_a_kernel_made_for_a_card_needs_one(monkeypatch):
    from triton.runtime.jit import JITFunction

    made = JITFunction.__new__(JITFunction)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    verdict = exercises.check("09.1", made)
    assert verdict.passed is None and "restart the notebook's kernel" in verdict.message


def test_nothing_is_read_or_written_astray(tmp_path):
    lines = "@triton.jit", "def copy(x, y, n, BLOCK: tl.constexpr):", "    i = tl.arange(0, BLOCK)"
    source = "\n".join([*lines, "    tl.store(y + i, tl.load(x + i, mask=i < n))\n"])
    copy, whole = kernel(source, tmp_path), torch.zeros(64)
    x, y = torch.ones(8), whole[16:24]
    with machinery.watched({"x": x, "y": y}):
        copy[(1,)](x, y, 8, BLOCK=8)
        with pytest.raises(Exception) as raised:
            copy[(1,)](x, y, 8, BLOCK=16)
    assert "writes 8 numbers behind the end of y" in str(raised.value.__cause__)
    assert whole.tolist() == [0.0] * 16 + [1.0] * 8 + [0.0] * 40
    copy[(1,)](x, y, 8, BLOCK=16)  # and then it is as before
    assert whole[24:32].tolist() == [0.0] * 8
