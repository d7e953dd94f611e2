"""Every way to cut a product for a card, timed: what the table of `qkit.backends.triton.tiles` is made and looked over by.

    python benchmarks/gpu_tiles.py --shapes 14336x4096 4096x4096 --tokens 32 64 128 256 --bits 4 --out tiles.json
    python benchmarks/gpu_tiles.py --integers --out integers.json
    python benchmarks/gpu_prices.py integers.json

For each number of tokens torch's bfloat16, what is launched without being asked for ("table"), the fastest tiles, and the weight
made floats first. Everything is compiled first, by several processes at once, and each result is checked before it is timed.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from gpu import integers_in_float64
from torch import Tensor

from qkit import quantize_tensor
from qkit.backends.triton import integer, layout, linear, tiles
from qkit.backends.triton.integer_tiles import Integers
from qkit.bench.child import all_at_once
from qkit.bench.gpu import activations, check_card, copies_of, dense, right, timed
from qkit.bench.linear import parse_shape
from qkit.methods.int8 import int8_rows

REPLAYS = 7
# Tokens and rows of a tile, columns at a time, warps, stages, and whether the tokens are the narrow side
INTEGERS = tuple(
    Integers(*cut)
    for cut in (
        *((32, 64, 128, 4, 5, True), (32, 128, 128, 4, 5, True), (32, 128, 256, 4, 4, True)),
        *((64, 64, 128, 4, 3, True), (64, 64, 128, 4, 5, True), (64, 64, 256, 4, 4, True)),
        *((64, 128, 128, 4, 3, True), (64, 128, 128, 4, 4, True), (64, 256, 128, 8, 4, True)),
        *((128, 64, 128, 4, 4, False), (128, 128, 128, 4, 3, True), (128, 128, 128, 8, 3, False)),
        *((128, 128, 128, 8, 4, False), (128, 128, 256, 8, 3, False), (128, 256, 128, 8, 4, False)),
    )
)


def ways(
    tokens: int, weight: layout.Laid, card: tiles.Card
) -> dict[str, Callable[[Tensor, layout.Laid, Tensor], object]]:
    """By name: what multiplies x, a copy of the weight and y."""

    def tile(cut):
        return lambda x, w, y: linear.launch(linear.aligned(x), w, y, cut, card)

    found = {"table": linear.product}
    for cut in tiles.candidates(tokens, weight, card):
        name = type(cut).__name__.lower() + " " + " ".join(f"{key}={value}" for key, value in asdict(cut).items())
        found[name] = tile(cut)
    if tokens > 128:
        found["floats"] = lambda x, w, y: torch.mm(x, linear.floats(w, card.ptx).T, out=y)
    return found


def integer_ways(tokens: int, card: tiles.Card) -> dict[str, Callable[[Tensor, integer.Bytes, Tensor], object]]:
    """The same of INT8 times INT8: tiles that are not four times as tall as the tokens are."""

    def tile(cut: Integers | None):
        return lambda x, w, y: integer.launch(x, w, None, 0.0, None, y, card, cut)

    found = {"table": tile(None)}
    for cut in INTEGERS:
        if cut.bm <= max(32, 2 * tokens):
            found[" ".join(str(number) for number in asdict(cut).values())] = tile(cut)
    return found


def measure(shape: tuple[int, int], tokens: list[int], bits: int | None, timing: bool) -> dict[str, dict[str, float]]:
    """Microseconds by tokens and way; 0 where nothing is timed.

    Args:
        bits: of a weight that is multiplied by floats; None for INT8 times INT8.
    """
    n, k = shape
    card = tiles.card(torch.cuda.current_device())
    w = torch.randn(n, k, device="cuda")
    if bits is None:
        q = int8_rows(w)
        weight = integer.lay(q)
        copies = [replace(weight, codes=weight.codes.clone()) for _ in range(copies_of(weight.codes.nbytes))]
    else:
        q = quantize_tensor(w, bits=bits, group_size=128)
        weight, exact = layout.laid(q, torch.bfloat16), q.dequantize().double().T
        copies = [
            replace(weight, words=weight.words.clone(), grid=weight.grid.clone())
            for _ in range(copies_of(weight.words.nbytes))
        ]
    inputs = [activations(m, k, torch.bfloat16, False) for m in tokens]
    plain = dense(shape, inputs) if timing else [0.0] * len(inputs)
    found = {}
    for x, us in zip(inputs, plain, strict=True):
        m = len(x)
        expected = integers_in_float64(x, q, 0.0) if bits is None else x.double() @ exact
        found[str(m)] = {"bf16": us}
        for name, way in (integer_ways(m, card) if bits is None else ways(m, weight, card)).items():
            y = torch.full((m, n), torch.nan, dtype=x.dtype, device=x.device)
            way(x, weight, y)
            right(y, expected, name)
            if timing:
                us = timed(lambda i, x=x, y=y, way=way: way(x, copies[i], y), len(copies), REPLAYS)
                found[str(m)][name] = us
    return found


@torch.no_grad()
def main() -> None:
    """Compile, measure, print the best of each, save all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["14336x4096"])
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 32, 64, 128, 192, 256, 300, 384, 512, 768, 1024])
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--integers", action="store_true", help="INT8 times INT8 instead")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--check", action="store_true", help="compile and check, time nothing")
    arguments = parser.parse_args()
    check_card()
    bits = None if arguments.integers else arguments.bits
    if not arguments.check:
        kind = ["--integers"] if arguments.integers else ["--bits", str(bits)]
        command = [__file__, "--check", "--shapes", *arguments.shapes, *kind, "--tokens"]
        all_at_once([*command, str(m)] for m in arguments.tokens)
    kept = {}
    for shape in arguments.shapes:
        kept[shape] = measure(parse_shape(shape), arguments.tokens, bits, not arguments.check)
        if arguments.check:
            continue
        for m, times in kept[shape].items():
            bf16, table = times["bf16"], times["table"]
            best = sorted((us, name) for name, us in times.items() if name not in ("bf16", "table"))[:3]
            shown = "; ".join(f"{us:.1f} {name}" for us, name in best)
            print(f"{shape} M={m:5} bf16 {bf16:6.1f} table {table:6.1f} ({table / bf16:.2f}): {shown}", flush=True)
        if arguments.out:
            arguments.out.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
