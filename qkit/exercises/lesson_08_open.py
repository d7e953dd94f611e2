"""The open task of lesson 08: a layer in 4 bits on one thread, faster than the lesson's step 4."""

from collections.abc import Callable
from functools import partial

import numpy as np

from qkit.bench.timing import interleave
from qkit.exercises.core import unwritten
from qkit.exercises.open_task import OpenTask
from qkit_kernels.numba import steps

SIZE, GROUP = 2048, 128
TO_BEAT = "types fixed"


def error_and_time(answer: Callable) -> tuple[float, float] | None:
    """The relative error of y = answer(x, packed, scales), and its time over that of step 4, run in turns with it.

    Args:
        answer: takes x float32 [features], packed uint8 [rows, features / 2], scales uint16 [rows, groups], float16 seen as whole
            numbers; gives y [rows], or None where nothing was attempted.

    Raises:
        ValueError: y has another shape, or the answer writes into what it was given.
    """
    random = np.random.default_rng(8)
    packed = random.integers(0, 256, (SIZE, SIZE // 2), dtype=np.uint8)
    scales = random.uniform(0.5, 1.5, (SIZE, SIZE // GROUP)).astype(np.float16).view(np.uint16)
    x = random.normal(size=SIZE).astype(np.float32)
    given = x.copy(), packed.copy(), scales.copy()
    y = answer(*given)
    if unwritten(y):
        return None
    if np.shape(y) != (SIZE,):
        raise ValueError(
            f"the answer gives y of shape {list(np.shape(y))}; a number for each of {SIZE} rows is asked for"
        )
    if not all(map(np.array_equal, given, (x, packed, scales))):
        raise ValueError("the answer writes into x, packed or scales; work on a copy")
    error = float(np.linalg.norm(y - _exactly(x, packed, scales)) / np.linalg.norm(_exactly(x, packed, scales)))
    step = steps.STEPS[TO_BEAT]
    laid = step.lay(x)
    calls = {"step": partial(step, laid, packed, scales), "answer": partial(answer, x, packed, scales)}
    found = interleave(calls, rounds=3, block=10, warm=2)
    return error, min(found["answer"].seconds) / min(found["step"].seconds)


def _exactly(x: np.ndarray, packed: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """float64 [rows]."""
    codes = np.stack([packed & 15, packed >> 4], -1).reshape(len(packed), -1).astype(np.float64) - 8
    return (codes * np.repeat(scales.view(np.float16).astype(np.float64), GROUP, 1)) @ x.astype(np.float64)


OPEN = OpenTask("08", error_and_time, budget=1e-5, to_beat=1.0, cost="relative error", loss="times the time of step 4")
