"""The open task of lesson 09: the product from codes, dealt out to a small card so that nobody waits long for memory."""

import importlib.util
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qkit.exercises.draws import Draw
from qkit.exercises.kernels import Traffic, explained, watched
from qkit.exercises.open_task import OpenTask

GROUP = 128
MULTIPROCESSORS = 16  # of the card that is imagined: program i runs on number i modulo 16
CLOSE = 1e-5  # of the norm of y; a sum of float32 in any order is ten times as near


def block_and_bytes(answer: tuple[Any, Callable]) -> tuple[float, float] | None:
    """The most addresses in an instruction, and the bytes that the busiest multiprocessor moves, over its fair share.

    Its share is a sixteenth of x, codes, scales and y, each moved once; the mean of three products of unlike shapes. A fourth, of
    fewer rows than any tile has, must only be right.

    Args:
        answer: a kernel under @triton.jit, and a function (M, N, K) -> (grid, constants). It is launched as
            kernel[grid](x, packed, scales, y, M, N, K, GROUP=128, **constants) with x float32 [M, K], packed uint8 [N, K / 2],
            scales float16 [N, K / 128], and y float32 [M, N], zeros at first. Where it touches no memory, None is measured.

    Raises:
        TypeError: the answer is no such pair.
        ValueError: a result is wrong, an address is no tensor's, or Triton was imported for a card, on which nobody can look.
    """
    kernel, tiles = _pair(answer)
    widest, times = 0, []
    for number in range(4):
        x, packed, scales = _drawn(number)
        y = torch.zeros(len(x), len(packed))
        traffic, grid = _launched(kernel, tiles, x, packed, scales, y)
        if not traffic.moved:
            return None
        widest = max(widest, traffic.widest)
        fewest = sum(t.nbytes for t in (x, packed, scales, y))
        times.append(_busiest(traffic.moved, grid) * MULTIPROCESSORS / fewest)
    return widest, sum(times[:3]) / 3


def _pair(answer: tuple[Any, Callable]) -> tuple[Any, Callable]:
    if importlib.util.find_spec("triton") is None:
        raise ValueError(
            "Triton is not installed, and a kernel cannot be measured without it; it exists for Linux only"
        )
    from triton.runtime.jit import JITFunction, KernelInterface

    if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[0], KernelInterface)):
        raise TypeError("the answer is no pair of a function under @triton.jit and a function (M, N, K); give both")
    if isinstance(answer[0], JITFunction):
        raise ValueError(
            "Triton was imported for a card, where nobody can count addresses; set TRITON_INTERPRET=1 before it is imported"
        )
    return answer


def _drawn(number: int) -> tuple[Tensor, Tensor, Tensor]:
    """x, packed and scales of a product: for one token, for some, for many; the last has hardly any rows."""
    d = Draw(f"09 open task/{number}")
    tokens = (1, d.whole(3, 9), d.whole(12, 24), 3)[number]
    rows, groups = (d.whole(100, 250), d.whole(4, 8)) if number < 3 else (5, 1)
    packed = d.integers(0, 255, rows, groups * GROUP // 2, dtype=torch.uint8)
    return d.normal(tokens, groups * GROUP), packed, (d.normal(rows, groups).abs() + 0.5).half()


def _launched(
    kernel: Any, tiles: Callable, x: Tensor, packed: Tensor, scales: Tensor, y: Tensor
) -> tuple[Traffic, tuple[int, ...]]:
    """What the launch asked of memory, and its grid of three; y is written, and looked at."""
    (tokens, features), rows = x.shape, len(packed)
    shape = f"M={tokens}, N={rows}, K={features}"
    given = [t.clone() for t in (x, packed, scales)]
    grid, constants = tiles(tokens, rows, features)
    try:
        looking = watched({"x": x, "packed": packed, "scales": scales, "y": y})
        with looking as traffic, np.errstate(all="ignore"):  # a wrong kernel may multiply infinities
            kernel[grid](x, packed, scales, y, tokens, rows, features, GROUP=GROUP, **constants)
    except Exception as error:  # a learner's kernel may raise anything, and wants to know what
        raise ValueError(f"with {shape} {explained(error)}") from error
    if not all(map(torch.equal, given, (x, packed, scales))):
        raise ValueError(f"with {shape} the kernel writes into what it was given to read")
    codes = torch.stack([packed & 15, packed >> 4], -1).flatten(1).double() - 8
    exact = x.double() @ (codes * scales.double().repeat_interleave(GROUP, 1)).T
    error = float((y - exact).norm() / exact.norm())
    if traffic.moved and not error <= CLOSE:
        raise ValueError(f"with {shape} y is off by {error:.2g} of its norm; be within {CLOSE:g}")
    return traffic, (*grid, 1, 1)[:3]


def _busiest(moved: Counter[tuple[int, int, int]], grid: tuple[int, ...]) -> int:
    """The bytes of the multiprocessor that moves the most of them."""
    by = Counter[int]()
    for (i, j, k), octets in moved.items():
        by[(i + grid[0] * (j + grid[1] * k)) % MULTIPROCESSORS] += octets
    return max(by.values())


OPEN = OpenTask(
    "09",
    block_and_bytes,
    budget=4096,
    to_beat=7.956,
    cost="addresses in an instruction",
    loss="times the fair share of bytes",
)
