"""What tiles of INT8 cost, fitted to what `gpu_tiles.py --integers` timed: the table of `qkit.backends.triton.integer_tiles`.

    python benchmarks/gpu_prices.py benchmarks/results/gpu-2026-11-29-integers.json

A multiprocessor that works on j tiles at once takes max(p, j q) microseconds for 128 columns: p is what one waits for, q what one
computes. Beginning, and ending each tile, come on top. For each cut the least mean |log| of predicted over measured, on a grid;
then how much longer than the best the cheapest of all cuts takes, with all of them and with fewer and fewer.
"""

import itertools
import json
import sys
from math import log
from pathlib import Path
from statistics import mean

from qkit.backends.triton.integer_tiles import Integers, microseconds

UNITS, SHARED = 132, 227 * 1024  # of an H200
BEGINS, ENDS = (2.0, 3.0), (0.0, 0.5, 1.0, 2.0, 2.5)
PRICES = [0.1 * 1.08**i for i in range(40)]


def main(file: Path) -> None:
    """Fit, print the prices, print what leaving cuts out costs."""
    times = {
        (*map(int, shape.split("x")), int(tokens)): row
        for shape, rows in json.loads(file.read_text()).items()
        for tokens, row in rows.items()
    }
    names = sorted({name for row in times.values() for name in row} - {"bf16", "table"})
    fitted = {name: fit(name, times) for name in names}
    for name, (priced, off) in fitted.items():
        print(f"{name:24} off by {off:.3f}: {priced[1:]}")
    kept = names
    while kept:
        mean_loss, most = loss(kept, fitted, times)
        print(f"{len(kept):3} cuts: {mean_loss:.3f} of the best, {most:.2f} at worst")
        fewer = [[other for other in kept if other != name] for name in kept]
        kept = min(fewer, key=lambda some: loss(some, fitted, times)[0])


def fit(name: str, times: dict) -> tuple[tuple, float]:
    """A cut with its prices, and how far off they are in the mean."""
    *numbers, swap = name.split()
    cut = Integers(*map(int, numbers), swap == "True")
    bytes_of_tile = cut.stages * (cut.bm + cut.bn) * cut.bk + 1024
    places = max(1, min(SHARED // bytes_of_tile, 65536 // (32 * cut.warps * 128)))
    measured = [(where, row[name]) for where, row in times.items() if name in row]

    def off(priced: tuple) -> float:
        return mean(
            abs(log(microseconds(priced, tokens, rows, features, UNITS, False) / us))
            for (rows, features, tokens), us in measured
        )

    choices = (
        (cut, (places, places), begin, end, alone, shared)
        for begin, end, alone, shared in itertools.product(BEGINS, ENDS, PRICES, PRICES)
        if shared <= alone and (places > 1 or shared == PRICES[0])
    )
    best = min(choices, key=off)
    return best, off(best)


def loss(names: list[str], fitted: dict, times: dict) -> tuple[float, float]:
    """How much longer than the best of all the cheapest of these takes: in the mean, and at worst."""
    lost = []
    for (rows, features, tokens), row in times.items():
        there = [name for name in names if name in row]
        if not there:
            return float("inf"), float("inf")
        taken = min(there, key=lambda name: microseconds(fitted[name][0], tokens, rows, features, UNITS, False))
        lost.append(row[taken] / min(us for name, us in row.items() if name != "bf16"))
    return mean(lost), max(lost)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
