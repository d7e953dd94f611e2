"""Lesson 09's open task: who moves fewer bytes beats it, and nobody who is wrong, looks astray or leaves the work to one program.

On Triton's interpreter; `tests/conftest.py` says so before Triton is imported.
"""

import pytest

import shelf
from grids import thinned
from qkit import exercises
from scored import scored

pytest.importorskip("triton", reason="Triton is not installed: pip install 'qkit[gpu]'")

from kernel_mutants import kernel, mutants

PARTS = """
@triton.jit
def product(x_ptr, packed_ptr, scales_ptr, y_ptr, M, N, K, GROUP: tl.constexpr, EACH, STEPS, TOKENS: tl.constexpr,
            ROWS: tl.constexpr):
    m, first = tl.arange(0, TOKENS), tl.program_id(0) * EACH
    n = first + tl.arange(0, ROWS)
    live = (n < N) & (n < first + EACH)
    pair = tl.arange(0, GROUP // 2)
    y = tl.zeros((TOKENS, ROWS), tl.float32)
    for g in range(tl.program_id(1) * STEPS, tl.minimum((tl.program_id(1) + 1) * STEPS, K // GROUP)):
        at = n[:, None] * (K // 2) + g * (GROUP // 2) + pair[None, :]
        byte = tl.load(packed_ptr + at, mask=live[:, None], other=0)
        low, high = (byte & 15).to(tl.float32) - 8, (byte >> 4).to(tl.float32) - 8
        at_x = x_ptr + m[:, None] * K + g * GROUP + 2 * pair[None, :]
        even = tl.load(at_x, mask=(m < M)[:, None], other=0)
        odd = tl.load(at_x + 1, mask=(m < M)[:, None], other=0)
        s = tl.load(scales_ptr + n * (K // GROUP) + g, mask=live, other=0).to(tl.float32)
        y += s[None, :] * (tl.dot(even, tl.trans(low)) + tl.dot(odd, tl.trans(high)))
    tl.atomic_add(y_ptr + m[:, None] * N + n[None, :], y, mask=(m < M)[:, None] & live[None, :])
"""


STEPS = "range(tl.program_id(1) * STEPS, tl.minimum((tl.program_id(1) + 1) * STEPS, K // GROUP))"
DOTS = "tl.dot(even, tl.trans(low)) + tl.dot(odd, tl.trans(high))"


def lessons_kernel():
    """The source of the one that the lesson begins with."""
    notebook = shelf.notebook(next(path for path in shelf.paths() if path.stem.startswith("09")))
    cells = ["".join(cell["source"]) for cell in notebook["cells"]]
    cell = next(cell for cell in cells if 'exercises.score("09"' in cell)
    return cell[: cell.index("\n\n\ndef tiles")]


STARTER = lessons_kernel()
MUTANTS = [*mutants(STARTER)]
NUMBERS = range(len(MUTANTS))


def by_tokens(M, N, K):
    """The lesson's."""
    return (-(-N // 64), M), {"ROWS": 64}


def power_of_two(n):
    return 1 << (n - 1).bit_length()


def dealt(rows, columns):
    """All tokens at once; so many parts of the rows, so many of the columns."""

    def tiles(M, N, K):
        each, steps = -(-N // rows), -(-(K // 128) // columns)
        return (rows, columns), {"EACH": each, "STEPS": steps, "TOKENS": power_of_two(M), "ROWS": power_of_two(each)}

    return tiles


def test_what_is_to_be_beaten_is_the_lessons_own_and_fewer_bytes_beat_it(tmp_path):
    task = exercises.OPEN["09"]
    lessons = kernel(STARTER, tmp_path), by_tokens
    cost, loss, verdict = scored("09", lessons)
    assert cost == task.budget and loss == pytest.approx(task.to_beat, abs=0.6 * 10**-task.digits)
    assert verdict.passed is False  # a tie beats nothing
    parts = kernel(PARTS, tmp_path, 1)
    wide, middle, square = (scored("09", (parts, dealt(*shape))) for shape in ((16, 1), (8, 2), (4, 4)))
    assert square[1] < middle[1] < wide[1] < loss / 2 and square[1] < 2.1  # as the lesson says
    assert square[2].passed


def test_an_instruction_that_is_too_wide_and_a_program_that_does_it_alone_beat_nothing(tmp_path):
    parts = kernel(PARTS, tmp_path)
    assert "costs too much" in exercises.score("09", (parts, dealt(2, 8))).message
    first = "tl.program_id(1) == 0"
    alone = PARTS.replace(STEPS, "range(K // GROUP)").replace("(n < N)", f"({first}) & (n < N)")
    alone = alone.replace("(m < M)", f"(({first}) & (m < M))")
    _, loss = exercises.OPEN["09"].measure((kernel(alone, tmp_path, 1), dealt(1, 16)))
    assert loss > 16


WRONG = [
    (" - 8, (byte >> 4)", " - 7, (byte >> 4)", "y is off by"),
    (DOTS, "tl.dot(even, tl.trans(high)) + tl.dot(odd, tl.trans(low))", "y is off by"),
    ("s[None, :] * ", "", "y is off by"),
    ("tl.atomic_add", "tl.store", "y is off by"),
    ("y += s[None, :] * (", "y += s[None, :] * (0.999 * ", "y is off by"),
    ("(m < M)[:, None] & live[None, :]", "(m < M)[:, None] & (n <= N)[None, :]", "with M=1, N="),
    (", mask=(m < M)[:, None] & live[None, :]", "", "it changes"),
    ("mask=live[:, None], other=0", "", "behind the end of packed"),
    ("m[:, None] * K", "m[:, None] * 0", "y is off by"),
    ("m[:, None] * N", "m[:, None] * 0", "y is off by"),
    ("    tl.atomic_add", "    tl.store(x_ptr + n, 0.0, mask=live)\n    tl.atomic_add", None),
]  # fmt: skip


@pytest.mark.parametrize(("right", "wrong", "words"), WRONG)
def test_a_wrong_product_is_told_what_is_wrong(right, wrong, words, tmp_path):
    assert PARTS.count(right) >= 1
    with pytest.raises(ValueError, match=words):
        exercises.score("09", (kernel(PARTS.replace(right, wrong), tmp_path), dealt(4, 4)))


@pytest.mark.parametrize("number", thinned(NUMBERS, NUMBERS[::5]))
def test_of_all_small_changes_to_the_lessons_kernel_none_beats_it(number, tmp_path):
    _, source = MUTANTS[number]
    try:
        verdict = exercises.score("09", (kernel(source, tmp_path), by_tokens))
    except ValueError:
        return
    assert verdict.passed is not True


def test_what_is_no_pair_or_touches_nothing_is_not_measured(tmp_path):
    empty = kernel(PARTS[: PARTS.index("    m, first")] + "    pass\n", tmp_path)
    assert exercises.score("09", (empty, dealt(4, 4))).passed is None
    for answer in (empty, (empty,), (lambda *some: None, dealt(4, 4))):
        with pytest.raises(TypeError, match="no pair of a function under @triton"):
            exercises.score("09", answer)
