"""Layers on a GPU beside torch's bfloat16: every result is checked, then timed (`qkit bench gpu`).

How it is measured: CUDA-graph replays, so that the host's launching is not in the figures (one layer of a model that runs as one
graph, see `qkit.bench.gpu_generation`); the weights rotate over more memory than the card's L2 cache holds; medians of 15
replays, 7 for many tokens, the first not counted. In the same run: torch's product of a float weight, and a kernel that only
reads the bytes of the stored weight: no product of one token is faster.

Before it is timed, each result, of fresh inputs and in memory that was full of NaN, is compared with what the plain way makes of
the same codes in float64. Where the error is above `LIMIT` nothing is timed: how fast a wrong product is nobody needs to know.
"""

import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qkit.bench.generation import name_row, parse_row
from qkit.bench.record import GpuMeasurement, GpuRecord, describe_machine
from qkit.dispatch import missing
from qkit.methods.scheme import Scheme
from qkit.nn.qlinear import QLinear

SHAPES = ((14336, 4096), (4096, 4096))
TOKENS = (1, 8, 16, 64, 256, 512, 4096)
ROWS = ("bf16", "w4g128", "w3g128", "w2g128", "w8", "nf4", "w8a8", "llm.int8")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
LIMIT = {torch.float16: 1e-3, torch.bfloat16: 4e-3}  # relative error; 16-bit weights and results make about half of it
CACHES = 6  # the weights that take turns fill the L2 so many times
MANY = 1024  # tokens from which 7 replays do
OUTLIERS = 21  # columns of x that lie far out, where a layer looks for some: of 4096 it is what LLM.int8() finds in large models


def check_card() -> None:
    """Refuse a machine that has nothing to measure.

    Raises:
        ValueError: no card.
        ImportError: no Triton.
    """
    if not torch.cuda.is_available():
        built = (
            "" if torch.version.cuda or torch.version.hip else f", and torch {torch.__version__} is built without CUDA"
        )
        raise ValueError(f"no CUDA card is here{built}; `qkit bench cpu` and `qkit bench model` measure this machine")
    if why := missing("qkit.backends.triton.linear"):
        raise ImportError(
            f"the kernels for GPUs need Triton, which cannot be imported ({why}); pip install 'qkit[gpu]'"
        )


def describe_card() -> dict[str, Any]:
    """The machine, and its card: name, multiprocessors, bytes of memory and L2, driver, CUDA."""
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    card = {
        "name": found.name,
        "multiprocessors": found.multi_processor_count,
        "memory": found.total_memory,
        "L2": found.L2_cache_size,
        "driver": _driver(),
        "cuda": torch.version.cuda or torch.version.hip,
    }
    return {**describe_machine(), "card": card}


def _driver() -> str | None:
    if (tool := shutil.which("nvidia-smi")) is None:
        return None
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.split()
    except subprocess.TimeoutExpired:  # it asks every card of the machine; one that is lost does not answer
        return None
    return told[0] if told else None


# ---- the clock


