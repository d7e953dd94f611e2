"""Figures of lesson 04: how GPTQ goes through a layer, column by column."""

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib import rc_context
from matplotlib.colors import Normalize

from qkit.plots.axes import heights
from qkit.plots.base import METHOD_COLOURS, STYLE, Picture
from qkit.study.anatomy.gptq import ColumnSteps


class CompensationPicture(Picture):
    """Left: what GPTQ has done to each weight so far. Right: the layer's output error so far, and that of rounding.

    Its data: `column`, the stop; `change` [rows, in] at it; over the stops `columns` the output errors of `rounding` and
    `gptq` in percent, and `rounding_now` and `gptq_now`, those at the stop.
    """

    def __init__(self, steps: ColumnSteps, stop: int = 0, title: str = "weights", dpi: int = 96) -> None:
        with rc_context({**STYLE, "axes.grid": False}):
            super().__init__(11, 4.2, dpi)
            left, self._axes = self.subplots(1, 2, width_ratios=[1.35, 1])
            self._image = left.imshow(
                steps.change[0].numpy(),
                aspect="auto",
                cmap="RdBu_r",
                norm=Normalize(-0.1, 0.1),
                interpolation="nearest",
            )
            self._edge = left.axvline(0, color="black", lw=1.5)
            left.set(xlabel="column (input)", ylabel="row (output)")
            self._left = left
            self.colorbar(self._image, ax=left, pad=0.01, label="w so far - w")
            self._curves = [
                self._axes.plot([], [], color=METHOD_COLOURS[name], label=label, ls=line)[0]
                for name, label, line in (("RTN", "rounding", "--"), ("GPTQ", "GPTQ", "-"))
            ]
            self._dots = [self._axes.plot([], [], "o", color=METHOD_COLOURS[name], ms=7)[0] for name in ("RTN", "GPTQ")]
            self._axes.set(xlabel="columns rounded", ylabel="output error, % of ||WX||²")
            self._axes.legend(loc="upper left")
            self._axes.grid(True)
        self.show(steps, stop, title)
        self.freeze()

    def show(self, steps: ColumnSteps, stop: int, title: str) -> None:
        """Give the same picture other data, or another place to stop."""
        if not -len(steps.columns) <= stop < len(steps.columns):
            raise ValueError(f"stop={stop} is none of the {len(steps.columns)} stops; count from 0")
        rounding, gptq = (100 * np.array(values) for values in (steps.rounding, steps.gptq))
        self.data = data = {
            "column": steps.columns[stop],
            "change": steps.change[stop].numpy(),
            "columns": np.array(steps.columns),
            "rounding": rounding,
            "gptq": gptq,
            "rounding_now": rounding[stop],
            "gptq_now": gptq[stop],
        }
        column, (rows, width) = data["column"], data["change"].shape
        self._image.set_data(data["change"])
        self._image.set_extent((0, width, rows, 0))
        reach = 0.7 * float(steps.change.abs().max()) or 1.0  # so that the many small ones are told apart
        self._image.norm.vmin, self._image.norm.vmax = -reach, reach
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
