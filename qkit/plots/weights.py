"""Figures of weights and of comparisons.

The two that widgets drive keep their artists and are given new data, because drawing anew costs ten times more.
"""

from collections.abc import Mapping
from itertools import cycle

import numpy as np
from matplotlib import rc_context
from matplotlib.collections import LineCollection
from matplotlib.ticker import FuncFormatter, NullLocator
from torch import Tensor

from qkit import ops
from qkit.engine.report import QuantizationReport
from qkit.numerics.error import error_statistics
from qkit.numerics.stored import StoredWeight
from qkit.plots.axes import block_ticks, heights, in_one_order, label_apart, plain_ticks, with_its_value
from qkit.plots.base import BLUE, BOUND, GREEN, GREY, ORANGE, ORIGINAL, QUANTIZED, RED, STYLE, Data, Picture
from qkit.plots.marks import mark_of
from qkit.study.anatomy.weights import (
    BINS,
    group_by_scale,
    group_errors,
    histogram,
    is_even,
    levels,
    plain_weight,
)
from qkit.study.comparison import Comparison

TICKS = [5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000]
CURVES = (BLUE, RED, GREEN, ORANGE)
DOTS = 4000  # of one group: more would only hide each other


class WeightHistogram(Picture):
    """A histogram of weights before and after, and under it the grid that the widest and the median group have.

    Its data: `edges` of the bins, how many weights they hold `before` and `after`, the levels of the `widest` and of the
    `median` group, `sqnr_db`, `bits_per_weight`.
    """

    def __init__(self, weight: Tensor, q: StoredWeight, title: str = "weights", dpi: int = 96) -> None:
        with rc_context(STYLE):
            super().__init__(9, 4.4, dpi)
            self._axes, self._rug = self.subplots(2, 1, sharex=True, height_ratios=[5, 1])
            edges = np.linspace(0, 1, BINS + 1)
            self._before = self._axes.stairs(np.ones(BINS), edges, fill=True, color=ORIGINAL, label="original")
            self._after = self._axes.stairs(np.ones(BINS), edges, color=QUANTIZED, lw=1.4, label="quantized")
            self._axes.set(yscale="log", ylabel="weights in a bin")
            # Minor ticks and mathematical type (10^5) would take half of the drawing time.
            self._axes.yaxis.set_minor_locator(NullLocator())
            self._axes.yaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
            self._axes.legend(loc="upper right")
            self._ticks = [
                self._rug.add_collection(LineCollection([], colors=colour, lw=1.2)) for colour in (QUANTIZED, GREEN)
            ]
            self._rug.set(yticks=[0.5, 1.5], ylim=(0, 2), xlabel="value")
            self._rug.grid(False)
        self.show(weight, q, title)
        self.freeze()

    def show(self, weight: Tensor, q: StoredWeight, title: str) -> None:
        """Give the same picture other data.

        Raises:
            ValueError: `weight` is not finite, or has another shape than `q`.
        """
        weight = plain_weight(weight, q, title)
        counted = histogram(weight, q)
        error = error_statistics(weight, ops.dequantize(q).cpu())
        self.data = data = {
            "edges": counted.edges,
            "before": counted.before,
            "after": counted.after,
            "widest": levels(q, *group_by_scale(q, 1.0)),
            "median": levels(q, *group_by_scale(q, 0.5)),
            "sqnr_db": error.sqnr_db,
            "bits_per_weight": q.bits_per_weight,
        }
        edges = data["edges"]
        self._before.set_data(data["before"], edges)
        self._after.set_data(data["after"], edges)
        self._axes.set(xlim=(edges[0], edges[-1]), ylim=(0.7, 3 * weight.numel()))
        for row, (ticks, grid) in enumerate(zip(self._ticks, (data["median"], data["widest"]), strict=True)):
            ticks.set_segments([[(value, row + 0.12), (value, row + 0.88)] for value in grid])
        stretch = q.stretch()
        single = stretch.numel() == 1
        self._rug.set_yticklabels(["the one grid", "the one grid"] if single else ["median group", "widest group"])
        self._ticks[0].set_visible(not single)
        self._rug.set(ylim=(1, 2) if single else (0, 2))
        self._axes.set_title(f"{title}: SQNR {data['sqnr_db']:.1f} dB at {data['bits_per_weight']:.2f} bits per weight")
        widest, median = float(stretch.max()), float(stretch.median())
        words = "a step is" if is_even(data["widest"]) else "the levels reach to"
        self.alt = (
            f"Histogram of {title}, {weight.numel():,} weights from {float(weight.min()):.3f} to {float(weight.max()):.3f}, "
            f"before and after quantization to {q.bits} bits; {words} {widest:.4f} in the widest group and "
            f"{median:.4f} in the median one; SQNR {data['sqnr_db']:.1f} dB."
        )


