"""Figure of lesson 02: where the same weights go on coarser and coarser grids."""

from collections.abc import Mapping

import numpy as np
from matplotlib import rc_context
from matplotlib.collections import LineCollection
from torch import Tensor

from qkit import ops
from qkit.numerics.error import error_statistics
from qkit.numerics.stored import StoredWeight
from qkit.plots.base import BLUE, GREY, ORANGE, STYLE, Picture
from qkit.study.anatomy.weights import levels, plain_weight

FEW = 40  # levels that still stand apart as ticks; more are drawn thinner


def number_line(weight: Tensor, grids: Mapping[str, StoredWeight], title: str = "weights") -> Picture:
    """Weights of one group on the number line, and under each other the grids to whose marks they go.

    Its data: `weights`, float32 [weights]; for each grid the `levels of` it, ascending, where the weights are `snapped` to,
    [weights], and how many `percent off` they are then: the norm of the error over the norm of the weights.

    Args:
        weight: [1, weights], few enough to be told apart.
        grids: the same weight quantized, by name, from above to below; each has one group.

    Raises:
        ValueError: no grid, or one of several groups; the weight is not finite, or of another shape than a grid.
    """
    if not grids:
        raise ValueError("there is no grid to draw; give {name: quantized weight}")
    for name, q in grids.items():
        if q.stretch().numel() != 1:
            raise ValueError(f"{name!r} has {q.stretch().numel()} groups; give a weight that is one")
    first = next(iter(grids.values()))
    data: dict[str, np.ndarray | float] = {"weights": plain_weight(weight, first, title).numpy().ravel()}
    for name, q in grids.items():
        plain = plain_weight(weight, q, title)
        data[f"levels of {name}"] = levels(q, 0, 0)
        data[f"snapped {name}"] = ops.dequantize(q).float().cpu().numpy().ravel()
        data[f"percent off {name}"] = 100 * error_statistics(plain, ops.dequantize(q).cpu()).relative
    with rc_context(STYLE):
        picture = Picture(11, 1.2 + 1.05 * len(grids))
        picture.data = data
        axes = picture.subplots()
        for row, name in enumerate(grids):
            marks, snapped = data[f"levels of {name}"], data[f"snapped {name}"]
            thin = len(marks) > FEW
            ticks = [[(mark, row + 0.12), (mark, row + 0.42)] for mark in marks]
            axes.add_collection(LineCollection(ticks, colors=BLUE, lw=0.5 if thin else 2))
            moves = [[(a, row - 0.3), (b, row + 0.12)] for a, b in zip(data["weights"], snapped, strict=True)]
            axes.add_collection(LineCollection(moves, colors=ORANGE, lw=1))
            axes.plot(data["weights"], np.full(len(snapped), row - 0.3), "o", color=GREY, ms=5, mec="white", mew=0.5)
            axes.plot(snapped, np.full(len(snapped), row + 0.12), "o", color=BLUE, ms=5)
        axes.set_yticks(range(len(grids)), [f"{name}\n{data[f'percent off {name}']:.1f} % off" for name in grids])
        axes.set(ylim=(len(grids) - 0.35, -0.65), xlabel="value")
        axes.grid(False)
        axes.tick_params(axis="y", length=0)
        axes.set_title(f"{title}: grey the {len(data['weights'])} weights, blue the marks they go to", loc="left")
    said = "; ".join(
        f"{name}: {len(data[f'levels of {name}'])} marks, {len(np.unique(data[f'snapped {name}']))} of them taken, "
        f"{data[f'percent off {name}']:.1f} % off"
        for name in grids
    )
    picture.alt = f"{title}, {len(data['weights'])} weights on a number line, each drawn to its mark. {said}."
    return picture
