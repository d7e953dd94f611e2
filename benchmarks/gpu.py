"""Quantized layers on a GPU beside bfloat16: every result is checked, then timed.

python benchmarks/gpu.py [--sizes 14336x4096 4096x4096] [--tokens 1 8 16 64 256] [--names "W4 g128 bf16"] [--out results.json]

The developer's table: more formats, sizes and numbers of tokens than `qkit bench gpu`, which has the clock and the checks
(`qkit.bench.gpu` says how is measured), and what is launched is the kernel's adapter, without the layer around it. Bytes of a
weight are those that a product reads of it as it is laid out. Kernels are compiled first, a process for each row of the table,
since that takes longer than all that is timed; then each is timed alone. In the same run: torch's tinygemm, and gemlite and
bitsandbytes where they are installed. bitsandbytes' LLM.int8 waits for the host at every call, so that no graph can hold it: its
launches are in its figures, as they are in a model.
"""

import argparse
import dataclasses
import datetime
import json
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median

import torch
import triton
from torch import Tensor

from qkit import NF4, LLMInt8, QTensor, quantize_tensor
from qkit.backends.triton import integer, layout, tiles
from qkit.backends.triton import linear as adapter
from qkit.bench.child import all_at_once
from qkit.bench.gpu import MANY, activations, check_card, copies_of, dense, error, floor, replays_of, right, timed
from qkit.bench.peers import int8_on_card, nf4_on_card
from qkit.methods.int8 import int8_rows
from qkit.numerics.activations import quantize_activations_int8
from qkit.numerics.integers import int8_codes, int8_matmul

# Rows that are timed for more than 512 tokens too
TO_THE_END = ("W4 g128 bf16", "NF4 dq bf16", "W8A8 dynamic bf16", "LLM.int8 21 bf16", "W8 row bf16")


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


def integers_in_float64(x: Tensor, q: QTensor, threshold: float) -> Tensor:
    """What INT8 codes of x, and its outliers as they are, times those of q make."""
    out = (x.abs() >= threshold).any(0) if threshold else torch.zeros(x.shape[1], dtype=torch.bool, device=x.device)
    codes, scales = quantize_activations_int8(x.masked_fill(out, 0))
    y = int8_matmul(codes, int8_codes(q)).double() * scales.double()
    y += x[:, out].double() @ int8_codes(q)[:, out].double().T
    return y * q.scales.double().reshape(1, -1)


def integers(q: QTensor, threshold: float) -> Case:
    """Codes times codes."""
    made = integer.lay(q)
    copies = [dataclasses.replace(made, codes=made.codes.clone()) for _ in range(copies_of(made.codes.nbytes))]
    card = tiles.card(torch.cuda.current_device())

    def run(x: Tensor, i: int, y: Tensor) -> None:
        integer.launch(x, copies[i], None, threshold, None, y, card)

    return Case(made.codes.nbytes, run, lambda x: integers_in_float64(x, q, threshold), len(copies))


# The rows of the table: each makes a case of a weight w
ROWS: dict[str, Callable[[Tensor], Case]] = {
    "W4 g128 bf16": lambda w: weight_only(quantize_tensor(w, bits=4, group_size=128), torch.bfloat16),
    "W4 g128 fp16": lambda w: weight_only(quantize_tensor(w, bits=4, group_size=128), torch.float16),
    "W4 g64 bf16": lambda w: weight_only(quantize_tensor(w, bits=4, group_size=64), torch.bfloat16),
    "W4 g32 bf16": lambda w: weight_only(quantize_tensor(w, bits=4, group_size=32), torch.bfloat16),
    "W4 row bf16": lambda w: weight_only(quantize_tensor(w, bits=4, symmetric=True), torch.bfloat16),
    "W3 g128 bf16": lambda w: weight_only(quantize_tensor(w, bits=3, group_size=128), torch.bfloat16),
    "W2 g128 bf16": lambda w: weight_only(quantize_tensor(w, bits=2, group_size=128), torch.bfloat16),
    "W8 row bf16": lambda w: weight_only(int8_rows(w), torch.bfloat16),
    "NF4 dq bf16": lambda w: weight_only(quantize_tensor(w, NF4()), torch.bfloat16),
    "NF4 dq fp16": lambda w: weight_only(quantize_tensor(w, NF4()), torch.float16),
    "W8A8 dynamic bf16": lambda w: integers(int8_rows(w), 0.0),
    "LLM.int8 21 bf16": lambda w: integers(int8_rows(w), LLMInt8().threshold),
}


