"""Exercises whose answer is a Triton kernel: launched on small inputs, on Triton's interpreter or on a card.

Under the interpreter every address that a kernel reads or writes is looked at before it is used, and a lane that is masked off
gets what a card would give it without `other`: anything. On a card, where nobody can look, the tensors lie in the middle of
memory that is full of extremes.
"""

import ast
import importlib.util
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from qkit.exercises.compare import copies, show
from qkit.exercises.core import KERNEL_LEFT, Exercise, Verdict, unwritten

AROUND = 4096  # numbers on either side of a tensor
UNTOUCHED = float.fromhex("0x1.beefp+100")  # stands in an output where nothing was stored
NO_TRITON = (
    "cannot be checked here: Triton exists for Linux only (in Windows that means WSL); exercise 3 needs none, and "
    "exercises.solution shows this one's."
)


class _Stray(Exception):
    """An address that belongs to no tensor; says what was done there."""


@dataclass
class Traffic:
    """What a kernel asks of memory.

    Attributes:
        moved: {program: bytes that it reads and writes}; an address that many lanes name counts once an instruction, and what is
            changed in place (atomically) twice.
        widest: the most lanes that one instruction has, masked ones among them.
    """

    moved: Counter[tuple[int, int, int]] = field(default_factory=Counter)
    widest: int = 0


@dataclass(frozen=True)
class KernelExercise(Exercise):
    """One kernel to write; `solution` and `mistakes` are what it and wrong ones store, in torch.

    Attributes:
        launch: (kernel, arguments of a case ..., out): launches it.
        names: of the arguments, as messages call them; those of tensors are looked for when an address goes astray.
        kernels: the file that holds the solution as a kernel, and `kernel` its name there.
        hint_if_equal: what is wrong when a result is right to six digits and not exact; "" where roundings are free.
    """

    LEFT = KERNEL_LEFT

    launch: Callable[..., None]
    names: tuple[str, ...]
    kernels: Path
    kernel: str
    hint_if_equal: str = ""

    def source(self) -> str:
        """The kernel as it is written, read without Triton."""
        text = self.kernels.read_text(encoding="utf-8")
        defined = (node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef))
        node = next(node for node in defined if node.name == self.kernel)
        first = min(node.lineno, *(decorator.lineno for decorator in node.decorator_list))
        return "\n".join(text.splitlines()[first - 1 : node.end_lineno]) + "\n"

    def check(self, answer: object) -> Verdict:
        """Judge `answer`, a kernel."""
        if unwritten(answer):
            return self._not_attempted()
        if importlib.util.find_spec("triton") is None:
            return Verdict(None, f"{self.name} {NO_TRITON}")
        from triton.runtime.jit import JITFunction, KernelInterface

        if not isinstance(answer, KernelInterface):
            return self._not_yet(
                f"give the kernel itself, a function under @triton.jit, not {type(answer).__name__} {answer!r}."
            )
        device = "cuda" if isinstance(answer, JITFunction) else "cpu"
        if device == "cuda" and not torch.cuda.is_available():
            return Verdict(
                None,
                f"{self.name} cannot be checked: Triton was imported for a card, and there is none here; restart the "
                "notebook's kernel, and run its first cell first.",
            )
        outputs = []
        trials = self.trials()
        for arguments in (trial.arguments for trial in trials):
            called = ", ".join(f"{name} {show(value)}" for name, value in zip(self.names, arguments, strict=True))
            try:
                outputs.append(self._stored(answer, arguments, device))
            except Exception as error:  # a learner's kernel may raise anything, and wants to know what
                return self._not_yet(f"with {called} {explained(error)}.")
        if all(bool((out == UNTOUCHED).all()) for out in outputs):
            return self._not_attempted()
        return self._judged([trial.arguments for trial in trials], outputs)

    def _judged(self, tried: list[tuple], outputs: list[Tensor]) -> Verdict:
        expected = [self.solution(*copies(arguments)) for arguments in tried]
        if all(map(self._same, outputs, expected)):
            return Verdict(True, f"{self.name} right.")
        for mistake, sentence in self.mistakes:
            if all(map(self._same, outputs, [mistake(*copies(arguments)) for arguments in tried])):
                return self._not_yet(sentence)
        if self.hint_if_equal and all(torch.allclose(o, e, rtol=1e-5) for o, e in zip(outputs, expected, strict=True)):
            return self._not_yet(self.hint_if_equal)
        got, wanted, arguments = next(
            case for case in zip(outputs, expected, tried, strict=True) if not self._same(*case[:2])
        )
        called = ", ".join(f"{name} {show(value)}" for name, value in zip(self.names, arguments, strict=True))
        left = int((got == UNTOUCHED).sum())
        more = f"; {left} of {got.numel()} were not stored" if left else ""
        if not bool(got.isfinite().all()):
            more += "; a lane that is masked off holds anything, also infinity, where the load has no other="
        shown = show(torch.where(got == UNTOUCHED, torch.nan, got))
        return self._not_yet(f"with {called} it stores {shown}, expected {show(wanted)}{more}.")

    def _same(self, got: Tensor, wanted: Tensor) -> bool:
        return torch.equal(got, wanted) if self.hint_if_equal else torch.allclose(got, wanted, rtol=1e-4, atol=1e-6)

    def _stored(self, kernel: Any, arguments: tuple, device: str) -> Tensor:
        """What the kernel stores, float32 on the CPU."""
        wanted = self.solution(*copies(arguments))
        out, around = _amid(torch.full_like(wanted, UNTOUCHED), UNTOUCHED, device)
        given, kept = [], []
        for value in arguments:
            if isinstance(value, Tensor):
                extreme = torch.inf if value.is_floating_point() else torch.iinfo(value.dtype).max
                value, whole = _amid(value, extreme, device)
                kept.append((whole, whole.clone()))
            given.append(value)
        named = {name: value for name, value in zip(self.names, given, strict=True) if isinstance(value, Tensor)}
        looking = watched({**named, "the result": out}) if device == "cpu" else _unwatched()
        with looking, np.errstate(all="ignore"):  # a wrong kernel may multiply infinities; the verdict says so
            self.launch(kernel, *given, out)
        if not all(torch.equal(whole, before) for whole, before in kept):
            raise _Stray("it writes into what it was given to read")
        astray = int((around[:AROUND] != UNTOUCHED).sum() + (around[-AROUND:] != UNTOUCHED).sum())
        if astray:
            raise _Stray(f"it writes {astray} numbers that lie outside of the result")
        return out.cpu().clone()


