"""Figures of lesson 04: how GPTQ goes through a layer, column by column."""

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib import rc_context
from torch import Tensor

from qkit.numerics.mapping import check_finite
from qkit.plots.axes import heights
from qkit.plots.base import BLUE, GREEN, METHOD_COLOURS, RED, STYLE, Picture
from qkit.study.anatomy.gptq import ColumnSteps


class CompensationPicture(Picture):
    """Left: how far GPTQ has taken each column from the original. Right: the layer's output error so far, and that of rounding.

    Its data: `column`, the stop; root mean squares over the rows, `error` of columns that are rounded and `moved` of those that
    are free, 0 for the others, and `plain`, that of rounding alone; over the stops `columns` the output errors of `rounding` and
    `gptq` in percent, and `rounding_now` and `gptq_now`, those at the stop.
    """

    def __init__(self, steps: ColumnSteps, stop: int = 0, title: str = "weights", dpi: int = 96) -> None:
        with rc_context(STYLE):
            super().__init__(11, 4.2, dpi)
            self._left, self._axes = self.subplots(1, 2, width_ratios=[1.35, 1])
            edges = np.arange(steps.change.shape[2] + 1)
            self._stairs = [
                self._left.stairs(np.zeros(len(edges) - 1), edges, fill=True, color=colour, label=label)
                for colour, label in ((RED, "rounded: error"), (BLUE, "free: moved by"))
            ]
            self._plain = self._left.axhline(0, color="black", ls="--", lw=1.5, label="error of rounding alone")
            self._edge = self._left.axvline(0, color="black", lw=1.5)
            self._left.set(xlabel="column (input)", ylabel="w so far - w, root mean square")
            self._left.grid(False, axis="x")
            self._left.legend(loc="upper right", ncols=2, fontsize=10)
            self._curves = [
                self._axes.plot([], [], color=METHOD_COLOURS[name], label=label, ls=line)[0]
                for name, label, line in (("RTN", "rounding", "--"), ("GPTQ", "GPTQ", "-"))
            ]
            self._dots = [self._axes.plot([], [], "o", color=METHOD_COLOURS[name], ms=7)[0] for name in ("RTN", "GPTQ")]
            self._axes.set(xlabel="columns rounded", ylabel="output error, % of ||X Wᵀ||²")
            self._axes.legend(loc="upper left")
        self.show(steps, stop, title)
        self.freeze()

    def show(self, steps: ColumnSteps, stop: int, title: str) -> None:
        """Give the same picture other data, or another place to stop."""
        if not -len(steps.columns) <= stop < len(steps.columns):
            raise ValueError(f"stop={stop} is none of the {len(steps.columns)} stops; count from 0")
        by_column = steps.by_column
        width = by_column.shape[1]
        rounded = np.arange(width) < steps.columns[stop]
        rounding, gptq = (100 * np.array(values) for values in (steps.rounding, steps.gptq))
        self.data = data = {
            "column": steps.columns[stop],
            "error": np.where(rounded, by_column[stop], 0),
            "moved": np.where(rounded, 0, by_column[stop]),
            "plain": steps.plain,
            "columns": np.array(steps.columns),
            "rounding": rounding,
            "gptq": gptq,
            "rounding_now": rounding[stop],
            "gptq_now": gptq[stop],
        }
        column = data["column"]
        for stairs, name in zip(self._stairs, ("error", "moved"), strict=True):
            stairs.set_data(data[name], np.arange(width + 1))
        self._plain.set_ydata([data["plain"]] * 2)
        self._left.set(xlim=(0, width), ylim=(0, 1.35 * float(max(by_column.max(), steps.plain)) or 1))
        self._edge.set_xdata([column, column])
        for curve, dot, name in zip(self._curves, self._dots, ("rounding", "gptq"), strict=True):
            curve.set_data(data["columns"], data[name])
            dot.set_data([column], [data[f"{name}_now"]])
        self._axes.set(xlim=(0, width), ylim=(0, 110 * max(steps.rounding + steps.gptq) or 1))
        self._left.set_title(f"{title}: {column} of {width} columns rounded", loc="left")
        now = f"rounding {data['rounding_now']:.3f}%, GPTQ {data['gptq_now']:.3f}%"
        self._axes.set_title(now)
        self.alt = (
            f"GPTQ on {title} after {column} of {width} columns: the free columns were moved by {steps.moved(stop):.5f} (rms) "
            f"to make good the errors of the rounded ones; output error so far: {now}. At the end rounding has "
            f"{rounding[-1]:.3f}%, GPTQ {gptq[-1]:.3f}%."
        )


