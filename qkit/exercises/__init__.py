"""The exercises of the lessons, checked offline.

    >>> from qkit import exercises
    >>> exercises.check("01.1", my_function)      # right, not yet (and which mistake it looks like), or not attempted
    >>> exercises.hint("01.1")                    # the first hint; hint("01.1", 2) the next
    >>> exercises.solution("01.1")                # the function that `check` compares with
    >>> exercises.score("01", my_function)        # the lesson's open task: what it loses, at what cost

A checker calls the answer and the solution on the same inputs. A wrong answer that behaves like a known mistake is told
which; any other is shown the first input where it differs.
"""

from qkit.exercises import (
    lesson_00,
    lesson_01,
    lesson_02,
    lesson_03,
    lesson_04,
    lesson_05,
    lesson_06,
    lesson_07,
    lesson_08,
    lesson_09,
    lesson_10,
)
from qkit.exercises.core import Exercise, Verdict
from qkit.exercises.guesses import Guesses
from qkit.exercises.open_task import OpenTask

LESSONS = (
    lesson_00,
    lesson_01,
    lesson_02,
    lesson_03,
    lesson_04,
    lesson_05,
    lesson_06,
    lesson_07,
    lesson_08,
    lesson_09,
    lesson_10,
)
ALL: dict[str, Exercise] = {exercise.name: exercise for lesson in LESSONS for exercise in lesson.EXERCISES}
OPEN: dict[str, OpenTask] = {lesson.OPEN.name: lesson.OPEN for lesson in LESSONS if hasattr(lesson, "OPEN")}

__all__ = ["ALL", "OPEN", "Exercise", "Guesses", "OpenTask", "Verdict", "check", "hint", "score", "solution"]


def check(name: str, answer: object) -> Verdict:
    """Check an answer to exercise `name`, e.g. "01.2"."""
    return _find(name).check(answer)


def score(lesson: str, answer: object) -> Verdict:
    """Measure an answer to the open task of `lesson`, e.g. "02"."""
    if lesson not in OPEN:
        raise ValueError(f"lesson {lesson!r} has no open task; there are those of {', '.join(OPEN)}")
    return OPEN[lesson].score(answer)


def hint(name: str, number: int = 1) -> None:
    """Print a hint; they go from a nudge to nearly the answer."""
    hints = _find(name).hints
    if not 1 <= number <= len(hints):
        raise ValueError(f"hint {number} of exercise {name} does not exist; it has 1 to {len(hints)}")
    print(f"Hint {number} of {len(hints)}: {hints[number - 1]}")


def solution(name: str) -> None:
    """Print the source of the solution."""
    print(_find(name).source())


def _find(name: str) -> Exercise:
    if name not in ALL:
        raise ValueError(f"exercise {name!r} does not exist; there are {', '.join(ALL)}")
    return ALL[name]
