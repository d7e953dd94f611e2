"""Figures for choosing: loss against bytes, and what each layer would lose."""

from collections.abc import Mapping
from itertools import cycle

import numpy as np
from matplotlib import rc_context

from qkit.methods.scheme import Scheme
from qkit.plots.axes import block_ticks, heights, label_apart, plain_ticks, with_its_value
from qkit.plots.base import BLUE, GREY, ORANGE, RED, STYLE, Picture
from qkit.plots.marks import mark_named
from qkit.study.frontier import Points, best_that_fits, frontier
from qkit.study.sensitivity import Sensitivity

TICKS = [n * 10**k for k in range(-4, 5) for n in (1, 2, 5)]
DECADES = [10**k for k in range(-6, 7)]
NONE = np.zeros((0, 2))


class LossAgainstBytes(Picture):
    """One point a method; the line joins those that no other beats. A budget shades what does not fit and rings the best.

    Its data: `names`, `megabytes` and `losses` of the points, and of the points that no other beats, `line_megabytes` and
    `line_losses`; `budget`, inf for none; `best` and `advised`, the names of what is ringed and starred, or "".
    """

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
            points: (megabytes, loss) by name; names begin with their method ("GPTQ W4 g128"). A loss of 0 or of infinity is
                drawn beyond the others.
            megabytes: a budget; None: none is drawn.
            advised: the name of a point to mark with a star, if it is there.

        Raises:
            ValueError: no point, a size that is not above 0, a loss that is NaN.
        """
        self.points = dict(points)
        losses = heights({name: loss for name, (_, loss) in self.points.items()}, "loss")
        for name, (size, _) in self.points.items():
            if not 0 < size < float("inf"):
                raise ValueError(
                    f"{name!r} takes {size} megabytes, which has no place on the axis; give a size above 0"
                )
        sizes = np.array([size for size, _ in self.points.values()])
        self._spots = dict(zip(self.points, np.stack([sizes, losses], 1), strict=True))
        with rc_context(STYLE):
            super().__init__(9, 5.2, dpi)
            self._axes = self.subplots()
            self._axes.set(xscale="log", yscale="log", xlabel="MB on disk", ylabel=ylabel)
            self._axes.set(xlim=(0.9 * min(sizes), 1.45 * max(sizes)), ylim=(0.6 * min(losses), 3 * max(losses)))
            self._line = np.array([self._spots[name] for name in frontier(self.points)])
            self._axes.plot(*self._line.T, color="black", lw=1.2, ls=":", zorder=1)
            for name, spot in self._spots.items():
                mark = mark_named(name)
                self._axes.plot(*spot, mark.marker, color=mark.colour, ms=8, mec="white", mew=0.6, zorder=3)
            self._beyond = self._axes.axvspan(max(sizes), 2 * max(sizes), color=GREY, alpha=0.2, lw=0, zorder=0)
            self._ring = self._axes.plot([], [], "o", ms=19, mfc="none", mec=ORANGE, mew=2.5, zorder=2)[0]
            self._star = self._axes.plot([], [], "*", ms=34, color=ORANGE, alpha=0.45, mew=0, zorder=2)[0]
            plain_ticks(self._axes.xaxis, [*TICKS, 7, 15, 30])
            plain_ticks(self._axes.yaxis, DECADES)
            self.draw_without_rendering()
            labels = [with_its_value(name, loss) for name, (_, loss) in self.points.items()]
            label_apart(self._axes, sizes, losses, labels)
        self.show(megabytes, advised)
        self.freeze()

    def show(self, megabytes: float | None, advised: str | None = None) -> None:
        """Another budget, another piece of advice."""
        best = None if megabytes is None else best_that_fits(self.points, megabytes)
        spots = np.array(list(self._spots.values()))
        self.data = data = {
            "names": np.array(list(self.points)),
            "megabytes": spots[:, 0],
            "losses": spots[:, 1],
            "line_megabytes": self._line[:, 0],
            "line_losses": self._line[:, 1],
            "budget": float("inf") if megabytes is None else megabytes,
            "best": best or "",
            "advised": advised if advised in self.points else "",
        }
        for mark, name in ((self._ring, data["best"]), (self._star, data["advised"])):
            mark.set_data(*(self._spots[name][:, None] if name else NONE.T))
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


def layer_choices(sensitivity: Sensitivity, chosen: Mapping[str, Scheme]) -> Picture:
    """What each layer loses under each scheme, in model order, and which one was `chosen` for it (filled).

    Its data: `layers`, their names; under "loss of " and the name of each scheme a number for each; and under "chosen " and the
    name of the scheme the places of the layers that it was chosen for.

    Raises:
        ValueError: nothing was measured, a loss is NaN, or a layer has no choice.
    """
    schemes = list(dict.fromkeys(choice.scheme for choice in sensitivity.choices))
    layers = list(sensitivity.weights)
    for layer in layers:
        if layer not in chosen:
            raise ValueError(f"nothing is chosen for {layer}; give a scheme for each layer of {sensitivity!r}")
    measured = {(choice.layer, choice.scheme): choice.loss for choice in sensitivity.choices}
    drawn = heights({f"{layer} under {scheme.name}": loss for (layer, scheme), loss in measured.items()}, "loss")
    losses = dict(zip(measured, drawn, strict=True))
    data = {"layers": np.array(layers)}
    for scheme in schemes:
        data[f"loss of {scheme.name}"] = np.array([losses[layer, scheme] for layer in layers])
        data[f"chosen {scheme.name}"] = np.array([i for i, layer in enumerate(layers) if chosen[layer] == scheme], int)
    with rc_context(STYLE):
        picture = Picture(9.5, 4.4)
        picture.data = data
        axes = picture.subplots()
        for scheme, colour, marker in zip(
            schemes, cycle((RED, ORANGE, BLUE, GREY, "black")), cycle("^soDvP"), strict=False
        ):
            values, mine = data[f"loss of {scheme.name}"], data[f"chosen {scheme.name}"]
            axes.plot(np.arange(len(layers)), values, marker, ms=5, mfc="none", color=colour)
            axes.plot(mine, values[mine], marker, ms=8, color=colour, label=f"{scheme.name}: {len(mine)} layers")
        block_ticks(axes, layers)
        axes.set(yscale="log", ylabel="relative output error")
        picture.legend(loc="outside upper center", ncols=len(schemes), fontsize=10.5, handletextpad=0.1)
    counts = ", ".join(f"{scheme.name} for {len(data[f'chosen {scheme.name}'])}" for scheme in schemes)
    worst = ", ".join(f"{c.layer} {c.loss:.3g}" for c in sensitivity.worst(schemes[0], 3))
    picture.alt = (
        f"Relative output error of {len(layers)} layers under {len(schemes)} schemes. Chosen: {counts}. "
        f"Most sensitive under {schemes[0].name}: {worst}."
    )
    return picture
