"""Figures for choosing: loss against bytes, and what each layer would lose."""

import re
from collections.abc import Mapping

from matplotlib import rc_context

from qkit.methods.schemes import Scheme
from qkit.plots.base import BITS_STYLES, BLUE, GREY, METHOD_COLOURS, ORANGE, RED, STYLE, Picture
from qkit.plots.weights import _label_apart, _plain_ticks
from qkit.study.sensitivity import Sensitivity

Points = Mapping[str, tuple[float, float]]  # by name: (megabytes, loss), both to be small
TICKS = [n * 10**k for k in range(-4, 5) for n in (1, 2, 5)]
DECADES = [10**k for k in range(-6, 7)]


def frontier(points: Points) -> list[str]:
    """The names that no other beats in both: all others are at least as large and lose at least as much. Smallest first."""
    best: list[str] = []
    for name in sorted(points, key=points.__getitem__):
        if not best or points[name][1] < points[best[-1]][1]:
            best.append(name)
    return best


def best_that_fits(points: Points, megabytes: float) -> str | None:
    """The name with the least loss among those of at most `megabytes`; None: nothing fits."""
    fitting = [name for name, (size, _) in points.items() if size <= megabytes]
    return min(fitting, key=lambda name: points[name][1], default=None)


class LossAgainstBytes(Picture):
    """One point a method; the line joins those that no other beats. A budget shades what does not fit and rings the best."""

    def __init__(
        self,
        points: Points,
        ylabel: str = "KL to the original (nats, lower is better)",
        megabytes: float | None = None,
        advised: str | None = None,
        dpi: int = 96,
    ) -> None:
        """
        Args:
            points: (megabytes, loss) by name, all above 0; names begin with their method ("GPTQ W4 g128").
            megabytes: a budget; None: none is drawn.
            advised: the name of a point to mark with a star, if it is there.
        """
        self.points = dict(points)
        sizes, losses = zip(*self.points.values(), strict=True)
        with rc_context(STYLE):
            super().__init__(9, 5.2, dpi)
            self._axes = self.subplots()
            self._axes.set(xscale="log", yscale="log", xlabel="MB on disk", ylabel=ylabel)
            self._axes.set(xlim=(0.9 * min(sizes), 1.45 * max(sizes)), ylim=(0.6 * min(losses), 3 * max(losses)))
            line = [self.points[name] for name in frontier(self.points)]
            self._axes.plot(*zip(*line, strict=True), color="black", lw=1.2, ls=":", zorder=1)
            for name, point in self.points.items():
                self._axes.plot(*point, _marker(name), color=_colour(name), ms=8, mec="white", mew=0.6, zorder=3)
            self._beyond = self._axes.axvspan(max(sizes), 2 * max(sizes), color=GREY, alpha=0.2, lw=0, zorder=0)
            self._ring = self._axes.plot([], [], "o", ms=19, mfc="none", mec=ORANGE, mew=2.5, zorder=2)[0]
            self._star = self._axes.plot([], [], "*", ms=34, color=ORANGE, alpha=0.45, mew=0, zorder=2)[0]
            _plain_ticks(self._axes.xaxis, [*TICKS, 7, 15, 30])
            _plain_ticks(self._axes.yaxis, DECADES)
            self.draw_without_rendering()
            _label_apart(self._axes, list(sizes), list(losses), list(self.points))
        self.show(megabytes, advised)
        self.freeze()

    def show(self, megabytes: float | None, advised: str | None = None) -> None:
        """Another budget, another piece of advice."""
        best = None if megabytes is None else best_that_fits(self.points, megabytes)
        self._ring.set_data(*(([], []) if best is None else ([value] for value in self.points[best])))
        marked = advised is not None and advised in self.points
        self._star.set_data(*([value] for value in self.points[advised]) if marked else ([], []))
        self._beyond.set_visible(megabytes is not None)
        words = [f"{len(self.points)} methods and settings"]
        if megabytes is not None:
            right = self._axes.get_xlim()[1]
            self._beyond.set_x(megabytes)
            self._beyond.set_width(max(right - megabytes, 0))
            words = [f"{megabytes:.1f} MB: " + ("nothing fits" if best is None else f"best measured: {best}")]
        if advised is not None:
            words.append(f"chart: {advised}")
        self._axes.set_title(", ".join(words))
        listed = ", ".join(f"{name} {size:.1f} MB {loss:.3g}" for name, (size, loss) in self.points.items())
        line = ", ".join(frontier(self.points))
        self.alt = f"Loss against megabytes. {', '.join(words)}. {listed}. Not beaten in both: {line}."


def loss_against_bytes(points: Points, ylabel: str = "KL to the original (nats, lower is better)") -> Picture:
    """`LossAgainstBytes` without a budget."""
    return LossAgainstBytes(points, ylabel)


def _colour(name: str) -> str:
    return METHOD_COLOURS.get(name.split()[0], GREY)


def _marker(name: str) -> str:
    bits = re.search(r"W(\d)(?!A)", name)
    whole = 4 if name.startswith(("NF4", "FP4")) else 8
    return BITS_STYLES.get(int(bits[1]) if bits else whole, ("D", "-"))[0]


def layer_choices(sensitivity: Sensitivity, chosen: Mapping[str, Scheme]) -> Picture:
    """What each layer loses under each scheme, in model order, and which one was `chosen` for it (filled)."""
    schemes = list(dict.fromkeys(choice.scheme for choice in sensitivity.choices))
    layers = list(sensitivity.weights)
    losses = {(choice.layer, choice.scheme): choice.loss for choice in sensitivity.choices}
    with rc_context(STYLE):
        picture = Picture(9.5, 4.4)
        axes = picture.subplots()
        for scheme, colour, marker in zip(schemes, (RED, ORANGE, BLUE, GREY, "black"), "^soDv", strict=False):
            axes.plot([losses[layer, scheme] for layer in layers], marker, ms=5, mfc="none", color=colour)
            mine = [i for i, layer in enumerate(layers) if chosen[layer] == scheme]
            values = [losses[layers[i], scheme] for i in mine]
            axes.plot(mine, values, marker, ms=8, color=colour, label=f"{scheme.name}: {len(mine)} layers")
        blocks = [".".join(part for part in layer.split(".") if part.isdigit()) for layer in layers]
        starts = [i for i, block in enumerate(blocks) if i == 0 or block != blocks[i - 1]]
        axes.set_xticks(starts, [blocks[i] for i in starts])
        axes.set(yscale="log", xlabel="layers in model order, by decoder block", ylabel="relative output error")
        picture.legend(loc="outside upper center", ncols=len(schemes), fontsize=10.5, handletextpad=0.1)
    counts = ", ".join(f"{scheme.name} for {sum(chosen[x] == scheme for x in layers)}" for scheme in schemes)
    worst = ", ".join(f"{c.layer} {c.loss:.3g}" for c in sensitivity.worst(schemes[0], 3))
    picture.alt = (
        f"Relative output error of {len(layers)} layers under {len(schemes)} schemes. Chosen: {counts}. "
        f"Most sensitive under {schemes[0].name}: {worst}."
    )
    return picture
