"""Predictions against what was measured: one on its own axis, and all of a lesson."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import rc_context

from qkit.plots.axes import plain_ticks
from qkit.plots.base import BLUE, GREEN, ORANGE, STYLE, Picture

FACTORS = (1 / 100, 100)  # of guess over measurement, from end to end of the axis; what lies beyond is drawn at the end
LINEAR = 5  # two numbers that differ by less than this factor stand on an axis that begins at 0
TICKS = [n * 10**k for k in range(-4, 7) for n in (1, 2, 5)]


@dataclass(frozen=True)
class Said:
    """What somebody said before a measurement.

    Attributes:
        about: of what, in a few words.
        guess: None: nothing was committed.
        truth: what was measured, finite.
        unit: of both.
        digits: of the measured number, behind the point.
        varies: whether another run, or another machine, measures something else: a time does.
    """

    about: str
    guess: float | None
    truth: float
    unit: str = ""
    digits: int = 2
    varies: bool = False

    @property
    def measured(self) -> str:
        """The number with its unit."""
        return f"{self.truth:.{self.digits}f} {self.unit}".rstrip()

    @property
    def factor(self) -> float:
        """The guess over what was measured, NaN without a guess; of what is not above 0 the nearer end of the axis."""
        if self.guess is None:
            return np.nan
        if self.guess == self.truth:
            return 1.0
        if self.guess <= 0 or self.truth <= 0:
            return FACTORS[self.guess > self.truth]
        return float(np.clip(self.guess / self.truth, *FACTORS))


def guess_against_truth(said: Said) -> Picture:
    """One prediction and the measurement, on one axis; without a guess the measurement alone.

    Its data: `truth`, and `guess`, NaN for none.
    """
    numbers = [said.truth] if said.guess is None else [said.truth, said.guess]
    low, high = min(numbers), max(numbers)
    log = low > 0 and high > LINEAR * low
    with rc_context(STYLE):
        picture = Picture(8, 1.6)
        picture.data = data = {"truth": said.truth, "guess": np.nan if said.guess is None else said.guess}
        axes = picture.subplots()
        axes.plot([data["truth"]], [0], "D", ms=11, color=BLUE, label=f"measured: {said.measured}", zorder=3)
        if said.guess is not None:
            axes.plot(
                [data["guess"]], [0], "o", ms=11, color=ORANGE, label=f"you said: {said.guess:.4g} {said.unit}".rstrip()
            )
            axes.plot([data["guess"], data["truth"]], [0, 0], color=ORANGE, lw=2, zorder=1)
        room = 0.15 * (max(high, 0) - min(low, 0)) or 1
        axes.set(ylim=(-1, 1), xlabel=said.unit)
        if log:
            axes.set(xscale="log", xlim=(low / 2, 2 * high))
            plain_ticks(axes.xaxis, TICKS)
        else:
            axes.set(xlim=(min(low, 0) - room * (low < 0), max(high, 0) + room))
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        picture.legend(
            loc="outside upper left", ncols=2, fontsize=11, title=said.about, alignment="left", title_fontsize=12
        )
    heard = "no guess was committed" if said.guess is None else f"you said {said.guess:.4g} {said.unit}".rstrip()
    picture.alt = f"{said.about}: {heard}; measured: {said.measured}."
    if said.varies:
        picture.constant = f"{said.about}: your guess, and what this machine measured"
    return picture


def guesses_against_truth(said: Sequence[Said]) -> Picture:
    """Each prediction of a lesson over what was measured: on the line it was right, left of it too low, right too high.

    The shaded band is a factor of two. Its data: `about`, and `factors`, NaN where nothing was committed.

    Raises:
        ValueError: there is none.
    """
    if not said:
        raise ValueError("there is no prediction to draw; give at least one")
    places = np.arange(len(said))
    with rc_context(STYLE):
        picture = Picture(9, 1.6 + 0.42 * len(said))
        picture.data = data = {
            "about": np.array([one.about for one in said]),
            "factors": np.array([one.factor for one in said]),
        }
        axes = picture.subplots()
        axes.axvspan(0.5, 2, color=GREEN, alpha=0.12, lw=0)
        axes.axvline(1, color=BLUE, lw=2)
        axes.plot(data["factors"], places, "o", ms=11, color=ORANGE, mec="white", zorder=3)
        for place in places[np.isnan(data["factors"])]:
            axes.text(1.06, place, "no guess", va="center", color="#666666", fontsize=10.5)
        axes.set_yticks(places, data["about"])
        axes.set(xscale="log", xlim=(FACTORS[0] / 1.3, 1.3 * FACTORS[1]), ylim=(len(said) - 0.4, -0.6))
        axes.set(xlabel="what you said / what was measured")
        plain_ticks(axes.xaxis, [0.01, 0.1, 0.5, 1, 2, 10, 100])
        axes.grid(axis="y", visible=False)
    picture.alt = "; ".join(
        f"{one.about}: " + ("no guess" if one.guess is None else f"said {one.guess:.4g}") + f", measured {one.measured}"
        for one in said
    )
    picture.constant = f"{len(said)} predictions of this lesson: what you said over what was measured"
    return picture
