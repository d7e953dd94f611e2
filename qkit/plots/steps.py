"""Figures of lesson 08: layers under the roofs of a machine, and how long each takes."""

from collections.abc import Mapping

import numpy as np
from matplotlib import rc_context
from matplotlib.ticker import NullLocator

from qkit.bench.record import Roof
from qkit.bench.roofline import Layer, attainable
from qkit.plots.axes import plain_decades
from qkit.plots.base import BLUE, GREY, ORANGE, RED, STYLE, Data, Picture

INTENSITIES = (0.25, 1024)  # operations a byte, from end to end of the axis
WAYS = {"floats": BLUE, "INT8": RED}


def _roof_data(roof: Roof) -> dict[str, np.ndarray]:
    """The roofs over `intensities`: what floats and INT8 can reach."""
    x = np.geomspace(*INTENSITIES, 200)
    ways = {f"attainable, {way}": np.array([attainable(roof, i, way == "INT8") for i in x]) for way in WAYS}
    return {"intensities": x, **ways}


def _draw_roofs(axes, roof: Roof, data: Data, lowest: float) -> None:
    x = data["intensities"]
    for way, peak in (("floats", roof.float_gops), ("INT8", roof.int8_gops)):
        axes.plot(x, data[f"attainable, {way}"], color=WAYS[way], lw=2)
        axes.text(INTENSITIES[1], 1.12 * peak, f"{way}: {peak:,.0f}", ha="right", color=WAYS[way], fontsize=11)
    below = x[x < roof.float_gops / roof.gigabytes_per_second]
    axes.plot(below, below * roof.gigabytes_per_second, color="black", lw=2)
    axes.text(1.1 * INTENSITIES[0], 1.4 * roof.float_gops, f"memory: {roof.gigabytes_per_second:.0f} GB/s", fontsize=11)
    axes.set(xscale="log", yscale="log", xlim=INTENSITIES, ylim=(lowest, 2.5 * roof.int8_gops))
    axes.set(xlabel="operations a byte", ylabel="10⁹ operations a second")
    ticks = [1, 4, 16, 64, 256, 1024]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    plain_decades(axes.yaxis)
    axes.xaxis.set_minor_locator(NullLocator())


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def steps_on_roofline(roof: Roof, measured: Mapping[str, tuple[Layer, float]]) -> Picture:
    """Where each of several ways to compute a layer stands under the roofs, and its time beside what its bytes take.

    Its data: `names`, and of each its `intensity` in operations a byte, its `rates` in 10⁹ operations a second, its
    `milliseconds`, and `floors`, the milliseconds that its bytes take at least; `attainable, floats` and `attainable, INT8` over
    `intensities` are the roofs.

    Args:
        roof: what the machine does at best.
        measured: (what is computed, seconds) by name, in the order in which they are numbered.

    Raises:
        ValueError: nothing was measured, or a time is not above 0.
    """
    if not measured:
        raise ValueError("nothing was measured; give {name: (layer, seconds)}")
    for name, (_, seconds) in measured.items():
        _check_seconds(name, seconds)
    layers, times = zip(*measured.values(), strict=True)
    with rc_context(STYLE):
        picture = Picture(11, 4.6)
        picture.data = data = {
            **_roof_data(roof),
            "names": np.array(list(measured)),
            "intensity": np.array([layer.intensity for layer in layers]),
            "rates": np.array([layer.operations / seconds / 1e9 for layer, seconds in measured.values()]),
            "milliseconds": np.array([1e3 * seconds for seconds in times]),
            "floors": np.array([1e3 * layer.seconds_to_read(roof) for layer in layers]),
        }
        left, right = picture.subplots(1, 2, width_ratios=[1, 1.15])
        rates, floors = data["rates"], data["floors"]
        _draw_roofs(left, roof, data, 0.4 * min(*rates, roof.gigabytes_per_second))
        for rank, i in enumerate(np.argsort(rates, kind="stable")):  # neighbours' numbers on either side
            spot, (shift, side) = (data["intensity"][i], rates[i]), ((9, "left"), (-9, "right"))[rank % 2]
            left.plot(*spot, "o", color=ORANGE, mec="black", ms=8, zorder=4)
            where = {"xytext": (shift, 0), "textcoords": "offset points", "ha": side, "va": "center"}
            left.annotate(str(i + 1), spot, **where, fontsize=11)
        places = range(len(measured))
        right.barh(places, data["milliseconds"], color=ORANGE, height=0.62)
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
        plain_decades(right.xaxis)
    named = enumerate(zip(measured, times, strict=True), 1)
    listed = ", ".join(f"{number} {name} {_milliseconds(seconds)}" for number, (name, seconds) in named)
    picture.alt = (
        f"A roofline of {roof.gigabytes_per_second:.0f} GB/s, {roof.float_gops:,.0f} 10⁹ float and {roof.int8_gops:,.0f} 10⁹ "
        f"INT8 operations a second with {roof.threads} threads, and under it: {listed}. What the bytes take at least: "
        + ", ".join(f"{name} {floor:.3g} ms" for name, floor in zip(measured, floors, strict=True))
        + "."
    )
    return picture


def _check_seconds(name: str, seconds: float) -> None:
    if not 0 < seconds < float("inf"):
        raise ValueError(
            f"{name!r} took {seconds} seconds, which is no measured time; measure it again, or leave it out"
        )


class LayerOnRoofline(Picture):
    """Left, where a layer stands under the roofs (rings: at best; dots: measured). Right, what its bytes and operations take.

    Its data: `intensity`, operations a byte; 10⁹ operations a second `at best` and `measured`, and `milliseconds` of the five
    bars (its bytes; its operations, floats and INT8; the kernel's time, floats and INT8), NaN for what is not drawn; the roofs
    as in `steps_on_roofline`.
    """

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
            self._roofs = _roof_data(roof)
            _draw_roofs(self._left, roof, self._roofs, 0.25 * roof.gigabytes_per_second)
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
            plain_decades(right.xaxis)
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
        for way, seconds in measured.items():
            _check_seconds(way, seconds)
        times = [reading, *map(computing.get, WAYS), *map(measured.get, WAYS)]
        self.data = data = {
            **self._roofs,
            "intensity": layer.intensity,
            "at best": np.array([layer.operations / best[way] / 1e9 if way in best else np.nan for way in WAYS]),
            "measured": np.array(
                [layer.operations / measured[way] / 1e9 if way in measured else np.nan for way in WAYS]
            ),
            "milliseconds": np.array([1e3 * seconds if seconds else np.nan for seconds in times]),
        }
        self._line.set_xdata([data["intensity"]] * 2)
        for dots, rates in ((self._rings, data["at best"]), (self._dots, data["measured"])):
            for way, rate in zip(WAYS, rates, strict=True):
                dots[way].set_data([data["intensity"]], [rate])
        for bar, text, milliseconds, seconds in zip(self._bars, self._texts, data["milliseconds"], times, strict=True):
            bar.set_width(milliseconds if seconds else 0)
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