class ErrorCurve(Picture):
    """The error of every weight of one group against the weight: a sawtooth between -s/2 and s/2, or, between the levels of a
    table, one with teeth of different heights.

    Its data: the sawtooth `tooth` over `sweep`, `errors` over `weights` of the group (of a large group only some), `bound`, the
    largest error inside the range, and the `rms` error.
    """

    def __init__(self, weight: Tensor, q: StoredWeight, title: str = "weights", dpi: int = 96) -> None:
        with rc_context(STYLE):
            super().__init__(9, 3.8, dpi)
            self._axes = self.subplots()
            self._tooth = self._axes.plot([], [], color=GREY, lw=1.2, label="any weight in the range")[0]
            self._dots = self._axes.plot([], [], "o", color=QUANTIZED, ms=4, alpha=0.7, label="the group's weights")[0]
            self._bounds = [self._axes.axhline(0, color=BOUND, lw=1.4, ls="--") for _ in range(2)]
            self._bounds[0].set_label("± half a step")
            self._axes.set(xlabel="weight w", ylabel="error  ŵ - w")
            self._legend = self._axes.legend(loc="upper right", ncols=3, bbox_to_anchor=(1, 1.02))
        self.show(weight, q, title)
        self.freeze()

    def show(self, weight: Tensor, q: StoredWeight, title: str) -> None:
        """Give the same picture other data: the widest group of `q` is drawn.

        Raises:
            ValueError: `weight` is not finite, or has another shape than `q`.
        """
        found = group_errors(plain_weight(weight, q, title), q, *group_by_scale(q, 1.0))
        few = slice(None, None, max(1, len(found.weights) // DOTS))
        self.data = data = {
            "sweep": found.sweep,
            "tooth": found.tooth,
            "weights": found.weights[few],
            "errors": found.errors[few],
            "bound": found.bound,
            "rms": found.rms,
        }
        self._tooth.set_data(data["sweep"], data["tooth"])
        self._dots.set_data(data["weights"], data["errors"])
        for bound, sign in zip(self._bounds, (-1, 1), strict=True):
            bound.set_ydata([sign * data["bound"]] * 2)
        self._legend.get_texts()[2].set_text("± half a step" if found.even else "± half the widest gap")
        step = 2 * data["bound"]
        reach = step or 1.0  # a block of zeros has one level and no gap
        room = 0 if step else 1.0
        self._axes.set(xlim=(found.sweep[0] - room, found.sweep[-1] + room), ylim=(-0.65 * reach, 0.85 * reach))
        rms, uniform = data["rms"], step / np.sqrt(12)
        if found.even:
            self._axes.set_title(f"{title}: step s = {step:.4f}, rms error {rms:.5f}, s/√12 = {uniform:.5f}")
            words = f"a step of {step:.4f}; the rms error is {rms:.5f}, s over root 12 is {uniform:.5f}"
        else:
            narrow = float(found.gaps.min(initial=step))
            self._axes.set_title(f"{title}: gaps of {narrow:.4f} to {step:.4f}, rms error {rms:.5f}")
            words = (
                f"the gap between two levels, which goes from {narrow:.4f} to {step:.4f}; the rms error is {rms:.5f}"
            )
        self.alt = (
            f"Error against weight for the widest group of {title}, {len(found.weights):,} weights at {q.bits} bits: a "
            f"sawtooth between plus and minus half {'' if found.even else 'of '}{words}."
        )


def weight_histogram(weight: Tensor, q: StoredWeight, title: str = "weights") -> Picture:
    """Histogram of `weight` [out, in] and of its quantized form, with the grid."""
    return WeightHistogram(weight, q, title)


def error_curve(weight: Tensor, q: StoredWeight, title: str = "weights") -> Picture:
    """Error against weight for the widest group of `q`, between its bounds."""
    return ErrorCurve(weight, q, title)


def layer_errors(reports: Mapping[str, QuantizationReport]) -> Picture:
    """SQNR of every layer, in model order, one line a report.

    Its data: `layers`, their names, and under "SQNR of " and the name of each report a number for each of them, NaN where the
    report has no such layer.

    Raises:
        ValueError: no report, or one without layers.
    """
    with rc_context(STYLE):
        picture = Picture(9, 4.2)
        picture.data = data = _layer_data(reports)
        _draw_layer_errors(picture.subplots(), data, reports)
    worst = {name: min(report.layers, key=lambda layer: layer.error.sqnr_db) for name, report in reports.items()}
    picture.alt = "SQNR of every layer. " + " ".join(
        f"{name}: lowest {layer.error.sqnr_db:.1f} dB at {layer.name}." for name, layer in worst.items()
    )
    return picture


def perplexity_against_bytes(comparison: Comparison) -> Picture:
    """Quality against size: one point a model, lower and further left is better.

    Its data: `names`, `megabytes` and `perplexity` of the rows, in their order.
    """
    with rc_context(STYLE):
        picture = Picture(7.5, 4.6)
        picture.data = data = _perplexity_data(comparison)
        _draw_perplexity(picture, picture.subplots(), data, comparison)
    picture.alt = _perplexity_words(comparison)
    return picture


def comparison_picture(comparison: Comparison) -> Picture:
    """Both at once: what `qkit compare` writes. Its data are those of both."""
    reports = {row.name: row.report for row in comparison.rows if row.report is not None and row.report.layers}
    with rc_context(STYLE):
        picture = Picture(13, 5)
        left, right = picture.subplots(1, 2, width_ratios=[1, 1.15])
        picture.data = data = {**_perplexity_data(comparison), **(_layer_data(reports) if reports else {})}
        _draw_perplexity(picture, left, data, comparison)
        if reports:
            _draw_layer_errors(right, data, reports)
        picture.suptitle(comparison.caption)
    picture.alt = _perplexity_words(comparison)
    return picture


def _perplexity_words(comparison: Comparison) -> str:
    points = ", ".join(f"{row.name} {row.disk_bytes / 1e6:.1f} MB {row.perplexity:.2f}" for row in comparison.rows)
    return f"Perplexity against megabytes on disk for {comparison.caption}: {points}."


def _perplexity_data(comparison: Comparison) -> Data:
    values = heights({row.name: row.perplexity for row in comparison.rows}, "perplexity")
    sizes = np.array([row.disk_bytes / 1e6 for row in comparison.rows])
    return {"names": np.array([row.name for row in comparison.rows]), "megabytes": sizes, "perplexity": values}


def _draw_perplexity(picture: Picture, axes, data: Data, comparison: Comparison) -> None:
    sizes, values = data["megabytes"], data["perplexity"]
    for row, size, value in zip(comparison.rows, sizes, values, strict=True):
        mark = mark_of(row.scheme)
        axes.plot(size, value, mark.marker, color=mark.colour, ms=9, mec="white")
    axes.set(xscale="log", yscale="log", xlabel="MB on disk", ylabel="perplexity (lower is better)")
    axes.set(xlim=(0.85 * min(sizes), 1.9 * max(sizes)), ylim=(0.7 * min(values), 1.6 * max(values)))
    axes.axhline(values[0], color="black", lw=1, ls=":")
    plain_ticks(axes.xaxis, TICKS)
    plain_ticks(axes.yaxis, TICKS)
    picture.draw_without_rendering()  # the layout must be known before labels can be kept apart
    labels = [with_its_value(row.name, row.perplexity) for row in comparison.rows]
    label_apart(axes, sizes, values, labels)


def _layer_data(reports: Mapping[str, QuantizationReport]) -> Data:
    for name, report in reports.items():
        if not report.layers:
            raise ValueError(f"the report of {name!r} has no layers to draw; leave it out")
    layers = in_one_order([layer.name for layer in report.layers] for report in reports.values())
    data = {"layers": np.array(layers)}
    both = {(n, layer.name): layer.error.sqnr_db for n, report in reports.items() for layer in report.layers}
    drawn = dict(zip(both, heights(both, "SQNR of layers", log=False), strict=True))
    return data | {
        f"SQNR of {name}": np.array([drawn.get((name, layer), np.nan) for layer in layers]) for name in reports
    }


def _draw_layer_errors(axes, data: Data, reports: Mapping[str, QuantizationReport]) -> None:
    layers = data["layers"]
    for name, report in reports.items():
        mark = mark_of(report.scheme)
        values = data[f"SQNR of {name}"]
        (there,) = np.nonzero(~np.isnan(values))
        axes.plot(there, values[there], color=mark.colour, ls=mark.line, marker=mark.marker, ms=3, lw=1.2)
        axes.annotate(name, (there[-1], values[there[-1]]), (8, -4), textcoords="offset points", fontsize=10.5)
    block_ticks(axes, layers, 12)
    axes.set(ylabel="SQNR (dB, higher is better)", xlim=(-1, 1.32 * len(layers)))


def sqnr_curves(
    series: Mapping[str, tuple[list[float], list[float]]], xlabel: str, slope: float | None = None
) -> Picture:
    """SQNR against bits, one curve a name: {name: (bits, dB)}. `slope`: a dotted line of so many dB a bit.

    Its data: under "bits of " and "SQNR of " and each name its points.

    Raises:
        ValueError: no curve, or one with NaN.
    """
    if not series:
        raise ValueError("there is no curve to draw; give {name: (bits, dB)}")
    data: dict[str, np.ndarray] = {}
    for name, (bits, db) in series.items():
        points = dict(zip((f"{name} at {b} bits" for b in bits), db, strict=True))
        data |= {f"bits of {name}": np.array(bits), f"SQNR of {name}": heights(points, "SQNR", log=False)}
    with rc_context(STYLE):
        picture = Picture(8, 4.4)
        picture.data = data
        axes = picture.subplots()
        for name, colour, marker in zip(series, cycle(CURVES), cycle("os^vD"), strict=False):
            axes.plot(data[f"bits of {name}"], data[f"SQNR of {name}"], color=colour, marker=marker, ms=6, label=name)
        if slope is not None:
            first = next(iter(series))
            end = (data[f"bits of {first}"][-1], data[f"SQNR of {first}"][-1])
            axes.axline(end, slope=slope, color=GREY, ls=":", label=f"{slope:.2f} dB a bit")
        axes.set(xlabel=xlabel, ylabel="SQNR (dB, higher is better)")
        axes.legend(loc="upper left")
    picture.alt = "SQNR in dB against bits. " + " ".join(
        f"{name}: " + ", ".join(f"{b:.2f} bits {d:.1f}" for b, d in zip(*curve, strict=True)) + "."
        for name, curve in series.items()
    )
    return picture
