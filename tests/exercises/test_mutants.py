"""No grader accepts an answer that is one small change away from the solution, unless the change changes no result.

Which those are is said here by hand, each with its reason; `python tests/support/answer_mutants.py` prints what lives.
"""

import pytest

from answer_mutants import living, mutants, sources
from qkit import exercises
from qkit.exercises.compare import same
from qkit.exercises.core import Exercise
from qkit.exercises.draws import Draw

# Those whose answer is a kernel are in test_kernels.py
NAMES = sorted(name for name, exercise in exercises.ALL.items() if type(exercise) is Exercise)

TYPE = "the same numbers, in another type that holds them"
FOUR_BITS = "codes of four bits fit into every type"
TIMES_ZERO = "of a block of zeros, whatever the level is: it is multiplied by 0"
EVEN_IN_SIGN = "the sign goes out again"

# exercise: {what was changed: why no result changes}
ALIKE = {
    "01.2": {"gives a float16": TYPE},
    "02.2": {
        "pairs[:, 0] | pairs[:, 1] << 4: Add": "their bits do not overlap",
        "codes.long(): char": FOUR_BITS,
        "codes.long(): short": FOUR_BITS,
        "codes.long(): without it": FOUR_BITS,
    },
    "02.3": {
        "1 -> 2 in scale[scale == 0] = 1": "0 over any scale is 0",
        "2 ** (bits - 1) - 1: swapped": EVEN_IN_SIGN,
    },
    "03.1": {
        "(1, 1): turned round": "both are 1",
        "1 -> 2 in (1, 1)": "0 over any scale is 0",
    },
    "03.3": {
        "1 -> 0 in torch.where(absmax == 0, 1, absmax)": TIMES_ZERO,
        "1 -> 2 in torch.where(absmax == 0, 1, absmax)": TIMES_ZERO,
        "0 -> -1 in absmax == 0": TIMES_ZERO,
        "0 -> 1 in absmax == 0": TIMES_ZERO,
        "levels[..., None] - table: swapped": EVEN_IN_SIGN,
    },
    "04.1": {
        "w - w_hat: swapped": EVEN_IN_SIGN,
        "float((e @ h * e).sum()): without it": TYPE,
    },
    "04.2": {"(j, j): turned round": "both are j"},
    "04.4": {
        "(k, k): turned round": "both are k",
        "w.double(): float": "float32 is enough for so few columns",
        "w.double(): without it": "float32 is enough for so few columns",
    },
    "05.1": {
        "x.abs().mean(0).topk(k).indices.tolist(): without it": TYPE,
        "x.abs().mean(0): sum": "the order of sums is that of means",
    },
    "05.2": {"x.abs().mean(0): sum": "a common factor is divided out"},
    "05.4": {
        "float(error): without it": TYPE,
        "rounding(weight * f) / f - weight: swapped": EVEN_IN_SIGN,
    },
    "06.3": {"float(magnitudes[math.ceil(share * len(magnitudes)) - 1]): without it": TYPE},
    "07.3": {"tuple(bought): without it": "a list of the same names"},
    "08.1": {
        "int((codes.int() - 128).mul(x.int()).sum()): without it": TYPE,
        "x.int(): char": "int32 times int8 is int32",
        "x.int(): short": "int32 times int16 is int32",
        "x.int(): without it": "int32 times int8 is int32",
        "codes.int(): char": "q - 128 fits into int8, and a subtraction that wraps around ends where it should",
        "codes.int(): short": "q - 128 fits into int16",
    },
    "08.2": {
        "2 * largest_code * largest_x <= 32767: Lt": "the left side is even",
        "32767 -> 32766 in 2 * largest_code * largest_x <= 32767": "the left side is even",
        "32767 -> 32768 in 2 * largest_code * largest_x <= 32767": "no code and x within their limits multiply to 2^14",
    },
    "10.2": {
        "steps.mean(-1).round(): halves up": "the mean of a group lies near a whole number",
        "(right != zeros).nonzero()[0].tolist(): without it": TYPE,
        "int(right[row, group]): without it": TYPE,
        "codes.float(): half": FOUR_BITS,
        "codes.float(): without it": "codes minus floats are floats",
        "0 -> -1 in (right != zeros).nonzero()[0]": "there is one, the first and the last",
    },
    "10.3": {
        "torch.zeros_like(w): without it": "w is zeros there",
        "(steps + 8.5).floor().clamp(0, 15): max alone": "no step lies below -8",
        "0 -> -1 in (steps + 8.5).floor().clamp(0, 15)": "no step lies below -8",
        "codes[:16] | codes[16:] << 4: Add": "their bits do not overlap",
        "(steps + 8.5).floor(): trunc": "the sums are positive",
        "(steps + 8.5).floor(): without it": "bytes cut off the fraction of a positive number",
    },
}


@pytest.mark.parametrize("name", NAMES)
def test_of_all_small_changes_only_those_pass_that_change_no_result(name):
    alive, count = living(exercises.ALL[name])
    assert count >= 8
    alike = ALIKE.get(name, {})
    assert not [what for what in alive if what not in alike], "the grader accepts what may be wrong"
    assert set(alike) == set(alive), "what is listed as changing no result is refused"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.exhaustive
def test_what_is_listed_as_changing_no_result_changes_none_on_many_more_inputs(name):
    exercise = exercises.ALL[name]
    assert exercise.draw is not None
    alike = [mutant for what, mutant in mutants(exercise.solution) if what in ALIKE.get(name, {})]
    for number in range(1000, 1300):
        arguments = exercise.draw(Draw(f"{name}/{number}"))
        wanted = exercise.result(exercise.solution, arguments)
        for mutant in alike:
            assert same(exercise.result(mutant, arguments), wanted, exercise.rtol)


def test_each_kind_of_change_is_made():
    def solution(w, limit, names=None):
        w = w.clone()
        if limit < 3:
            w[:, 1:] -= w.abs().amax(1, keepdim=True).round()
        return (w / 2).clamp(0, 2**limit), min(limit, -1)

    made = {what for what, _ in sources(solution)}
    assert {
        "without: w = w.clone()",
        "limit < 3: LtE",
        "3 -> 4 in limit < 3",
        "without: if limit < 3:",
        "[1:] without lower",
        "w.abs(): without it",
        "w.abs().amax(1, keepdim=True): amin",
        "1 -> 0 in w.abs().amax(1, keepdim=True)",
        "w.abs().amax(1, keepdim=True) without keepdim",
        "w.abs().amax(1, keepdim=True).round(): halves up",
        "w.abs().amax(1, keepdim=True).round(): floor",
        "w / 2: Mult",
        "w / 2: swapped",
        "(w / 2).clamp(0, 2 ** limit): max alone",
        "min(limit, -1): max",
    } <= made
