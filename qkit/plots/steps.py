"""Figures of lesson 08: layers under the roofs of a machine, and how long each takes."""

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
from matplotlib import rc_context
from matplotlib.text import Annotation
from matplotlib.ticker import NullLocator

from qkit.bench.record import Roof
from qkit.bench.roofline import Layer, attainable
from qkit.plots.axes import plain_decades
from qkit.plots.base import BLUE, GREEN, GREY, ORANGE, RED, STYLE, Data, Picture

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


Steps = Mapping[str, tuple[Layer, float]]  # (what is computed, seconds) by name


def steps_on_roofline(roof: Roof, measured: Steps, first: int = 1) -> Picture:
    """Where each of several ways to compute a layer stands under the roofs, and its time beside what its bytes take.

    Its data: `names`, and of each its `intensity` in operations a byte, its `rates` in 10⁹ operations a second, its
    `milliseconds`, and `floors`, the milliseconds that its bytes take at least; `attainable, floats` and `attainable, INT8` over
    `intensities` are the roofs.

    Args:
        roof: what the machine does at best.
        measured: (what is computed, seconds) by name, in the order in which they are numbered.
        first: the number of the first.

    Raises:
        ValueError: nothing was measured, or a time is not above 0.
    """
    times = _step_data(roof, measured)
    with rc_context(STYLE):
        picture = Picture(11, 4.6)
        picture.data = data = {
            **_roof_data(roof),
            "intensity": np.array([layer.intensity for layer, _ in measured.values()]),
            "rates": np.array([layer.operations / seconds / 1e9 for layer, seconds in measured.values()]),
            **times,
        }
        left, right = picture.subplots(1, 2, width_ratios=[1, 1.15])
        rates = data["rates"]
        _draw_roofs(left, roof, data, 0.4 * min(*rates, roof.gigabytes_per_second))
        left.plot(data["intensity"], rates, "o", color=ORANGE, mec="black", ms=8, zorder=4)
        _number_dots(left, data["intensity"], rates, first)
        _draw_step_times(right, data, first)
    listed, floors = _step_words(data, first)
    picture.alt = (
        f"A roofline of {roof.gigabytes_per_second:.0f} GB/s, {roof.float_gops:,.0f} 10⁹ float and {roof.int8_gops:,.0f} 10⁹ "
        f"INT8 operations a second with {roof.threads} threads, and under it: {listed}. {floors}"
    )
    picture.constant = f"under the roofline of this machine: {', '.join(measured)}"
    return picture


def _number_dots(axes, xs: np.ndarray, ys: np.ndarray, first: int) -> None:
    """A number beside each dot, neighbours' on either side; one that would lie on others' is written behind that on the right."""
    points = axes.transData.transform(np.column_stack([xs, ys])) * 72 / axes.figure.dpi
    placed: dict[str, list[tuple[np.ndarray, Annotation]]] = {"left": [], "right": []}
    for rank, i in enumerate(np.argsort(ys, kind="stable")):
        near = {
            side: next((text for point, text in reversed(texts) if np.all(abs(point - points[i]) < (40, 13))), None)
            for side, texts in placed.items()
        }
        sides = ("left", "right") if rank % 2 == 0 else ("right", "left")
        side = next((side for side in sides if near[side] is None), None)
        if side is None:
            text = cast(Annotation, near["left"])
            text.set_text(f"{text.get_text()}, {first + i}")
            continue
        where = {"xytext": (9 if side == "left" else -9, 0), "textcoords": "offset points", "ha": side, "va": "center"}
        text = axes.annotate(str(first + i), (xs[i], ys[i]), **where, fontsize=11)
        placed[side].append((points[i], text))


def step_times(roof: Roof, measured: Steps, first: int = 1) -> Picture:
    """The right half of `steps_on_roofline` alone: how long each way takes, and what its bytes take at least.

    Its data: `names`, `milliseconds` and `floors` as there. Raises what `steps_on_roofline` does.
    """
    data = _step_data(roof, measured)
    with rc_context(STYLE):
        picture = Picture(8.5, 1.3 + 0.33 * len(measured))
        picture.data = data
        _draw_step_times(picture.subplots(), data, first)
    listed, floors = _step_words(data, first)
    picture.alt = f"{listed}. {floors}"
    picture.constant = f"milliseconds on this machine: {', '.join(measured)}"
    return picture


def _step_data(roof: Roof, measured: Steps) -> dict[str, np.ndarray]:
    if not measured:
        raise ValueError("nothing was measured; give {name: (layer, seconds)}")
    for name, (_, seconds) in measured.items():
        _check_seconds(name, seconds)
    return {
        "names": np.array(list(measured)),
        "milliseconds": np.array([1e3 * seconds for _, seconds in measured.values()]),
        "floors": np.array([1e3 * layer.seconds_to_read(roof) for layer, _ in measured.values()]),
    }


