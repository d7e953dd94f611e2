"""What an exercise is, and how an answer to it is judged."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from qkit.exercises.compare import array, copies, same, show, unchanged, where_they_part
from qkit.exercises.draws import Draw

DRAWS = 12  # random arguments that an answer is tried with; a kernel, which Triton interprets, with fewer
DIFFICULTIES = ("easy", "medium", "hard")
KERNEL_LEFT = "the kernel stores nothing; write it, and run this cell again"  # instead of `Exercise.LEFT`


@dataclass(frozen=True)
class Verdict:
    """The outcome of a check: right (True), not yet (False), or not attempted (None), and a sentence."""

    passed: bool | None
    message: str

    def __bool__(self) -> bool:
        return bool(self.passed)

    def __repr__(self) -> str:
        return self.message


def unwritten(value: object) -> bool:
    """Whether it is what a cell has before anybody writes: None, or the `...` of a body."""
    return value is None or value is ...


@dataclass(frozen=True)
class Trial:
    """Arguments that an answer is called with, and what is particular about them ("a group of zeros"), in words."""

    arguments: tuple
    what: str = ""


@dataclass(frozen=True)
class Exercise:
    """One function to write.

    Attributes:
        name: lesson and number, "01.2".
        hints: from a nudge to the last thing that one may say before the answer; none is the answer.
        solution: the function that is compared with, and shown.
        cases: argument tuples to try; the first is the simplest, and it is what a learner is shown.
        mistakes: known wrong functions, each with the sentence that names the mistake.
        edges: {what is particular: arguments}, tried after the cases.
        draw: makes random arguments; `draws` of them are tried last. None: there is nothing to draw.
        seen: (output, arguments) -> what of an output is compared, where many are right. None: all of it.
        rtol: how far floats may be apart (`compare.same`).
        minutes: that it takes somebody who has read the lesson.
        difficulty: one of `DIFFICULTIES`.
    """

    LEFT: ClassVar[str] = "write the function, end it with return, run this cell again"  # what is to be done at first

    name: str
    hints: tuple[str, ...]
    solution: Callable
    cases: tuple[tuple, ...]
    mistakes: tuple[tuple[Callable, str], ...]
    edges: dict[str, tuple] = field(default_factory=dict, kw_only=True)
    draw: Callable[[Draw], tuple] | None = field(default=None, kw_only=True)
    draws: int = field(default=DRAWS, kw_only=True)
    seen: Callable[[Any, tuple], Any] | None = field(default=None, kw_only=True)
    rtol: float = field(default=1e-4, kw_only=True)
    minutes: int = field(default=0, kw_only=True)
    difficulty: str = field(default="", kw_only=True)

    def source(self) -> str:
        """The solution as it is written."""
        return inspect.getsource(self.solution)

    def trials(self) -> list[Trial]:
        """All that an answer is called with: the cases, the edges, and what is drawn (the same each time)."""
        drawn = [self.draw(Draw(f"{self.name}/{number}")) for number in range(self.draws)] if self.draw else []
        return [
            *(Trial(arguments) for arguments in self.cases),
            *(Trial(arguments, what) for what, arguments in self.edges.items()),
            *(Trial(arguments, "other shapes and numbers") for arguments in drawn),
        ]

    def result(self, function: Callable, arguments: tuple) -> Any:
        """What is compared of what `function` gives for copies of `arguments`."""
        return self._seen(function(*copies(arguments)), arguments)

    def check(self, answer: object) -> Verdict:
        """Judge `answer`, a function."""
        if unwritten(answer):
            return self._not_attempted()
        if not callable(answer):
            return self._not_yet(f"give the function itself, not {type(answer).__name__} {answer!r}.")
        tried: list[tuple[Trial, Any, Any]] = []  # with what was expected, and what was given
        changed = ""
        for trial in self.trials():
            given = copies(trial.arguments)
            try:
                output = answer(*given)
            except NotImplementedError:
                return self._not_attempted()
            except Exception as error:  # a learner's function may raise anything, and wants to know what
                called = f"called with ({', '.join(map(show, trial.arguments))}) it raises"
                return self._not_yet(f"{_but_for(trial)}{called} {type(error).__name__}: {error}.")
            if not tried and unwritten(output):
                return self._not_attempted()
            tried.append((trial, self.result(self.solution, trial.arguments), self._seen(output, trial.arguments)))
            changed = changed or self._changed(trial.arguments, given)
            failed = self._failed(answer, tried) if len(tried) >= len(self.cases) else None
            if failed is not None:
                return failed
        if changed:
            return self._not_yet(
                f"the result is right, but it changes `{changed}`, which the caller goes on using: work on a copy."
            )
        return Verdict(True, f"{self.name} right.")

    def _failed(self, answer: Callable, tried: list[tuple[Trial, Any, Any]]) -> Verdict | None:
        """The verdict on the cases, or on the trial after them that was the last: None where they are right."""
        fresh = tried if len(tried) == len(self.cases) else tried[-1:]
        wrong = next((one for one in fresh if not same(one[2], one[1], self.rtol)), None)
        if wrong is None:
            return None
        telling = [*tried[: len(self.cases)], wrong]  # mistakes are told apart by the cases
        for mistake, sentence in self.mistakes:
            alike = all(self._makes(mistake, trial.arguments, output) for trial, _, output in telling)
            if alike and not (_by_chance(wrong[1]) and self._part_later(answer, mistake)):
                return self._not_yet(sentence)
        trial, expected, got = wrong
        called = ", ".join(map(show, trial.arguments))
        apart = where_they_part(got, expected, self.rtol)
        return self._not_yet(f"{_but_for(trial)}for ({called}) it gives {show(got)}, expected {show(expected)}{apart}.")

    def _part_later(self, answer: Callable, mistake: Callable) -> bool:
        """Whether what is drawn shows that the answer is another mistake than this one."""
        for trial in self.trials()[len(self.cases) :]:
            try:
                output, mistaken = (self.result(function, trial.arguments) for function in (answer, mistake))
            except Exception:  # where one of them raises, nothing is told
                continue
            if not same(output, mistaken, self.rtol):
                return True
        return False

    def _makes(self, mistake: Callable, arguments: tuple, output: Any) -> bool:
        try:
            return same(output, self.result(mistake, arguments), self.rtol)
        except Exception:  # a mistake need not work on every input
            return False

    def _seen(self, output: Any, arguments: tuple) -> Any:
        return self.seen(output, arguments) if self.seen else output

    def _changed(self, before: tuple, after: list) -> str:
        """The name of the first argument that is not what it was."""
        names = inspect.signature(self.solution).parameters
        return next((n for n, b, a in zip(names, before, after, strict=False) if not unchanged(b, a)), "")

    def _not_yet(self, words: str) -> Verdict:
        return Verdict(False, f"{self.name} not yet: {words}")

    def _not_attempted(self) -> Verdict:
        return Verdict(None, f"{self.name} not attempted yet: {self.LEFT}.")


def _by_chance(wanted: Any) -> bool:
    """Whether two functions may give this and yet be unlike: names and a few whole numbers coincide, floats do not."""
    if isinstance(wanted, tuple):
        return all(map(_by_chance, wanted))
    numbers = array(wanted)
    return numbers is None or (numbers.dtype.kind != "f" and numbers.size < 8)


def _but_for(trial: Trial) -> str:
    return f"right so far, but not with {trial.what}: " if trial.what else ""
