"""Axes that several figures have: plain ticks, labels that do not touch, layers in model order, and room for infinity."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from qkit.plots.base import GREY


def plain_ticks(axis, ticks: Sequence[float]) -> None:
    """Those of `ticks` that are in view, as plain numbers."""
    lo, hi = axis.get_view_interval()
    axis.set_ticks([tick for tick in ticks if lo <= tick <= hi])
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


class _Decades(LogLocator):
    """Ticks at powers of ten; in a view that holds fewer than two of them, between them too: one tick alone is no scale."""

    def tick_values(self, vmin: float, vmax: float):
        """Whole decades, 1 2 5, or every digit: the fewest of which two are in view."""
        for digits in ((1,), (1, 2, 5), range(1, 10)):
            self.set_params(subs=digits)
            ticks = super().tick_values(vmin, vmax)
            if np.sum((min(vmin, vmax) <= ticks) & (ticks <= max(vmin, vmax))) > 1:
                break
        return ticks


def plain_decades(axis) -> None:
    """1,000 for 10^3: mathematical type and minor ticks would take half of the drawing time."""
    axis.set_minor_locator(NullLocator())
    axis.set_major_locator(_Decades())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def label_apart(axes, xs: Sequence[float], ys: Sequence[float], names: Sequence[str], spacing: float = 15.0) -> None:
    """Write each name beside its point, from the lowest up, pushing a label up where it would touch the one below."""
    points = axes.transData.transform(np.column_stack([xs, ys])) * 72 / axes.figure.dpi
    placed: list[np.ndarray] = []
    for index in np.argsort(points[:, 1], kind="stable"):
        spot = points[index] + (12, -4)
        for other in placed:
            if abs(other[0] - spot[0]) < 110 and spot[1] - other[1] < spacing:
                spot[1] = other[1] + spacing
        placed.append(spot)
        shift = spot - points[index]
        line = {"arrowstyle": "-", "color": GREY, "lw": 0.8} if shift[1] > 4 else None
        axes.annotate(
            names[index],
            (xs[index], ys[index]),
            shift,
            textcoords="offset points",
            fontsize=10.5,
            arrowprops=line,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )


def heights(values: Mapping[str, float], what: str, log: bool = True) -> np.ndarray:
    """Where to draw `values`, float64: what the axis cannot reach (infinity, on a logarithmic one zero) stands beyond the rest.

    Args:
        values: by the name of what has them.
        what: how errors call them.
        log: the axis is logarithmic.

    Raises:
        ValueError: there are none, or one is NaN.
    """
    if not values:
        raise ValueError(f"there is no {what} to draw; give at least one")
    for name, value in values.items():
        if np.isnan(value):
            raise ValueError(
                f"the {what} of {name!r} is NaN, which has no place on an axis; measure it again, or leave it out"
            )
    drawn = np.array(list(values.values()), float)
    low = drawn <= 0 if log else np.isneginf(drawn)
    high = np.isposinf(drawn)
    within = drawn[~low & ~high]
    least, most = (within.min(), within.max()) if len(within) else (1.0, 1.0)
    beyond = (least / 3, 3 * most) if log else (least - 0.1 * (most - least or 1), most + 0.1 * (most - least or 1))
    drawn[low], drawn[high] = beyond
    return drawn


def with_its_value(name: str, value: float) -> str:
    """A label for a point that `heights` has moved says so; any other is its name."""
    if np.isposinf(value):
        return f"{name} (infinite)"
    return f"{name} (0)" if value <= 0 else name


def in_one_order(orders: Iterable[Sequence[str]]) -> list[str]:
    """All names of several lists, each after those that come before it in its own list."""
    whole: list[str] = []
    for names in orders:
        place = 0
        for name in names:
            if name in whole:
                place = whole.index(name) + 1
            else:
                whole.insert(place, name)
                place += 1
    return whole


def block_ticks(axes, layers: Sequence[str], most: int | None = None) -> None:
    """On the x axis a tick where each decoder block begins; of more than `most` blocks only some."""
    blocks = [
        ".".join(part for part in name.split(".") if part.isdigit()) or name.rpartition(".")[0] for name in layers
    ]
    starts = [i for i, block in enumerate(blocks) if i == 0 or block != blocks[i - 1]]
    few = starts if most is None else starts[:: max(1, len(starts) // most)]
    axes.set_xticks(few, [blocks[i] for i in few])
    axes.set_xlabel("layers in model order, by decoder block")
