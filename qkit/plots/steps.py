"""Figures of lesson 08: layers under the roofs of a machine, and how long each takes."""

from collections.abc import Mapping

import numpy as np
from matplotlib import rc_context
from matplotlib.ticker import FuncFormatter, NullLocator

from qkit.bench.record import Roof
from qkit.bench.roofline import Layer
from qkit.plots.base import BLUE, GREY, ORANGE, RED, STYLE, Picture

INTENSITIES = (0.25, 1024)  # operations a byte, from end to end of the axis
WAYS = {"floats": BLUE, "INT8": RED}


def attainable(roof: Roof, intensity: float, integers: bool = False) -> float:
    """10^9 operations a second: what memory feeds or what the arithmetic does, whichever is less."""
    return min(intensity * roof.gigabytes_per_second, roof.int8_gops if integers else roof.float_gops)


def _draw_roofs(axes, roof: Roof, lowest: float) -> None:
    x = np.geomspace(*INTENSITIES, 200)
    for way, peak in (("floats", roof.float_gops), ("INT8", roof.int8_gops)):
        axes.plot(x, [attainable(roof, i, way == "INT8") for i in x], color=WAYS[way], lw=2)
        axes.text(INTENSITIES[1], 1.12 * peak, f"{way}: {peak:,.0f}", ha="right", color=WAYS[way], fontsize=11)
    below = x[x < roof.float_gops / roof.gigabytes_per_second]
    axes.plot(below, below * roof.gigabytes_per_second, color="black", lw=2)
    axes.text(1.1 * INTENSITIES[0], 1.4 * roof.float_gops, f"memory: {roof.gigabytes_per_second:.0f} GB/s", fontsize=11)
    axes.set(xscale="log", yscale="log", xlim=INTENSITIES, ylim=(lowest, 2.5 * roof.int8_gops))
    axes.set(xlabel="operations a byte", ylabel="10⁹ operations a second")
    ticks = [1, 4, 16, 64, 256, 1024]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    _plain_decades(axes.yaxis)
    axes.xaxis.set_minor_locator(NullLocator())


def _plain_decades(axis) -> None:
    """1,000 for 10^3: mathematical type and minor ticks would take half of the drawing time."""
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def steps_on_roofline(roof: Roof, measured: Mapping[str, tuple[Layer, float]]) -> Picture:
    """Where each of several ways to compute a layer stands under the roofs, and its time beside what its bytes take.

    Args:
        roof: what the machine does at best.
        measured: (what is computed, seconds) by name, in the order in which they are numbered.
    """
    rates = [layer.operations / seconds / 1e9 for layer, seconds in measured.values()]
    with rc_context(STYLE):
        picture = Picture(11, 4.6)
        left, right = picture.subplots(1, 2, width_ratios=[1, 1.15])
        _draw_roofs(left, roof, 0.4 * min(*rates, roof.gigabytes_per_second))
        layers = [layer for layer, _ in measured.values()]
        for rank, i in enumerate(
            sorted(range(len(rates)), key=rates.__getitem__)
        ):  # neighbours' numbers on either side
            spot, (shift, side) = (layers[i].intensity, rates[i]), ((9, "left"), (-9, "right"))[rank % 2]
            left.plot(*spot, "o", color=ORANGE, mec="black", ms=8, zorder=4)
            where = {"xytext": (shift, 0), "textcoords": "offset points", "ha": side, "va": "center"}
            left.annotate(str(i + 1), spot, **where, fontsize=11)
        places = range(len(measured))
        times = [seconds for _, seconds in measured.values()]
        right.barh(places, [1e3 * seconds for seconds in times], color=ORANGE, height=0.62)
        floors = [1e3 * layer.seconds_to_read(roof) for layer in layers]
        right.plot(floors, places, "|", color="black", ms=20, mew=2.5)
        right.set_title("black: its bytes, at the memory's speed", loc="left", fontsize=12)
        for place, seconds in zip(places, times, strict=True):
            right.text(
                1.12e3 * max(seconds, floors[place] / 1e3), place, _milliseconds(seconds), va="center", fontsize=11
            )
        right.set(xscale="log", xlabel="milliseconds", xlim=(0.4 * min(floors), 4e3 * max(times)))
        right.set_yticks(places, [f"{number}  {name}" for number, name in enumerate(measured, 1)])
        right.invert_yaxis()
        right.grid(False, axis="y")
        _plain_decades(right.xaxis)
    named = enumerate(zip(measured, times, strict=True), 1)
    listed = ", ".join(f"{number} {name} {_milliseconds(seconds)}" for number, (name, seconds) in named)
    picture.alt = (
        f"A roofline of {roof.gigabytes_per_second:.0f} GB/s, {roof.float_gops:,.0f} 10⁹ float and {roof.int8_gops:,.0f} 10⁹ "
        f"INT8 operations a second with {roof.threads} threads, and under it: {listed}. What the bytes take at least: "
        + ", ".join(f"{name} {floor:.3g} ms" for name, floor in zip(measured, floors, strict=True))
        + "."
    )
    return picture