def compile_all(arguments: argparse.Namespace) -> None:
    """Every product once, a process for each row of the table: what is launched later is compiled then."""
    command = [__file__, "--check", "--sizes", *arguments.sizes, "--tokens", *map(str, arguments.tokens), "--names"]
    all_at_once([*command, name] for name in ROWS if name in (arguments.names or ROWS))


@torch.no_grad()
def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["14336x4096"], help="of the weights, out x in")
    parser.add_argument(
        "--tokens", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 512, 1024, 2048, 4096]
    )
    parser.add_argument("--names", nargs="+", help="only these rows of the table")
    parser.add_argument("--out", type=Path, help="a JSON file; of several sizes, each has its own")
    parser.add_argument("--check", action="store_true", help="compile and check, time nothing")
    arguments = parser.parse_args()
    sizes = [(size, *map(int, size.split("x"))) for size in arguments.sizes]
    out = arguments.out
    check_card()
    if arguments.check:
        for (_, n, k), name in product(sizes, arguments.names):
            ours(ROWS[name](torch.randn(n, k, device="cuda")), inputs_of(name, arguments.tokens, k), n, timing=False)
        return
    compile_all(arguments)
    print(torch.cuda.get_device_name(), "torch", torch.__version__, "triton", triton.__version__, flush=True)
    failed = []
    for size, n, k in sizes:
        print(f"W {n} x {k}", flush=True)
        if arguments.out and len(sizes) > 1:
            out = arguments.out.with_stem(f"{arguments.out.stem}-{size}")
        failed += measured(n, k, arguments, out)
    if failed:
        raise SystemExit(f"not measured: {', '.join(failed)}")


def measured(n: int, k: int, arguments: argparse.Namespace, out: Path | None) -> list[str]:
    """The table of one size, printed and saved as it comes; what could not be measured."""
    w = torch.randn(n, k, device="cuda")
    inputs = {m: activations(m, k, torch.bfloat16, False) for m in arguments.tokens}
    times = {"bf16": dict(zip(inputs, dense((n, k), list(inputs.values())), strict=True))}
    report(times, "bf16", None, {})
    hot = {m: [times["bf16"][m]] for m in inputs if m >= MANY}
    errors, floors, sizes, failed = {}, {}, {}, []

    def save() -> None:
        """What there is so far, as `qkit.bench.recorded` reads it."""
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
        if out:
            out.write_text(json.dumps(record, indent=1) + "\n")

    for name, make in ROWS.items():
        if arguments.names and name not in arguments.names:
            continue
        for m, found in hot.items():
            found += dense((n, k), [inputs[m]])
            times["bf16"][m] = median(found)
        try:
            case = make(w)
            if case.nbytes not in floors:
                floors[case.nbytes] = floor(case.nbytes)
            times[name], errors[name] = ours(case, inputs_of(name, arguments.tokens, k), n)
        except Exception as why:  # the other rows are wanted all the same
            print(f"{name:21} NOT MEASURED: {why!r:.300}", flush=True)
            failed.append(f"{name} {n}x{k}")
        else:
            sizes[name] = case.nbytes
            report(times, name, floors[case.nbytes], errors[name])
            save()
    for name, peer in PEERS.items():
        if arguments.names and name not in arguments.names:
            continue
        try:
            times[name] = peer.times(w, [m for m in arguments.tokens if m <= peer.most])
        except Exception as why:  # not installed, or another way of failing that is not ours
            print(f"{name:21} not measured: {why!r:.300}", flush=True)
        else:
            report(times, name, None, {})
            save()
    return failed


def inputs_of(name: str, tokens: list[int], k: int) -> list[Tensor]:
    """What a row of the table is timed with, for each number of tokens."""
    dtype = torch.float16 if "fp16" in name else torch.bfloat16
    return [activations(m, k, dtype, "LLM" in name) for m in tokens if m <= 512 or name in TO_THE_END]