def _amid(value: Tensor, extreme: float, device: str) -> tuple[Tensor, Tensor]:
    """The tensor again, contiguous in the middle of memory full of `extreme`; and all of that memory."""
    whole = torch.full((2 * AROUND + value.numel(),), extreme, dtype=value.dtype, device=device)
    inner = whole[AROUND : AROUND + value.numel()].view(value.shape)
    inner.copy_(value)
    return inner, whole


@contextmanager
def _unwatched() -> Iterator[None]:
    yield


@contextmanager
def watched(tensors: dict[str, Tensor]) -> Iterator[Traffic]:
    """While it lasts, a kernel on the interpreter that reads or writes outside of `tensors` raises, and does neither.

    What a masked lane gets without `other` is infinity, or the largest whole number.
    """
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
    change, exchange = InterpreterBuilder.create_atomic_rmw, InterpreterBuilder.create_atomic_cas
    spans = {name: (t.data_ptr(), t.data_ptr() + t.nbytes) for name, t in tensors.items()}

    traffic = Traffic()

    def look(builder: Any, pointers: Any, mask: np.ndarray, verb: str, times: int = 1) -> None:
        live = np.broadcast_to(pointers.data, mask.shape)[mask.astype(bool)].astype(
            np.int64
        )  # a mask may be of whole numbers
        astray = live[~np.any([(low <= live) & (live < high) for low, high in spans.values()], axis=0)]
        if len(astray):
            first = int(astray[0])
            name = min(spans, key=lambda name: min(abs(first - edge) for edge in spans[name]))
            where = "before the beginning" if first < spans[name][0] else "behind the end"
            count = "a number" if len(astray) == 1 else f"{len(astray)} numbers"
            raise _Stray(f"it {verb} {count} {where} of {name}, in one instruction: mask what does not exist")
        octets = pointers.get_element_ty().primitive_bitwidth // 8
        traffic.moved[builder.grid_idx] += times * octets * len(np.unique(live))
        traffic.widest = max(traffic.widest, mask.size)

    def load_inside(self, pointers, mask, other, *rest):
        look(self, pointers, mask.data, "reads")
        if other is None:
            kind = load(self, pointers, TensorHandle(np.zeros_like(mask.data), mask.dtype), None, *rest)
            number = np.inf if kind.data.dtype.kind == "f" else np.iinfo(kind.data.dtype).max
            other = TensorHandle(np.full_like(kind.data, number), kind.dtype)
        return load(self, pointers, mask, other, *rest)

    def store_inside(self, pointers, value, mask, *rest):
        look(self, pointers, mask.data, "writes")
        return store(self, pointers, value, mask, *rest)

    def change_inside(self, operation, pointers, value, mask, *rest):
        look(self, pointers, mask.data, "changes", times=2)
        return change(self, operation, pointers, value, mask, *rest)

    def exchange_inside(self, pointers, *rest):
        look(self, pointers, np.ones_like(pointers.data), "changes", times=2)
        return exchange(self, pointers, *rest)

    patched = {
        "create_masked_load": load_inside,
        "create_masked_store": store_inside,
        "create_atomic_rmw": change_inside,
        "create_atomic_cas": exchange_inside,
    }
    with patch.multiple(InterpreterBuilder, **patched):
        yield traffic


def explained(error: BaseException) -> str:
    """What a learner is told of what a kernel raised: "it reads 3 numbers behind the end of x ...", "it raises ..."."""
    stray = _cause(error, _Stray)
    return str(stray) if stray else f"it raises {type(error).__name__}: {_first_line(error)}"


def _cause(error: BaseException | None, kind: type[Exception]) -> BaseException | None:
    """The error of this kind behind another."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__
    return error


def _first_line(error: BaseException) -> str:
    """What the innermost error says, in a line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