class LayerOnRoofline(Picture):
    """Left, where a layer stands under the roofs (rings: at best; dots: measured). Right, what its bytes and operations take."""

    def __init__(
        self, roof: Roof, layer: Layer, measured: Mapping[str, float] | None = None, title: str = "", dpi: int = 96
    ) -> None:
        """
        Args:
            roof: what the machine does at best.
            layer: what is computed.
            measured: seconds by way ("floats", "INT8"), as `qkit.bench.roofline.measure` gives them; None: not measured.
        """
        self.roof = roof
        with rc_context(STYLE):
            super().__init__(11, 4.4, dpi)
            self._left, right = self.subplots(1, 2, width_ratios=[1.15, 1])
            _draw_roofs(self._left, roof, 0.25 * roof.gigabytes_per_second)
            self._line = self._left.axvline(1, color=GREY, ls=":", lw=1.5)
            self._rings = {
                way: self._left.plot([], [], "o", ms=13, mfc="none", mec=colour, mew=2)[0]
                for way, colour in WAYS.items()
            }
            self._dots = {way: self._left.plot([], [], "o", ms=8, color=colour)[0] for way, colour in WAYS.items()}
            names = ["its bytes", "operations, floats", "operations, INT8", "kernel, floats", "kernel, INT8"]
            colours = ["black", *WAYS.values(), *WAYS.values()]
            self._bars = right.barh(range(5), [1] * 5, color=colours, height=0.6)
            for bar in self._bars[:3]:
                bar.set_alpha(0.45)
            self._texts = [right.text(1, place, "", va="center", fontsize=11) for place in range(5)]
            right.set_yticks(range(5), names)
            right.invert_yaxis()
            right.grid(False, axis="y")
            right.set(xscale="log", xlim=(5e-4, 3e3), xlabel="milliseconds")
            _plain_decades(right.xaxis)
            self._right = right
        self.show(layer, measured, title)
        self.freeze()

    def show(self, layer: Layer, measured: Mapping[str, float] | None = None, title: str = "") -> None:
        """Another layer, in the same picture."""
        measured = measured or {}
        reading = layer.seconds_to_read(self.roof)
        ways = WAYS if layer.bits <= 8 else ["floats"]
        computing = {way: layer.seconds_to_compute(self.roof, way == "INT8") for way in ways}
        best = {way: max(reading, seconds) for way, seconds in computing.items()}
        self._line.set_xdata([layer.intensity] * 2)
        for way in WAYS:
            for dots, seconds in ((self._rings, best.get(way)), (self._dots, measured.get(way))):
                rates = [layer.operations / seconds / 1e9] if seconds else []
                dots[way].set_data([layer.intensity] * len(rates), rates)
        times = [reading, *map(computing.get, WAYS), *map(measured.get, WAYS)]
        for bar, text, seconds in zip(self._bars, self._texts, times, strict=True):
            bar.set_width(1e3 * seconds if seconds else 0)
            text.set_text(_milliseconds(seconds) if seconds else "-")
            text.set_x(1.2e3 * seconds if seconds else 6e-4)
        bound = {way: "bytes" if reading >= computing[way] else "operations" for way in ways}
        words = [f"{way} bound by its {bound[way]}, at best {_milliseconds(best[way])}" for way in ways]
        self._left.set_title(title, loc="left")
        self._right.set_title(
            f"{layer.bytes / 1e6:.1f} MB, {layer.operations / 1e6:,.0f} million operations", loc="left"
        )
        kernel = ", ".join(f"{way} {_milliseconds(seconds)}" for way, seconds in measured.items()) or "nothing"
        self.alt = (
            f"{title}: {layer.bytes / 1e6:.1f} MB, {layer.operations / 1e6:,.0f} million operations, "
            f"{layer.intensity:.1f} a byte; {'; '.join(words)}. Measured: {kernel}."
        )