def timed(call: Callable[[int], object], copies: int, replays: int = 15, graph: bool = True) -> float:
    """Microseconds of `call(i)`, i running over the copies of a weight: the median of graph replays.

    Args:
        graph: False for what waits for the host and cannot be captured: its launches are in the figure then.
    """
    calls = max(copies, 8)

    def all_of_them() -> None:
        for i in range(calls):
            call(i % copies)

    call(0)
    torch.cuda.synchronize()
    again = all_of_them
    if graph:
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            all_of_them()
        again = captured.replay
    times = []
    for _ in range(replays + 1):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        again()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / calls)
    return sorted(times[1:])[replays // 2]


def replays_of(tokens: int) -> int:
    """How often a product of so many tokens is replayed."""
    return 15 if tokens < MANY else 7


@cache
def rotated_bytes() -> int:
    """How much the weights that take turns fill: six times the L2."""
    return CACHES * torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size


def copies_of(nbytes: int) -> int:
    """How many weights of so many bytes rotate."""
    return max(1, math.ceil(rotated_bytes() / nbytes))


def floor(nbytes: int) -> float:
    """Microseconds to read so many bytes: the best of a few shapes."""
    import triton

    from qkit_kernels.triton.read import read

    words = [
        torch.randint(0, 2**31, (nbytes // 4,), device="cuda", dtype=torch.int32) for _ in range(copies_of(nbytes))
    ]
    out = torch.empty(2**17, dtype=torch.int32, device="cuda")

    def once(block: int, steps: int, warps: int) -> float:
        grid = (triton.cdiv(nbytes // 4, block * steps),)
        return timed(
            lambda i: read[grid](words[i], out, nbytes // 4, BLOCK=block, STEPS=steps, num_warps=warps), len(words)
        )

    shapes = ((1024, 4, 4), (2048, 4, 4), (2048, 2, 4), (4096, 2, 8), (1024, 8, 4), (4096, 4, 8))
    return min(once(*shape) for shape in shapes)


def dense(shape: tuple[int, int], inputs: Sequence[Tensor]) -> list[float]:
    """Microseconds of torch's product of a float weight [out, in] with each of the inputs [tokens, in], in their dtype."""
    dtype = inputs[0].dtype
    copies = copies_of(shape[0] * shape[1] * dtype.itemsize)
    weights = [torch.randn(*shape, device="cuda", dtype=dtype) for _ in range(copies)]
    return [timed(lambda i, x=x: F.linear(x, weights[i]), copies, replays_of(len(x))) for x in inputs]


# ---- the check


def activations(tokens: int, features: int, dtype: torch.dtype, outliers: bool, device: str = "cuda") -> Tensor:
    """Fresh normal numbers; with a few columns far out, the others well inside the threshold."""
    x = torch.randn(tokens, features, device=device)
    if outliers:
        x = x.clamp(-5, 5)
        x[:, :: max(1, features // OUTLIERS)][:, :OUTLIERS] = 20.0
    return x.to(dtype)


def error(y: Tensor, expected: Tensor) -> float:
    """||y - expected|| / ||expected||."""
    return float((y.double() - expected).norm() / expected.norm())


def right(y: Tensor, expected: Tensor, what: str) -> float:
    """The error of y [tokens, out], 16 bits, against float64 of the same codes.

    Raises:
        ArithmeticError: it is above `LIMIT`, or NaN.
    """
    wrong = error(y, expected)
    if not wrong < LIMIT[y.dtype]:
        raise ArithmeticError(
            f"{what} is off by {wrong:.1e} of what the same codes make in float64, for {len(y)} tokens of {y.dtype}, where "
            f"rounding explains {LIMIT[y.dtype]:.0e}; a kernel is wrong on this card, please report it"
        )
    return wrong


def poison(shape: Sequence[int], x: Tensor) -> None:
    """Leave NaN in the memory that the allocator gives to the next tensor of this shape, where x is and in its dtype."""
    torch.cuda.empty_cache()
    x.new_full(tuple(shape), torch.nan)


def checked(layer: QLinear, x: Tensor) -> float:
    """The error of `layer(x)`, x float16 or bfloat16 [tokens, in], against the plain way, which is what float64 takes.

    Raises:
        ArithmeticError: it is above `LIMIT`, or NaN.
    """
    expected = layer(x.double())
    layer(x)  # lays the weight out, in memory that is not to be taken for the result's
    poison((len(x), layer.out_features), x)
    return right(layer(x), expected, str(layer))


# ---- the table


@torch.no_grad()
def measure(
    shape: tuple[int, int], tokens: Sequence[int], rows: Sequence[str], dtype: str
) -> tuple[list[GpuMeasurement], dict[str, str]]:
    """One shape: the float product first, then every scheme, at each number of tokens; and what could not be measured, and why.

    Args:
        rows: schemes as `parse_scheme` takes them; what is no scheme ("bf16") is the float product, measured in any case.
        dtype: "bf16" or "fp16", of the activations.
    """
    kind = DTYPES[dtype]
    weight = torch.randn(*shape, device="cuda")
    plain, wild = ([activations(count, shape[1], kind, outliers) for count in tokens] for outliers in (False, True))

    def rows_of(row: str, nbytes: int, times: Sequence[float], errors: Sequence[float | None]) -> list[GpuMeasurement]:
        least, cases = floor(nbytes), zip(tokens, times, errors, strict=True)
        return [GpuMeasurement(row, shape, dtype, count, nbytes, least, *pair) for count, *pair in cases]

    found, lost = rows_of(dtype.upper(), weight.numel() * kind.itemsize, dense(shape, plain), [None] * len(tokens)), {}
    for row in rows:
        scheme = parse_row(row)
        if not isinstance(scheme, Scheme):
            continue
        layer = scheme.layer(scheme.round(weight).q, None, None, kind)
        inputs = wild if getattr(layer, "threshold", 0) else plain
        try:
            errors = [checked(layer, x) for x in inputs]
        except ArithmeticError as why:
            lost[f"{name_row(row)}, {shape[0]}x{shape[1]}"] = str(why)
            continue
        layers = [layer, *(deepcopy(layer) for _ in range(copies_of(layer.qtensor.nbytes) - 1))]
        for one in layers:
            one(inputs[0])  # lays its weight out
        times = [_timed_layers(layers, x) for x in inputs]
        found += rows_of(name_row(row), layer.qtensor.nbytes, times, errors)
    return found, lost


def _timed_layers(layers: Sequence[QLinear], x: Tensor) -> float:
    return timed(lambda i: layers[i](x), len(layers), replays_of(len(x)))


def run(
    shapes: Sequence[tuple[int, int]] = SHAPES,
    tokens: Sequence[int] = TOKENS,
    rows: Sequence[str] = ROWS,
    dtype: str = "bf16",
) -> GpuRecord:
    """`measure` at each shape.

    Raises:
        ValueError: no card is here, a row is not understood, or a number that cannot be measured.
        ImportError: Triton is not installed.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is not one of {', '.join(DTYPES)}; give one of these")
    if wrong := [count for count in tokens if count < 1]:
        raise ValueError(f"tokens={wrong[0]} is no number of tokens; give 1 or more")
    for row in rows:
        parse_row(row)
    check_card()
    machine, found, lost = describe_card(), [], {}
    for shape in shapes:
        print(
            f"{shape[0]} x {shape[1]}", file=sys.stderr, flush=True
        )  # also into a file: a card that hangs is known by it
        measured, missed = measure(tuple(shape), tokens, rows, dtype)
        found += measured
        lost |= missed
    return GpuRecord(machine, tuple(found), lost)
