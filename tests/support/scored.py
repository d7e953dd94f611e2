"""An answer to an open task, measured once."""

from dataclasses import replace
from typing import Any

from qkit import exercises
from qkit.exercises.core import Verdict


def scored(lesson: str, answer: Any) -> tuple[float, float, Verdict]:
    """(cost, loss) of an answer, and what `exercises.score` says of it, which would measure it again."""
    task = exercises.OPEN[lesson]
    measured = task.measure(answer)
    assert measured is not None
    return *measured, replace(task, measure=lambda _: measured).score(answer)
