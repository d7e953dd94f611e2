"""Quantized layers on a GPU beside bfloat16: every result is checked, then timed.

python benchmarks/gpu.py [--rows 14336 --features 4096] [--tokens 1 8 16 64 256] [--out results.json]

How it is measured: CUDA-graph replays, so that the host's launching is not in the figures; the weights rotate over more memory
than the L2 cache holds; medians of 15 replays (7 from 1024 tokens on), the first not counted. In the same run: torch's bfloat16
product, a kernel that only reads the bytes of the weight (the floor for few tokens), torch's tinygemm, and gemlite where it is
installed. Before it is timed, each result, its memory poisoned with NaN, is compared with the float64 product of the same
dequantized weight.
"""

import argparse
import dataclasses
import datetime
import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from qkit import NF4, LLMInt8, QTensor, quantize_tensor
from qkit.backends.triton import integer, layout, tiles
from qkit.backends.triton import linear as adapter
from qkit.methods.int8 import int8_rows
from qkit.numerics.activations import quantize_activations_int8
from qkit.numerics.integers import int8_codes, int8_matmul
from qkit_kernels.triton.read import read

ROTATED = 312e6  # bytes: six times the L2 of an H100 or H200
LIMIT = {torch.float16: 1e-3, torch.bfloat16: 4e-3}  # relative error; 16-bit weights and results make about half of it
OUTLIERS = 21