def _draw_step_times(axes, data: Data, first: int) -> None:
    times, floors = data["milliseconds"], data["floors"]
    places = range(len(times))
    axes.barh(places, times, color=ORANGE, height=0.62)
    axes.plot(floors, places, "|", color="black", ms=20, mew=2.5)
    axes.set_title("black: its bytes, at the memory's speed", loc="left", fontsize=12)
    for place, milliseconds, floor in zip(places, times, floors, strict=True):
        axes.text(1.12 * max(milliseconds, floor), place, f"{milliseconds:.3g} ms", va="center", fontsize=11)
    axes.set(xscale="log", xlabel="milliseconds", xlim=(0.4 * min(floors), 4 * max(times)))
    axes.set_yticks(places, [f"{number}  {name}" for number, name in enumerate(data["names"], first)])
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    plain_decades(axes.xaxis)


def _step_words(data: Data, first: int) -> tuple[str, str]:
    named = enumerate(zip(data["names"], data["milliseconds"], strict=True), first)
    listed = ", ".join(f"{number} {name} {milliseconds:.3g} ms" for number, (name, milliseconds) in named)
    floors = ", ".join(f"{name} {floor:.3g} ms" for name, floor in zip(data["names"], data["floors"], strict=True))
    return listed, f"What the bytes take at least: {floors}."


def grouped_times(times: Mapping[str, Mapping[str, float]], title: str, unit: str = "ms") -> Picture:
    """Times that this machine took, a group of bars for each of several cases; what belongs together has one colour.

    Its data: of each case, by its name, the times in `unit`, in the order of their names.

    Args:
        times: seconds by case, then by name; the names are the same in all cases.
        title: what is timed.
        unit: "ms" or "us".

    Raises:
        ValueError: there is none, cases differ in their names, or a time is not above 0.
    """
    names = list(next(iter(times.values()), ()))
    if not names or any(list(case) != names for case in times.values()):
        raise ValueError("each case needs the same names, and at least one; give {case: {name: seconds}}")
    for case, row in times.items():
        for name, seconds in row.items():
            _check_seconds(f"{name}, {case}", seconds)
    factor, words = {"ms": (1e3, "milliseconds"), "us": (1e6, "microseconds")}[unit]
    with rc_context(STYLE):
        picture = Picture(9, 1.5 + 0.3 * len(times) * len(names))
        picture.data = data = {case: factor * np.array(list(row.values())) for case, row in times.items()}
        axes = picture.subplots()
        height = 0.84 / len(names)
        for number, (name, colour) in enumerate(zip(names, (GREY, BLUE, RED, GREEN, ORANGE), strict=False)):
            places = np.arange(len(times)) + (number - (len(names) - 1) / 2) * height
            values = [row[number] for row in data.values()]
            axes.barh(places, values, color=colour, height=0.92 * height, label=name)
            for place, value in zip(places, values, strict=True):
                axes.text(1.06 * value, place, _three_digits(value), va="center", fontsize=10.5)
        every = np.concatenate(list(data.values()))
        axes.set(xscale="log", xlabel=words, xlim=(0.5 * every.min(), 2.2 * every.max()), title=title)
        axes.set_yticks(range(len(times)), list(times))
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        plain_decades(axes.xaxis)
        picture.legend(loc="outside right upper", fontsize=11)
    picture.alt = f"{title}, {words}. " + "; ".join(
        f"{case}: " + ", ".join(f"{name} {_three_digits(value)}" for name, value in zip(names, row, strict=True))
        for case, row in data.items()
    )
    picture.constant = f"{title}, {words} on this machine: {', '.join(names)}; {', '.join(times)}"
    return picture


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 999.5 else f"{value:.3g}"


def listing(text: str, title: str, marked: Sequence[str] = ()) -> Picture:
    """Lines of machine code as a picture, for what is another text on every processor; those with a word of `marked` are red.

    Its data: `lines`. Its alt is the text itself.

    Raises:
        ValueError: there is no line.
    """
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"there is no line in {title!r}; give machine code, as steps.assembly returns it")
    with rc_context(STYLE):
        picture = Picture(7.5, 0.6 + 0.21 * len(lines))
        picture.data = {"lines": np.array(lines)}
        axes = picture.subplots()
        for number, line in enumerate(lines):
            colour = RED if any(word in line for word in marked) else "black"
            axes.text(0, number, line, family="monospace", fontsize=10.5, va="center", color=colour)
        axes.set(xlim=(0, 1), ylim=(len(lines) - 0.4, -0.6))
        axes.set_title(title, loc="left")
        axes.axis("off")
    picture.alt = f"{title}: " + "; ".join(lines)
    picture.constant = f"{title}: what was compiled for this processor"
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
        self.constant = (
            f"{title}: {layer.bytes / 1e6:.1f} MB, {layer.intensity:.1f} operations a byte, under this machine's roofs"
        )