def ours(case: Case, xs: list[Tensor], rows: int, timing: bool = True) -> tuple[dict[int, float], dict[int, float]]:
    """Microseconds (unless they are not wanted) and errors for each x, by its number of tokens.

    Raises:
        ArithmeticError: an error is above `LIMIT`, or NaN.
    """
    times, errors = {}, {}
    for x in xs:
        m, y = len(x), torch.full((len(x), rows), torch.nan, dtype=x.dtype, device=x.device)
        case.run(x, 0, y)
        errors[m] = right(y, case.expected(x), "the product")
        if timing:
            times[m] = timed(lambda i, x=x, y=y: case.run(x, i, y), case.copies, replays_of(m))
    return times, errors


def report(times: dict[str, dict[int, float]], name: str, least: float | None, errors: dict[int, float]) -> None:
    """One line for each number of tokens."""
    for m, us in times[name].items():
        to_floor = f"{us / least:6.2f} x floor {least:.2f}" if least and m <= 16 else ""
        wrong = f"error {errors[m]:.1e}" if m in errors else ""
        print(f"{name:21} M={m:<5} {us:8.2f} us {us / times['bf16'][m]:6.3f} x bf16 {to_floor} {wrong}", flush=True)


Layers = list[Callable[[Tensor], Tensor]]


@dataclasses.dataclass
class Peer:
    """Another library's layer.

    Attributes:
        layers: as many as rotate, of a weight [N, K].
        most: tokens, more of which take too long to time.
        captured: whether a CUDA graph can hold it.
        outliers: whether it looks for some.
    """

    layers: Callable[[Tensor], Layers]
    most: int = 512
    captured: bool = True
    outliers: bool = False

    def times(self, w: Tensor, tokens: list[int]) -> dict[int, float]:
        """Microseconds for each number of tokens."""
        layers = self.layers(w)

        def one(x: Tensor) -> float:
            return timed(lambda i: layers[i](x), len(layers), replays_of(len(x)), self.captured)

        return {m: one(activations(m, w.shape[1], torch.bfloat16, self.outliers)) for m in tokens}


def tinygemm(w: Tensor) -> Layers:
    """torch's own W4, random codes."""
    n, k = w.shape
    octets = torch.randint(0, 256, (n, k // 2), device="cuda", dtype=torch.int32).to(torch.uint8)
    packed = torch.ops.aten._convert_weight_to_int4pack(octets, 8)
    grids = torch.rand(k // 128, n, 2, device="cuda", dtype=torch.bfloat16)
    weights = [packed.clone() for _ in range(copies_of(n * k // 2))]
    return [
        partial(torch.ops.aten._weight_int4pack_mm, mat2=own, qGroupSize=128, qScaleAndZeros=grids) for own in weights
    ]


def gemlite(w: Tensor) -> Layers:
    """gemlite's W4, random codes."""
    from gemlite.helper import A16Wn  # type: ignore[import-not-found]

    n, k = w.shape
    codes = torch.randint(0, 16, (n, k), device="cuda", dtype=torch.int32).to(torch.uint8)
    grid = {"device": "cuda", "dtype": torch.bfloat16}
    scale, zero = torch.rand(n, k // 128, **grid), torch.full((n, k // 128), 8.0, **grid)
    return [
        A16Wn(**grid).from_weights(codes, scale, zero, W_nbits=4, group_size=128, bias=None)
        for _ in range(copies_of(n * k // 2))
    ]


def bitsandbytes(make: Callable[[Tensor], torch.nn.Module], bits: int, w: Tensor) -> Layers:
    """bitsandbytes' layers of the weight itself, which they are to multiply by."""
    weight = w.bfloat16()
    layers = [make(weight.clone()) for _ in range(copies_of(w.numel() * bits // 8))]
    x = activations(8, w.shape[1], torch.bfloat16, False)
    assert error(layers[0](x), x.double() @ w.double().T) < 0.2
    return layers


PEERS = {
    "tinygemm W4 g128": Peer(tinygemm),
    "gemlite W4 g128": Peer(gemlite),
    "bitsandbytes NF4": Peer(partial(bitsandbytes, nf4_on_card, 4), 4096),
    "bitsandbytes LLM.int8": Peer(partial(bitsandbytes, int8_on_card, 8), 4096, captured=False, outliers=True),
}


if __name__ == "__main__":
    main()
