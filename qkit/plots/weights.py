"""Figures of weights and of comparisons.

The two that widgets drive keep their artists and are given new data, because drawing anew costs ten times more.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.collections import LineCollection
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator
from torch import Tensor

from qkit import ops
from qkit.engine.report import Comparison, QuantizationReport
from qkit.numerics.error import error_statistics
from qkit.numerics.qtensor import QTensor
from qkit.plots.base import (
    BITS_STYLES,
    BLUE,
    BOUND,
    GREEN,
    GREY,
    METHOD_COLOURS,
    ORANGE,
    ORIGINAL,
    QUANTIZED,
    RED,
    STYLE,
    Picture,
)


def levels(q: QTensor, row: int, group: int) -> np.ndarray:
    """The 2^bits real numbers that one group of `q` can hold, ascending."""
    scale, zero = float(q.scales[row, group]), float(q.zeros()[row, group])
    offset = 0.0 if q.offsets is None else float(q.offsets[row, group])
    return scale * (np.arange(2**q.bits) - zero) + offset


def group_by_scale(q: QTensor, quantile: float) -> tuple[int, int]:
    """(row, group) of the scale at `quantile` among all: 1 is the widest group, 0.5 the median one."""
    flat = q.scales.float().flatten()
    index = int(flat.argsort()[round(quantile * (len(flat) - 1))])
    return divmod(index, q.scales.shape[1])


class WeightHistogram(Picture):
    """A histogram of weights before and after, and under it the grid that the widest and the median group have."""

    def __init__(self, weight: Tensor, q: QTensor, title: str = "weights", dpi: int = 96) -> None:
        with rc_context(STYLE):
            super().__init__(9, 4.4, dpi)
            self._axes, self._rug = self.subplots(2, 1, sharex=True, height_ratios=[5, 1])
            edges = np.linspace(0, 1, 201)
            self._before = self._axes.stairs(np.ones(200), edges, fill=True, color=ORIGINAL, label="original")
            self._after = self._axes.stairs(np.ones(200), edges, color=QUANTIZED, lw=1.4, label="quantized")
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

    def show(self, weight: Tensor, q: QTensor, title: str) -> None:
        """Give the same picture other data."""
        approximation = ops.dequantize(q)
        lo, hi = (float(f(f(weight), f(approximation))) for f in (torch.min, torch.max))
        margin = 0.03 * (hi - lo) or 1.0
        edges = np.linspace(lo - margin, hi + margin, 201)
        self._before.set_data(_counts(weight, edges), edges)
        self._after.set_data(_counts(approximation, edges), edges)
        self._axes.set(xlim=(edges[0], edges[-1]), ylim=(0.7, 3 * weight.numel()))
        grids = [levels(q, *group_by_scale(q, quantile)) for quantile in (1.0, 0.5)]
        for row, (ticks, grid) in enumerate(zip(self._ticks, reversed(grids), strict=True)):
            ticks.set_segments([[(value, row + 0.12), (value, row + 0.88)] for value in grid])
        single = q.scales.numel() == 1
        self._rug.set_yticklabels(["the one grid", "the one grid"] if single else ["median group", "widest group"])
        self._ticks[0].set_visible(not single)
        self._rug.set(ylim=(1, 2) if single else (0, 2))
        error = error_statistics(weight, approximation)
        self._axes.set_title(f"{title}: SQNR {error.sqnr_db:.1f} dB at {q.bits_per_weight:.2f} bits per weight")
        self.alt = (
            f"Histogram of {title}, {weight.numel():,} weights from {float(weight.min()):.3f} to {float(weight.max()):.3f}, "
            f"before and after quantization to {q.bits} bits; a step is {float(q.scales.max()):.4f} in the widest group and "
            f"{float(q.scales.float().median()):.4f} in the median one; SQNR {error.sqnr_db:.1f} dB."
        )


def _counts(values: Tensor, edges: np.ndarray) -> np.ndarray:
    return torch.histc(values.flatten(), bins=len(edges) - 1, min=float(edges[0]), max=float(edges[-1])).numpy()


class ErrorCurve(Picture):
    """The error of every weight of one group against the weight: a sawtooth between -s/2 and s/2."""

    def __init__(self, weight: Tensor, q: QTensor, title: str = "weights", dpi: int = 96) -> None:
        with rc_context(STYLE):
            super().__init__(9, 3.8, dpi)
            self._axes = self.subplots()
            self._tooth = self._axes.plot([], [], color=GREY, lw=1.2, label="any weight in the range")[0]
            self._dots = self._axes.plot([], [], "o", color=QUANTIZED, ms=4, alpha=0.7, label="the group's weights")[0]
            self._bounds = [self._axes.axhline(0, color=BOUND, lw=1.4, ls="--") for _ in range(2)]
            self._bounds[0].set_label("± half a step")
            self._axes.set(xlabel="weight w", ylabel="error  ŵ - w")
            self._axes.legend(loc="upper right", ncols=3, bbox_to_anchor=(1, 1.02))
        self.show(weight, q, title)
        self.freeze()

    def show(self, weight: Tensor, q: QTensor, title: str) -> None:
        """Give the same picture other data: the widest group of `q` is drawn."""
        row, group = group_by_scale(q, 1.0)
        rows, groups = q.scales.shape
        members = weight.reshape(rows, groups, -1)[row, group]
        errors = (ops.dequantize(q).reshape(rows, groups, -1)[row, group] - members).numpy()
        grid, step = levels(q, row, group), float(q.scales[row, group])
        sweep = (grid[:, None] + (-step / 2, step / 2)).ravel()  # both ends of the interval of each level
        few = slice(None, None, max(1, len(members) // 4000))  # more dots would only hide each other
        self._tooth.set_data(sweep, np.tile((step / 2, -step / 2), len(grid)))
        self._dots.set_data(members.numpy()[few], errors[few])
        for bound, sign in zip(self._bounds, (-1, 1), strict=True):
            bound.set_ydata([sign * step / 2] * 2)
        self._axes.set(xlim=(sweep[0], sweep[-1]), ylim=(-0.65 * step, 0.85 * step))
        rms, uniform = float(np.sqrt(np.mean(errors**2))), step / np.sqrt(12)
        self._axes.set_title(f"{title}: step s = {step:.4f}, rms error {rms:.5f}, s/√12 = {uniform:.5f}")
        self.alt = (
            f"Error against weight for the widest group of {title}, {len(members):,} weights at {q.bits} bits: a sawtooth "
            f"between plus and minus half a step of {step:.4f}; the rms error is {rms:.5f}, s over root 12 is {uniform:.5f}."
        )


def weight_histogram(weight: Tensor, q: QTensor, title: str = "weights") -> Picture:
    """Histogram of `weight` [out, in] and of its quantized form, with the grid."""
    return WeightHistogram(weight, q, title)


def error_curve(weight: Tensor, q: QTensor, title: str = "weights") -> Picture:
    """Error against weight for the widest group of `q`, between its bounds."""
    return ErrorCurve(weight, q, title)


def layer_errors(reports: Mapping[str, QuantizationReport]) -> Picture:
    """SQNR of every layer, in model order, one line a report."""
    with rc_context(STYLE):
        picture = Picture(9, 4.2)
        _draw_layer_errors(picture.subplots(), reports)
    worst = {name: min(report.layers, key=lambda layer: layer.error.sqnr_db) for name, report in reports.items()}
    picture.alt = "SQNR of every layer. " + " ".join(
        f"{name}: lowest {layer.error.sqnr_db:.1f} dB at {layer.name}." for name, layer in worst.items()
    )
    return picture


def perplexity_against_bytes(comparison: Comparison) -> Picture:
    """Quality against size: one point a model, lower and further left is better."""
    with rc_context(STYLE):
        picture = Picture(7.5, 4.6)
        _draw_perplexity(picture, picture.subplots(), comparison)
    picture.alt = _perplexity_words(comparison)
    return picture


def comparison_picture(comparison: Comparison) -> Picture:
    """Both at once: what `qkit compare` writes."""
    reports = {row.name: row.report for row in comparison.rows if row.report is not None}
    with rc_context(STYLE):
        picture = Picture(13, 5)
        left, right = picture.subplots(1, 2, width_ratios=[1, 1.15])
        _draw_perplexity(picture, left, comparison)
        if reports:
            _draw_layer_errors(right, reports)
        picture.suptitle(comparison.caption)
    picture.alt = _perplexity_words(comparison)
    return picture


def _perplexity_words(comparison: Comparison) -> str:
    points = ", ".join(f"{row.name} {row.disk_bytes / 1e6:.1f} MB {row.perplexity:.2f}" for row in comparison.rows)
    return f"Perplexity against megabytes on disk for {comparison.caption}: {points}."


def _style_of(name: str, scheme: Mapping[str, Any] | None) -> tuple[str, str, str]:
    """(colour, marker, line) of a scheme, by its name and its dictionary."""
    whole = {"NF4": 4, "FP4": 4, "LLMInt8": 8, "W8A8": 8, "SmoothQuant": 8}
    bits = None if scheme is None else scheme.get("bits", whole.get(scheme["scheme"]))
    return (METHOD_COLOURS.get(name.split()[0], GREY), *BITS_STYLES.get(bits, ("D", "-")))


def _draw_perplexity(picture: Picture, axes, comparison: Comparison) -> None:
    for row in comparison.rows:
        colour, marker, _ = _style_of(row.name, row.scheme)
        axes.plot(row.disk_bytes / 1e6, row.perplexity, marker, color=colour, ms=9, mec="white")
    values = [row.perplexity for row in comparison.rows]
    sizes = [row.disk_bytes / 1e6 for row in comparison.rows]
    axes.set(xscale="log", yscale="log", xlabel="MB on disk", ylabel="perplexity (lower is better)")
    axes.set(xlim=(0.85 * min(sizes), 1.9 * max(sizes)), ylim=(0.7 * min(values), 1.6 * max(values)))
    axes.axhline(comparison.rows[0].perplexity, color="black", lw=1, ls=":")
    _plain_ticks(axes.xaxis, [5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000])
    _plain_ticks(axes.yaxis, [5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000])
    picture.draw_without_rendering()  # the layout must be known before labels can be kept apart
    _label_apart(axes, sizes, values, [row.name for row in comparison.rows])


def _plain_ticks(axis, ticks: list[float]) -> None:
    lo, hi = axis.get_view_interval()
    axis.set_ticks([tick for tick in ticks if lo <= tick <= hi])
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _label_apart(axes, xs: list[float], ys: list[float], names: list[str], spacing: float = 15.0) -> None:
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


def _draw_layer_errors(axes, reports: Mapping[str, QuantizationReport]) -> None:
    for name, report in reports.items():
        colour, marker, line = _style_of(name, report.scheme)
        values = [layer.error.sqnr_db for layer in report.layers]
        axes.plot(values, color=colour, ls=line, marker=marker, ms=3, lw=1.2)
        axes.annotate(name, (len(values) - 1, values[-1]), (8, -4), textcoords="offset points", fontsize=10.5)
    names = [layer.name for layer in next(iter(reports.values())).layers]
    blocks = [".".join(part for part in name.split(".") if part.isdigit()) for name in names]
    starts = [i for i, block in enumerate(blocks) if i == 0 or block != blocks[i - 1]]
    few = starts[:: max(1, len(starts) // 12)]
    axes.set_xticks(few, [blocks[i] for i in few])
    axes.set(
        xlabel="layers in model order, by decoder block",
        ylabel="SQNR (dB, higher is better)",
        xlim=(-1, 1.32 * len(names)),
    )


def sqnr_curves(
    series: Mapping[str, tuple[list[float], list[float]]], xlabel: str, slope: float | None = None
) -> Picture:
    """SQNR against bits, one curve a name: {name: (bits, dB)}. `slope`: a dotted line of so many dB a bit."""
    with rc_context(STYLE):
        picture = Picture(8, 4.4)
        axes = picture.subplots()
        for (name, (bits, db)), colour, marker in zip(series.items(), (BLUE, RED, GREEN, ORANGE), "os^v", strict=False):
            axes.plot(bits, db, color=colour, marker=marker, ms=6, label=name)
        if slope is not None:
            bits, db = next(iter(series.values()))
            axes.axline((bits[-1], db[-1]), slope=slope, color=GREY, ls=":", label=f"{slope:.2f} dB a bit")
        axes.set(xlabel=xlabel, ylabel="SQNR (dB, higher is better)")
        axes.legend(loc="upper left")
    picture.alt = "SQNR in dB against bits. " + " ".join(
        f"{name}: " + ", ".join(f"{b:.2f} bits {d:.1f}" for b, d in zip(*curve, strict=True)) + "."
        for name, curve in series.items()
    )
    return picture
