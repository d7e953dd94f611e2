"""What an exercise is, and how an answer to it is judged."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Verdict:
    """The outcome of a check: right (True), not yet (False), or not attempted (None), and a sentence."""

    passed: bool | None
    message: str

    def __bool__(self) -> bool:
        return bool(self.passed)

    def __repr__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Exercise:
    """One function to write.

    Attributes:
        name: lesson and number, "01.2".
        hints: from a nudge to nearly the answer.
        solution: the function that is compared with, and shown.
        cases: argument tuples to try; the first is the simplest, and it is what a learner is shown.
        mistakes: known wrong functions, each with the sentence that names the mistake.
    """

    name: str
    hints: tuple[str, ...]
    solution: Callable
    cases: tuple[tuple, ...]
    mistakes: tuple[tuple[Callable, str], ...]

    def source(self) -> str:
        """The solution as it is written."""
        return inspect.getsource(self.solution)

    def check(self, answer: object) -> Verdict:
        """Judge `answer`, a function."""
        if answer is None or answer is ...:
            return self._not_attempted()
        if not callable(answer):
            return Verdict(
                False, f"{self.name} not yet: give the function itself, not {type(answer).__name__} {answer!r}."
            )
        outputs = []
        for arguments in self.cases:
            try:
                outputs.append(answer(*_copies(arguments)))
            except NotImplementedError:
                return self._not_attempted()
            except Exception as error:  # a learner's function may raise anything, and wants to know what
                called = ", ".join(map(_show, arguments))
                return Verdict(
                    False, f"{self.name} not yet: called with ({called}) it raises {type(error).__name__}: {error}."
                )
            if outputs[0] is None or outputs[0] is ...:
                return self._not_attempted()
        expected = [self.solution(*_copies(arguments)) for arguments in self.cases]
        if all(map(_same, outputs, expected)):
            return Verdict(True, f"{self.name} right.")
        for mistake, sentence in self.mistakes:
            if all(map(_same, outputs, [mistake(*_copies(arguments)) for arguments in self.cases])):
                return Verdict(False, f"{self.name} not yet: {sentence}")
        arguments, got, wanted = next(
            (a, o, e) for a, o, e in zip(self.cases, outputs, expected, strict=True) if not _same(o, e)
        )
        called = ", ".join(map(_show, arguments))
        return Verdict(False, f"{self.name} not yet: for ({called}) it gives {_show(got)}, expected {_show(wanted)}.")

    def _not_attempted(self) -> Verdict:
        return Verdict(
            None, f"{self.name} not attempted yet: write the function, end it with return, run this cell again."
        )


def reveal(guess: float | None, truth: float, unit: str = "", digits: int = 2) -> str:
    """The sentence that stands beside a measurement: what you said, what was measured."""
    if guess is not None and not isinstance(guess, int | float):
        raise ValueError(f"my_guess = {guess!r} is no number; write it without its unit")
    measured = f"measured: {truth:.{digits}f} {unit}".rstrip()
    if guess is None:
        return f"{measured} (you committed no guess)"
    ratio = guess / truth if truth else float(guess == 0)
    word = "close" if abs(ratio - 1) <= 0.1 else "within a factor of two" if 0.5 <= ratio <= 2 else "a surprise"
    return f"you said: {guess:g} {unit}".rstrip() + f"; {measured}: {word}"


def _copies(arguments: tuple) -> list:
    """Fresh copies, so that an answer that writes into its input spoils nothing."""
    return [a.clone() if isinstance(a, Tensor) else list(a) if isinstance(a, list) else a for a in arguments]


def _same(got: Any, wanted: Any) -> bool:
    """Equal up to float rounding, whatever mixture of tensors, numbers and sequences both are; bytes must be bytes."""
    if isinstance(wanted, Tensor) and wanted.dtype == torch.uint8 and getattr(got, "dtype", None) != torch.uint8:
        return False
    if isinstance(wanted, tuple):
        return isinstance(got, tuple | list) and len(got) == len(wanted) and all(map(_same, got, wanted))
    if isinstance(wanted, str):
        return got == wanted
    try:
        got, wanted = torch.as_tensor(got).double(), torch.as_tensor(wanted).double()
    except (TypeError, ValueError, RuntimeError):
        return False
    return got.shape == wanted.shape and torch.allclose(got, wanted, rtol=1e-4, atol=1e-7)


def _show(value: Any) -> str:
    if isinstance(value, Tensor):
        numbers = [round(x, 4) for x in value.flatten()[:8].tolist()]
        more = ", ..." if value.numel() > 8 else ""
        return f"tensor {list(value.shape)} [{', '.join(f'{x:g}' for x in numbers)}{more}]"
    return f"{value:.5g}" if isinstance(value, float) else repr(value)