def compensation_picture(steps: ColumnSteps, stop: int, title: str = "weights") -> Picture:
    """What GPTQ has done after `steps.columns[stop]` columns."""
    return CompensationPicture(steps, stop, title)


def passed_on(left: Mapping[str, Tensor], title: str = "weights") -> Picture:
    """How much of the cost of rounding a column is left when the columns after it have made good what they can (`cost_left`).

    Its data: under "left of " and its name each layer's shares in percent.

    Raises:
        ValueError: no layer, or one that is not finite.
    """
    if not left:
        raise ValueError("there is no layer to draw; give what `cost_left` returns for at least one")
    for name, shares in left.items():
        check_finite(shares, name)
    data = {f"left of {name}": 100 * shares.numpy() for name, shares in left.items()}
    with rc_context(STYLE):
        picture = Picture(9, 4)
        picture.data = data
        axes = picture.subplots()
        for name, colour in zip(left, cycle((RED, BLUE, GREEN)), strict=False):
            shares = data[f"left of {name}"]
            places = np.arange(1, len(shares) + 1)
            axes.plot(places / len(shares) * 100, shares, ".", color=colour, ms=4, alpha=0.5)
            width = max(1, len(shares) // 24)
            means = [part.mean() for part in np.array_split(shares, len(shares) // width)]
            middles = [part.mean() for part in np.array_split(places / len(shares) * 100, len(shares) // width)]
            axes.plot(middles, means, color=colour, lw=3, label=name)
        axes.axhline(100, color="black", ls="--", lw=1.5, label="nothing passed on: rounding")
        axes.set(xlabel="columns rounded before it, %", ylabel="cost that is left, %", title=title)
        axes.set(xlim=(0, 100), ylim=(0, 112))
        axes.legend(loc="lower right")
    words = "; ".join(
        f"{name}: {data[f'left of {name}'].mean():.0f}% in the mean, {data[f'left of {name}'][-1]:.0f}% of the last column's"
        for name in left
    )
    picture.alt = f"{title}: the cost of rounding a column that is left when those after it have made it good. {words}."
    return picture


def against_chunks(
    chunks: Sequence[int], curves: Mapping[str, Sequence[float]], level: float, label: str, ylabel: str
) -> Picture:
    """A measure against the number of calibration chunks, one line a scheme; `level`, called `label`, needs no data.

    Its data: `chunks`, under "values of " and the name of each curve what it has there, and `level`.

    Raises:
        ValueError: a curve of another length than `chunks`, or with NaN.
    """
    data = {"chunks": np.array(chunks), "level": level}
    for name, values in curves.items():
        if len(values) != len(chunks):
            raise ValueError(
                f"{name!r} has {len(values)} values for {len(chunks)} numbers of chunks; give one for each"
            )
        points = dict(zip((f"{name}, {count} chunks" for count in chunks), values, strict=True))
        data[f"values of {name}"] = heights(points, ylabel, log=False)
    with rc_context(STYLE):
        picture = Picture(7.5, 4)
        picture.data = data
        axes = picture.subplots()
        colour = METHOD_COLOURS["GPTQ"]
        for name, line, marker in zip(curves, cycle(("-", "--", "-.", ":")), cycle("osD^v"), strict=False):
            values = data[f"values of {name}"]
            axes.plot(data["chunks"], values, line, marker=marker, color=colour, mec="white", ms=9, label=name)
        axes.axhline(data["level"], color=METHOD_COLOURS["RTN"], ls="--", label=label)
        axes.set(xscale="log", xlabel="calibration chunks of 511 tokens", ylabel=ylabel)
        axes.set_xticks(chunks, [str(count) for count in chunks])
        axes.minorticks_off()
        axes.legend()
    lines = [
        f"{name}: " + ", ".join(f"{c} chunks {v:.2f}" for c, v in zip(chunks, values, strict=True))
        for name, values in curves.items()
    ]
    picture.alt = f"{ylabel} against calibration chunks. {'. '.join(lines)}. {label}: {level:.2f}."
    return picture
