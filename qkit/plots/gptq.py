"""Figures of lesson 04: how GPTQ goes through a layer, column by column."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.colors import Normalize
from torch import Tensor

from qkit.methods.gptq import inverse_cholesky
from qkit.model.calibration import InputStatistics
from qkit.numerics.mapping import choose_scale, dequantize, integer_range, quantize, value_range
from qkit.plots.base import METHOD_COLOURS, STYLE, Picture


def output_error(weight: Tensor, approximation: Tensor, hessian: Tensor) -> float:
    """||(W - Ŵ) X||² / ||W X||², from the Hessian X Xᵀ [in, in] alone, up to any constant factor; 0 where W X is 0."""
    hessian, weight = hessian.double(), weight.double()
    error = weight - approximation.double()
    whole = float(((weight @ hessian) * weight).sum())
    return float(((error @ hessian) * error).sum()) / whole if whole else 0.0


@dataclass(frozen=True, eq=False)
class ColumnSteps:
    """GPTQ and rounding, stopped after some columns.

    Attributes:
        columns: how many columns are rounded at each stop: 0, ..., in.
        change: float32 [stops, out, in], GPTQ's weight so far minus the original: left of the stop the error of what is
            rounded, right of it what the free columns were moved by to make it good.
        gptq, rounding: the relative squared output error at each stop, all columns that are not rounded yet as they are
            then.
    """

    columns: tuple[int, ...]
    change: Tensor
    gptq: tuple[float, ...]
    rounding: tuple[float, ...]


def column_steps(
    weight: Tensor, inputs: InputStatistics, bits: int = 4, stops: int = 33, damp: float = 0.01, rows: int = 48
) -> ColumnSteps:
    """Run GPTQ's column loop (2210.17323, algorithm 1; symmetric, one scale a row) and stop on the way.

    Args:
        weight: float [out, in].
        inputs: the statistics of its inputs, with a Hessian.
        stops: how many, evenly spread over the columns, both ends included.
        rows: of `change` only the first rows are kept.
    """
    hessian = inputs.hessian.double()
    hessian = hessian + torch.diag((hessian.diagonal() == 0).double())
    upper, _ = inverse_cholesky(hessian, damp)
    original = weight.detach().double()
    scale, zero = choose_scale(*value_range(original), bits, symmetric=True)

    def rounded(column: Tensor) -> Tensor:
        return dequantize(quantize(column, scale, zero, *integer_range(bits)), scale, zero).double()

    width = weight.shape[1]
    where = tuple(sorted({round(k * width / (stops - 1)) for k in range(stops)}))
    now, plain = original.clone(), original.clone()
    change, errors = [], []
    for j in range(width + 1):
        if j in where:
            change.append((now - original)[:rows].float())
            errors.append([output_error(original, w, hessian) for w in (now, plain)])
        if j < width:
            column = rounded(now[:, j : j + 1])
            now[:, j + 1 :] -= (now[:, j : j + 1] - column) / upper[j, j] * upper[j, j + 1 :]
            now[:, j : j + 1], plain[:, j : j + 1] = column, rounded(original[:, j : j + 1])
    gptq, rounding = zip(*errors, strict=True)
    return ColumnSteps(where, torch.stack(change), gptq, rounding)


class CompensationPicture(Picture):
    """Left: what GPTQ has done to each weight so far. Right: the layer's output error so far, and that of rounding."""

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
        change, column = steps.change[stop].numpy(), steps.columns[stop]
        rows, width = change.shape
        self._image.set_data(change)
        self._image.set_extent((0, width, rows, 0))
        reach = 0.7 * float(steps.change.abs().max()) or 1.0  # so that the many small ones are told apart
        self._image.norm.vmin, self._image.norm.vmax = -reach, reach
        self._edge.set_xdata([column, column])
        for curve, dot, values in zip(self._curves, self._dots, (steps.rounding, steps.gptq), strict=True):
            curve.set_data(steps.columns, [100 * value for value in values])
            dot.set_data([column], [100 * values[stop]])
        self._axes.set(xlim=(0, width), ylim=(0, 110 * max(steps.rounding + steps.gptq) or 1))
        self._left.set_title(f"{title}: {column} of {width} columns rounded", loc="left")
        now = f"rounding {100 * steps.rounding[stop]:.3f}%, GPTQ {100 * steps.gptq[stop]:.3f}%"
        self._axes.set_title(now)
        free = float(np.sqrt(np.mean(change[:, column:] ** 2))) if column < width else 0.0
        self.alt = (
            f"GPTQ on {title} after {column} of {width} columns: the free columns were moved by {free:.5f} (rms) to make good "
            f"the errors of the rounded ones; output error so far: {now}. At the end rounding has "
            f"{100 * steps.rounding[-1]:.3f}%, GPTQ {100 * steps.gptq[-1]:.3f}%."
        )


def compensation_picture(steps: ColumnSteps, stop: int, title: str = "weights") -> Picture:
    """What GPTQ has done after `steps.columns[stop]` columns."""
    return CompensationPicture(steps, stop, title)


def against_chunks(
    chunks: Sequence[int], curves: Mapping[str, Sequence[float]], level: float, label: str, ylabel: str
) -> Picture:
    """A measure against the number of calibration chunks, one line a scheme; `level`, called `label`, needs no data."""
    with rc_context(STYLE):
        picture = Picture(7.5, 4)
        axes = picture.subplots()
        for (name, values), line, marker in zip(curves.items(), ("-", "--", "-.", ":"), "osD^", strict=False):
            axes.plot(chunks, values, line, marker=marker, color=METHOD_COLOURS["GPTQ"], mec="white", ms=9, label=name)
        axes.axhline(level, color=METHOD_COLOURS["RTN"], ls="--", label=label)
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
