"""A model quantized on a GPU beside the same on a CPU: which codes differ, and whether rounding alone can have done it.

    python benchmarks/gpu_codes.py text out/text.safetensors                                 tokens, once: each Python has its own
    python benchmarks/gpu_codes.py model out/cpu out/text.safetensors
    python benchmarks/gpu_codes.py model out/backwards out/text.safetensors --order backwards    a control; and another, shuffled
    python benchmarks/gpu_codes.py model out/cuda out/text.safetensors --device cuda         on another machine, if need be
    python benchmarks/gpu_codes.py table out/cpu out/backwards out/shuffled out/cuda
    python benchmarks/gpu_codes.py given out/text.safetensors                                the same statistics on both devices
    python benchmarks/gpu_codes.py layers                                                    how long

Where a scheme looks at data, what it sees are sums of float32, and a GPU adds them up in another order. The control is the same
CPU with the products of layers that are still floats added up from the last column to the first (or shuffled), and the
calibration text read from its last chunk to its first (or shuffled): the same numbers, in another order. As many codes as that
moves, rounding moves. (A layer that is quantized already is multiplied by its kernel, in the kernel's order: GPTQ, whose layers
are solved one after the other on quantized inputs, feels mostly the order of the chunks.)

And where both devices are `given` the same statistics, whatever still differs is made by the solver.
"""

import argparse
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import qkit
from qkit import AWQ, FP4, GPTQ, NF4, RTN, W8A8, LLMInt8, SmoothQuant, ops
from qkit.engine import stream
from qkit.methods import awq
from qkit.methods.gptq import choose_grid, gptq, inverse_cholesky
from qkit.methods.scheme import Scheme
from qkit.methods.statistics import InputStatistics
from qkit.model.surgery import clone
from qkit.nn.layers import quantized_layers
from qkit.numerics.mapping import GroupSize, grouped
from qkit.text.tokens import CHUNK_LENGTH, calibration_chunks, token_chunks

BLIND = (RTN(4, 128), RTN(3, 64, symmetric=True), RTN(8), NF4(), FP4(), LLMInt8(), W8A8(), W8A8("per-tensor"))
SEEING = (AWQ(4, 128), SmoothQuant(), SmoothQuant(0.5, "per-tensor"), GPTQ(4, 128), GPTQ.paper(4, 128, symmetric=True))
EVALUATED = 8  # chunks


def text(path: Path) -> None:
    """Calibration and evaluation tokens of bookworm-14m in a file."""
    _, tokenizer = qkit.load("bookworm-14m")
    calibration = calibration_chunks(qkit.texts("python-docs"), tokenizer, CHUNK_LENGTH)
    evaluation = token_chunks(qkit.texts("python-docs-heldout"), tokenizer, max_chunks=EVALUATED)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"calibration": calibration, "evaluation": evaluation}, path)


def places(n: int, order: str) -> Tensor:
    """In which order n things are taken."""
    if order == "shuffled":
        return torch.randperm(n, generator=torch.Generator().manual_seed(0))
    return torch.arange(n) if order == "forwards" else torch.arange(n).flip(0)