def timed(call: Callable[[int], object], copies: int, replays: int = 15) -> float:
    """Microseconds of `call(i)`, i running over the copies of a weight: the median of graph replays."""
    calls = max(copies, 8)
    call(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(calls):
            call(i % copies)
    times = []
    for _ in range(replays + 1):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / calls)
    return sorted(times[1:])[replays // 2]


def copies_of(nbytes: int) -> int:
    """How many copies rotate."""
    return max(1, math.ceil(ROTATED / nbytes))


def floor(nbytes: int) -> float:
    """Microseconds to read so many bytes: the best of a few shapes."""
    copies = copies_of(nbytes)
    words = [torch.randint(0, 2**31, (nbytes // 4,), device="cuda", dtype=torch.int32) for _ in range(copies)]
    out = torch.empty(2**17, dtype=torch.int32, device="cuda")

    def once(block: int, steps: int, warps: int) -> float:
        grid = (triton.cdiv(nbytes // 4, block * steps),)
        return timed(
            lambda i: read[grid](words[i], out, nbytes // 4, BLOCK=block, STEPS=steps, num_warps=warps), copies
        )

    return min(
        once(*shape) for shape in ((1024, 4, 4), (2048, 4, 4), (2048, 2, 4), (4096, 2, 8), (1024, 8, 4), (4096, 4, 8))
    )


def error(y: Tensor, expected: Tensor) -> float:
    """||y - expected|| / ||expected||."""
    return float((y.double() - expected).norm() / expected.norm())


@dataclasses.dataclass
class Case:
    """A weight and how it is multiplied.

    Attributes:
        nbytes: of what a product must read of the weight.
        run: (x, copy, y): y = x ŵᵀ.
        expected: float64 of x.
        copies: how many weights rotate.
    """

    nbytes: int
    run: Callable[[Tensor, int, Tensor], object]
    expected: Callable[[Tensor], Tensor]
    copies: int


def weight_only(q, dtype: torch.dtype) -> Case:
    """Codes times floats."""
    laid = layout.laid(q, dtype)
    nbytes = sum(t.nbytes for t in (laid.words, laid.grid, laid.off) if t is not None)
    copies = [
        dataclasses.replace(laid, words=laid.words.clone(), grid=laid.grid.clone()) for _ in range(copies_of(nbytes))
    ]
    w = q.dequantize().double()

    def run(x: Tensor, i: int, y: Tensor) -> None:
        adapter.product(x, copies[i], y)

    return Case(nbytes, run, lambda x: x.double() @ w.T, len(copies))


def integers(q: QTensor, threshold: float) -> Case:
    """Codes times codes."""
    made = integer.lay(q)
    copies = [dataclasses.replace(made, codes=made.codes.clone()) for _ in range(copies_of(made.codes.nbytes))]
    card = tiles.card(torch.cuda.current_device())

    def expected(x: Tensor) -> Tensor:
        out = (x.abs() >= threshold).any(0) if threshold else torch.zeros(x.shape[1], dtype=torch.bool, device=x.device)
        codes, scales = quantize_activations_int8(x.masked_fill(out, 0))
        y = int8_matmul(codes, int8_codes(q)).double() * scales.double()
        y += x[:, out].double() @ int8_codes(q)[:, out].double().T
        return y * q.scales.double().reshape(1, -1)

    def run(x: Tensor, i: int, y: Tensor) -> None:
        integer.launch(x, copies[i], None, threshold, None, y, card)

    return Case(made.codes.nbytes, run, expected, len(copies))


def activations(tokens: int, features: int, dtype: torch.dtype, outliers: bool) -> Tensor:
    """Fresh normal numbers; with a few columns far out, the others well inside the threshold."""
    x = torch.randn(tokens, features, device="cuda")
    if outliers:
        x = x.clamp(-5, 5)
        x[:, :: features // OUTLIERS][:, :OUTLIERS] = 20.0
    return x.to(dtype)


def dense(n: int, k: int, inputs: dict[int, Tensor]) -> dict[int, float]:
    """torch's bfloat16 product."""
    weights = [torch.randn(n, k, device="cuda", dtype=torch.bfloat16) for _ in range(copies_of(2 * n * k))]

    def one(x: Tensor) -> float:
        return timed(lambda i: F.linear(x, weights[i]), len(weights), 15 if len(x) < 1024 else 7)

    return {m: one(x) for m, x in inputs.items()}


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=14336)
    parser.add_argument("--features", type=int, default=4096)
    parser.add_argument(
        "--tokens", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 512, 1024, 2048, 4096]
    )
    parser.add_argument("--names", nargs="+", help="only these rows of the table")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    n, k = arguments.rows, arguments.features
    print(
        torch.cuda.get_device_name(),
        "torch",
        torch.__version__,
        "triton",
        triton.__version__,
        f"W {n} x {k}",
        flush=True,
    )

    w = torch.randn(n, k, device="cuda")
    inputs = {m: activations(m, k, torch.bfloat16, False) for m in arguments.tokens}
    times = {"bf16": dense(n, k, inputs)}
    report(times, "bf16", None, {})
    makers = {
        "W4 g128 bf16": lambda: weight_only(quantize_tensor(w, bits=4, group_size=128), torch.bfloat16),
        "W4 g128 fp16": lambda: weight_only(quantize_tensor(w, bits=4, group_size=128), torch.float16),
        "W4 g64 bf16": lambda: weight_only(quantize_tensor(w, bits=4, group_size=64), torch.bfloat16),
        "W4 g32 bf16": lambda: weight_only(quantize_tensor(w, bits=4, group_size=32), torch.bfloat16),
        "W4 row bf16": lambda: weight_only(quantize_tensor(w, bits=4, symmetric=True), torch.bfloat16),
        "W3 g128 bf16": lambda: weight_only(quantize_tensor(w, bits=3, group_size=128), torch.bfloat16),
        "W2 g128 bf16": lambda: weight_only(quantize_tensor(w, bits=2, group_size=128), torch.bfloat16),
        "W8 row bf16": lambda: weight_only(int8_rows(w), torch.bfloat16),
        "NF4 dq bf16": lambda: weight_only(quantize_tensor(w, NF4()), torch.bfloat16),
        "NF4 dq fp16": lambda: weight_only(quantize_tensor(w, NF4()), torch.float16),
        "W8A8 dynamic bf16": lambda: integers(int8_rows(w), 0.0),
        "LLM.int8 21 bf16": lambda: integers(int8_rows(w), LLMInt8().threshold),
    }
    errors, floors, sizes = {}, {}, {}
    for name, make in makers.items():
        if arguments.names and name not in arguments.names:
            continue
        case = make()
        dtype = torch.float16 if "fp16" in name else torch.bfloat16
        floors.setdefault(case.nbytes, floor(case.nbytes))
        sizes[name] = case.nbytes
        times[name], errors[name] = {}, {}
        for m in arguments.tokens:
            if m > 512 and name not in (
                "W4 g128 bf16",
                "NF4 dq bf16",
                "W8A8 dynamic bf16",
                "LLM.int8 21 bf16",
                "W8 row bf16",
            ):
                continue
            x, y = activations(m, k, dtype, "LLM" in name), torch.full((m, n), torch.nan, dtype=dtype, device="cuda")
            case.run(x, 0, y)
            errors[name][m] = error(y, case.expected(x))
            assert errors[name][m] < LIMIT[dtype], (name, m, errors[name][m])
            times[name][m] = timed(lambda i, case=case, x=x, y=y: case.run(x, i, y), case.copies, 15 if m < 1024 else 7)
        report(times, name, floors[case.nbytes], errors[name])
    for name, peer in ({} if arguments.names else peers(w)).items():
        times[name] = {}
        for m in arguments.tokens:
            if m <= 512:
                call, copies = peer(inputs[m])
                times[name][m] = timed(call, copies)
        report(times, name, None, {})
    if arguments.out:  # as `qkit.bench.recorded` reads it
        record = {
            "machine": torch.cuda.get_device_name(),
            "date": datetime.date.today().isoformat(),
            "versions": {"torch": torch.__version__, "triton": triton.__version__},
            "rows": n,
            "features": k,
            "baseline": "bf16",
            "microseconds": times,
            "floors": {name: floors[nbytes] for name, nbytes in sizes.items()},
        }
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


def report(times: dict[str, dict[int, float]], name: str, least: float | None, errors: dict[int, float]) -> None:
    """One line for each number of tokens."""
    for m, us in times[name].items():
        to_floor = f"{us / least:6.2f} x floor {least:.2f}" if least and m <= 16 else ""
        wrong = f"error {errors[m]:.1e}" if m in errors else ""
        print(f"{name:20} M={m:<5} {us:8.2f} us {us / times['bf16'][m]:6.3f} x bf16 {to_floor} {wrong}", flush=True)


def peers(w: Tensor) -> dict[str, Callable[[Tensor], tuple[Callable[[int], object], int]]]:
    """Other libraries' 4-bit products of the same shape, where they are there."""
    n, k = w.shape
    found = {}
    codes = torch.randint(0, 16, (n, k), device="cuda", dtype=torch.int32)
    octets = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8)
    packed = torch.ops.aten._convert_weight_to_int4pack(octets, 8)
    tiny = [packed.clone() for _ in range(copies_of(n * k // 2))]
    grids = torch.rand(k // 128, n, 2, device="cuda", dtype=torch.bfloat16)
    found["tinygemm W4 g128"] = lambda x: (
        lambda i: torch.ops.aten._weight_int4pack_mm(x, tiny[i], 128, grids),
        len(tiny),
    )
    try:
        from gemlite.helper import A16Wn  # type: ignore[import-not-found]
    except ImportError:
        pass
    else:
        codes8 = codes.to(torch.uint8)
        scale, zero = (
            torch.rand(n, k // 128, device="cuda", dtype=torch.bfloat16),
            torch.full((n, k // 128), 8.0, device="cuda", dtype=torch.bfloat16),
        )
        layers = [
            A16Wn(device="cuda", dtype=torch.bfloat16).from_weights(
                codes8, scale, zero, W_nbits=4, group_size=128, bias=None
            )
            for _ in range(copies_of(n * k // 2))
        ]
        found["gemlite W4 g128"] = lambda x: (lambda i: layers[i](x), len(layers))
    return found


if __name__ == "__main__":
    main()
