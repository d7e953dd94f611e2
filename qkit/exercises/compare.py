"""What an answer gives beside what was expected: whether the two are the same, where they part, how both are shown.

An answer may come as whatever holds the same numbers: a tensor, an array of NumPy, a list, bytes, a number of Python.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor


def copies(arguments: tuple) -> list:
    """Fresh copies, so that an answer that writes into its input spoils nothing."""
    return [a.clone() if isinstance(a, Tensor) else list(a) if isinstance(a, list) else a for a in arguments]


def unchanged(before: Any, after: Any) -> bool:
    """Whether an argument is what it was; a NaN is equal to itself."""
    if isinstance(before, Tensor):
        alike = after.shape == before.shape and after.dtype == before.dtype
        return alike and torch.equal(after.nan_to_num(1.5), before.nan_to_num(1.5))
    return before == after


def same(got: Any, wanted: Any, rtol: float = 1e-4) -> bool:
    """Whether both are the same numbers, names or tuples of them.

    Whole numbers and names must be equal; floats may differ by `rtol` of themselves, and by a hundredth of that of the
    largest number beside them, which is what another order of summing does. Where bytes are wanted, bytes it must be.
    """
    if isinstance(wanted, str):
        return isinstance(got, str) and got == wanted
    if isinstance(wanted, tuple):
        return _is_sequence(got) and len(got) == len(wanted) and all(same(g, w, rtol) for g, w in zip(got, wanted))  # noqa: B905
    mine, theirs = array(got), array(wanted)
    if mine is None or theirs is None or mine.shape != theirs.shape:
        return False
    if theirs.dtype == np.uint8 and mine.dtype != np.uint8:
        return False
    if theirs.dtype.kind in "iub":
        return bool(np.array_equal(mine, theirs))
    return bool(_near(mine, theirs, rtol).all())


def array(value: Any) -> np.ndarray | None:
    """The numbers of `value` as an array, in the type that holds them there; None where there are none, or not only."""
    try:
        if isinstance(value, Tensor):
            value = value.detach().cpu()
            found = value.double().numpy() if value.is_floating_point() else value.numpy()
        elif isinstance(value, bytes | bytearray):
            found = np.frombuffer(value, np.uint8)
        elif isinstance(value, list | tuple):
            parts = [array(part) for part in value]
            if any(part is None for part in parts):
                return None
            found = np.array(parts)
        else:
            found = np.asarray(value)
            found = (
                np.asarray(float(value)) if found.shape == () and found.dtype == object else found
            )  # a Fraction, say
    except (TypeError, ValueError, RuntimeError):
        return None
    return found if found.dtype.kind in "iubf" else None


def where_they_part(got: Any, wanted: Any, rtol: float = 1e-4) -> str:
    """Of two arrays of one shape the first place at which they differ, in words; "" where showing them is enough."""
    mine, theirs = array(got), array(wanted)
    if mine is None or theirs is None or mine.shape != theirs.shape or not theirs.size:
        return ""
    if theirs.dtype == np.uint8 and mine.dtype != np.uint8 and np.array_equal(mine, theirs):
        return "; the numbers are right, and bytes are asked for: torch.uint8"
    words = "; what is divided by 0 there?" if not np.isfinite(mine).all() and np.isfinite(theirs).all() else ""
    apart = np.argwhere(~_near(mine, theirs, rtol))
    if theirs.ndim == 0 or len(apart) == 0 or apart[0].sum() < 4:
        return words
    first = tuple(int(i) for i in apart[0])
    return f"; at {list(first)} it has {mine[first]:.5g} instead of {theirs[first]:.5g}{words}"


def show(value: Any) -> str:
    """A value in a sentence: of a tensor or an array its shape and first numbers."""
    if isinstance(value, Tensor | np.ndarray):
        kind, found = "tensor" if isinstance(value, Tensor) else "array", array(value)
        if found is None:  # of names, say
            return f"{kind} {list(value.shape)} of {value.dtype}"
        numbers = [round(x, 4) if abs(x) >= 0.01 else x for x in found.ravel()[:8].tolist()]
        more = ", ..." if found.size > 8 else ""
        return f"{kind} {list(value.shape)} [{', '.join(f'{x:.5g}' for x in numbers)}{more}]"
    if isinstance(value, tuple | list) and any(isinstance(part, Tensor | np.ndarray) for part in value):
        return f"({', '.join(map(show, value))})"
    return f"{value:.5g}" if isinstance(value, float) else repr(value)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, list | tuple) or (isinstance(value, Tensor | np.ndarray) and value.ndim > 0)


def _near(mine: np.ndarray, theirs: np.ndarray, rtol: float) -> np.ndarray:
    mine, theirs = mine.astype(np.float64), theirs.astype(np.float64)
    finite = np.abs(theirs[np.isfinite(theirs)])
    largest = finite.max() if finite.size else 0.0
    with np.errstate(invalid="ignore"):  # inf - inf, where equality decides
        close = np.abs(mine - theirs) <= rtol * (np.abs(theirs) + largest / 100)
        return (mine == theirs) | (close & np.isfinite(theirs))