@contextmanager
def summing(order: str) -> Iterator[None]:
    """Inside, layers of floats add up their products from the last to the first ("backwards"), or "shuffled"; AWQ its rows."""
    linear, magnitude = torch.nn.functional.linear, awq.relative_magnitude

    def shuffled(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        columns = places(x.shape[-1], order)
        return linear(x[..., columns], weight[:, columns], bias)

    def of_rows(weight: Tensor, group_size: GroupSize) -> Tensor:
        return magnitude(weight[places(len(weight), order)], group_size)

    products = mock.patch.object(torch.nn.functional, "linear", shuffled)
    with products, mock.patch.object(awq, "relative_magnitude", of_rows):
        yield


def synchronized() -> float:
    """The time when the card is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def model(folder: Path, tokens: Path, device: str, order: str) -> None:
    """Quantize by every scheme; write what it took and gave, and the codes of those that look at data."""
    folder.mkdir(parents=True, exist_ok=True)
    chunks = load_file(tokens)
    original = qkit.load("bookworm-14m")[0].to(device)
    calibration = chunks["calibration"][places(len(chunks["calibration"]), order)]
    records = {}
    for scheme in (*BLIND, *SEEING):
        with nullcontext() if order == "forwards" else summing(order):
            quantized = clone(original)
            start = synchronized()
            report = qkit.quantize(quantized, scheme, calibration=calibration, progress=False)
            seconds = synchronized() - start
            perplexity = qkit.perplexity(quantized, None, chunks["evaluation"], progress=False)
        layers = quantized_layers(quantized)
        parts = {f"{name}.{part}": t.cpu() for name, q in layers.items() for part, t in q.named_buffers(recurse=False)}
        digests = {key: hashlib.sha256(t.contiguous().numpy().tobytes()).hexdigest()[:16] for key, t in parts.items()}
        records[scheme.name] = {"seconds": seconds, "perplexity": perplexity, "digests": digests}
        print(f"{scheme.name:24} {seconds:7.2f} s   perplexity {perplexity:.4f}", flush=True)
        if scheme in SEEING:
            codes = {f"{name}.codes": layer.qtensor.packed for name, layer in layers.items()}
            for i, one in enumerate(report.scaling):
                codes |= {f"{i}.salience": one.salience, f"{i}.scale": one.scale}
                records[scheme.name].setdefault("folds", []).append(f"{one.block} {one.fold.producer}")
            codes |= {key: t for key, t in parts.items() if key.endswith("input_scale")}
            save_file({key: t.cpu().contiguous() for key, t in codes.items()}, folder / f"{scheme.name}.safetensors")
        (folder / "records.json").write_text(json.dumps(records))


def unpacked(packed: Tensor, eight: bool) -> Tensor:
    """Codes as whole numbers."""
    return packed.int() if eight else torch.cat([packed & 15, packed >> 4], 1).int()


def table(folders: list[Path]) -> None:
    """What differs between the first folder and each of the others; seconds are those of the last."""
    base, *others = folders
    records = {folder: json.loads((folder / "records.json").read_text()) for folder in folders}
    columns = [f"perplexity {f.name}" for f in folders] + [f"codes that {f.name} has otherwise" for f in others]
    print(f"| | {' | '.join(columns)} | s on {others[-1].name} |")
    print("|---" * (len(columns) + 2) + "|")
    for scheme in records[base]:
        cells = [f"{records[folder][scheme]['perplexity']:.4f}" for folder in folders]
        cells += [differing(base, folder, records, scheme) for folder in others]
        print(f"| {scheme} | {' | '.join(cells)} | {records[others[-1]][scheme]['seconds']:.1f} |")
    print()
    for scheme in SEEING:
        for folder in others:
            growth(base, folder, scheme.name)
        if isinstance(scheme, AWQ | SmoothQuant):
            for folder in others:
                factors(base, folder, records[base][scheme.name]["folds"], scheme.name)


def differing(base: Path, other: Path, records: dict, scheme: str) -> str:
    """In words."""
    file = f"{scheme}.safetensors"
    mine, theirs = (records[folder][scheme]["digests"] for folder in (base, other))
    kinds = sorted({key.rpartition(".")[2] for key in mine if mine[key] != theirs[key]})
    if not (base / file).exists():
        return ("some" if "packed" in kinds else "0") + f" (but {', '.join(kinds)})" * bool(kinds)
    count = total = largest = 0
    a, b = load_file(base / file), load_file(other / file)
    for key in a:
        if key.endswith(".codes"):
            difference = (unpacked(a[key], "Smooth" in scheme) - unpacked(b[key], "Smooth" in scheme)).abs()
            count, total = count + int((difference != 0).sum()), total + difference.numel()
            largest = max(largest, int(difference.max()))
    return f"{count:,} ({count / total:.1%}), by up to {largest}"


def growth(base: Path, other: Path, scheme: str) -> None:
    """The share of differing codes, block by block: it begins with nothing."""
    a, b = load_file(base / f"{scheme}.safetensors"), load_file(other / f"{scheme}.safetensors")
    counts: dict[int, list[int]] = {}
    for key in a:
        if key.endswith(".codes"):
            eight = "Smooth" in scheme
            found = counts.setdefault(int(key.split(".")[2]), [0, 0])
            found[0] += int((unpacked(a[key], eight) != unpacked(b[key], eight)).sum())
            found[1] += unpacked(a[key], eight).numel()
    shares = " ".join(f"{100 * n / total:.2g}" for _, (n, total) in sorted(counts.items()))
    print(f"{scheme}, {other.name}: % of the codes of each block: {shares}")


def factors(base: Path, other: Path, folds: list[str], scheme: str) -> None:
    """How far what a channel is scaled by, and the largest |x| or the mean |x| behind it, are apart; in each block, the most."""
    a, b = load_file(base / f"{scheme}.safetensors"), load_file(other / f"{scheme}.safetensors")
    for part in ("salience", "scale", "input_scale"):
        worst: dict[str, float] = {}
        for key in a:
            if key.endswith(f".{part}"):
                block = (
                    folds[int(key.split(".")[0])].split()[0].split(".")[-1]
                    if part != "input_scale"
                    else key.split(".")[2]
                )
                apart = ((a[key] - b[key]).abs() / a[key].abs().clamp(min=1e-30)).max()
                worst[block] = max(worst.get(block, 0.0), float(apart))
        if worst:
            print(f"{scheme}, {other.name}: {part} apart by up to: {' '.join(f'{w:.1g}' for w in worst.values())}")


def moved(inputs: InputStatistics, device: str) -> InputStatistics:
    """The same statistics on another device."""
    parts = {f.name: getattr(inputs, f.name) for f in dataclasses.fields(inputs)}
    return InputStatistics(**{name: p.to(device) if isinstance(p, Tensor) else p for name, p in parts.items()})


def given(tokens: Path) -> None:
    """Calibrate on the card; let the CPU solve every layer and search every scale again from the very same statistics."""
    calibration = load_file(tokens)["calibration"]
    for scheme in (GPTQ(4, 128), AWQ(4, 128), SmoothQuant(0.5, "per-tensor"), GPTQ.paper(4, 128, symmetric=True)):
        quantized = qkit.load("bookworm-14m")[0].to("cuda")
        solved, searched = [], []
        solve, search = stream.solve_layer, type(scheme).search_scale

        def solving(weight, bias, scheme, inputs, name, solve=solve, solved=solved):
            done = solve(weight, bias, scheme, inputs, name)
            solved.append((weight.cpu(), moved(inputs, "cpu"), {k: t.cpu() for k, t in done.q.tensors().items()}))
            return done

        def searching(self, weight, inputs, index, width, name, search=search, searched=searched):
            done = search(self, weight, inputs, index, width, name)
            searched.append((weight.cpu(), moved(inputs, "cpu"), index, width, done.scale.cpu(), done.alpha))
            return done

        with (
            mock.patch.object(stream, "solve_layer", solving),
            mock.patch.object(type(scheme), "search_scale", searching),
        ):
            qkit.quantize(quantized, scheme, calibration=calibration, progress=False)
        report(scheme, solved, searched)


def report(scheme: Scheme, solved: list, searched: list) -> None:
    """What the CPU makes of it."""
    start, codes, total, grids, alphas, apart = time.perf_counter(), 0, 0, 0, 0, 0.0
    for weight, inputs, expected in solved:
        q = scheme.round(weight, inputs).q
        codes += int((q.codes() != dataclasses.replace(q, **expected).codes()).sum())
        grids += sum(int((t != expected[name]).sum()) for name, t in q.tensors().items() if name != "packed")
        total += q.shape[0] * q.shape[1]
    for weight, inputs, index, width, scale, alpha in searched:
        done = scheme.search_scale(weight, inputs, index, width)
        alphas += done.alpha != alpha
        apart = max(apart, float(((done.scale - scale) / scale).abs().max()))
    print(
        f"{scheme.name}: of {total:,} codes {codes} differ, of scales and zero points {grids}"
        + f"; of {len(searched)} alphas {alphas}, factors apart by up to {apart:.1g}" * bool(searched)
        + f" ({time.perf_counter() - start:.0f} s)",
        flush=True,
    )


def seconds(function: Callable[..., object], *args: Any, repeats: int = 3) -> float:
    """The fastest of a few."""
    times = []
    for _ in range(repeats):
        start = synchronized()
        function(*args)
        times.append(synchronized() - start)
    return min(times)


def layer(rows: int, features: int) -> None:
    """One layer on the card: the column loop by kernel and in plain torch, and all of GPTQ."""
    generator = torch.Generator("cuda").manual_seed(0)
    random = partial(torch.randn, generator=generator, device="cuda")
    weight, mixed = 0.02 * random(rows, features), random(64, features)
    inputs = InputStatistics.empty(features, "cuda", frozenset({"square", "drift"}))
    spent = 0.0
    for _ in range(16):
        x = random(4096, 64) @ mixed + random(4096, features)
        spent += seconds(inputs.add, x, 1.01 * x, repeats=1)
    hessian = inputs.hessian.double()
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    shuffled = hessian[order][:, order]
    factor = seconds(inverse_cholesky, shuffled, 0.05, 0.3)
    upper, _ = inverse_cholesky(shuffled, 0.05, 0.3)
    groups = grouped(weight, 128)
    scale, zero = (
        t[..., 0]
        for t in choose_grid(groups, torch.ones(groups.shape[1:], device="cuda"), GPTQ.paper(4, 128, symmetric=True))
    )
    loop = partial(ops.gptq_columns, weight.double()[:, order], upper, order // 128, scale, zero, 4)
    by_kernel, plain = seconds(loop, "triton"), seconds(loop, "torch", repeats=1)
    same = torch.equal(loop("triton"), loop("torch"))
    del hessian, shuffled, upper, loop
    whole = {s.name: seconds(gptq, weight, inputs, s) for s in (GPTQ.paper(4, 128, symmetric=True), GPTQ(4, 128))}
    print(
        f"W {rows} x {features}: columns {by_kernel:.4f} s (plain torch {plain:.2f} s, the same codes: {same}); Cholesky "
        f"{factor:.3f} s; statistics of 65,536 tokens {spent:.2f} s; "
        + ", ".join(f"{name} {s:.3f} s" for name, s in whole.items())
        + f"; memory {torch.cuda.max_memory_allocated() / 2**30:.0f} GiB",
        flush=True,
    )


def layers() -> None:
    """A few sizes."""
    for rows, features in ((4096, 4096), (14336, 4096), (4096, 14336)):
        layer(rows, features)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def main() -> None:
    """Do one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("text").add_argument("file", type=Path)
    run = commands.add_parser("model")
    run.add_argument("folder", type=Path)
    run.add_argument("text", type=Path)
    run.add_argument("--device", default="cpu")
    run.add_argument("--order", choices=("forwards", "backwards", "shuffled"), default="forwards")
    commands.add_parser("table").add_argument("folders", type=Path, nargs="+")
    commands.add_parser("given").add_argument("text", type=Path)
    commands.add_parser("layers")
    arguments = parser.parse_args()
    if torch.cuda.is_available():
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    if arguments.command == "text":
        text(arguments.file)
    elif arguments.command == "model":
        model(arguments.folder, arguments.text, arguments.device, arguments.order)
    elif arguments.command == "table":
        table(arguments.folders)
    elif arguments.command == "given":
        given(arguments.text)
    else:
        layers()


if __name__ == "__main__":
    main()
