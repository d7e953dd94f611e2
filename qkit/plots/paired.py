"""Differences between models on the same passages, with their intervals: what is told apart, and what is a tie."""

from collections.abc import Mapping

import numpy as np
from matplotlib import rc_context

from qkit.plots.base import BLUE, GREY, STYLE, Picture
from qkit.study.paired import TIE, Estimate


def paired_differences(
    found: Mapping[str, Estimate], title: str, unit: str = "nats per token", varies: bool = False
) -> Picture:
    """Each difference with two standard errors to both sides; those that reach zero are ties, and grey.

    Its data: `names`, the `differences`, and `low` and `high`, the ends of their intervals.

    Args:
        found: differences of the same measure on the same passages, by what is compared.
        unit: of the differences.
        varies: whether another machine has other numbers; they are then left out of what a notebook stores as text.

    Raises:
        ValueError: there are none, or one has no standard error.
    """
    for name, one in found.items():
        if not np.isfinite([one.mean, one.error]).all():
            raise ValueError(
                f"{name!r} is {one.mean} +- {one.error}, which is no interval; measure more than one passage"
            )
    if not found:
        raise ValueError("there is no difference to draw; give at least one")
    means, errors = (np.array([getattr(one, part) for one in found.values()]) for part in ("mean", "error"))
    ties = np.array([one.is_tie for one in found.values()])
    with rc_context(STYLE):
        picture = Picture(10, 1.4 + 0.45 * len(found))
        picture.data = data = {
            "names": np.array(list(found)),
            "differences": means,
            "low": means - TIE * errors,
            "high": means + TIE * errors,
        }
        axes = picture.subplots()
        places = np.arange(len(found))
        axes.axvline(0, color="black", lw=1)
        for ends in ("low", "high"):
            axes.plot(data[ends], places, "|", ms=10, mew=2, color="black", zorder=2)
        for word, colour, those in (("told apart", BLUE, ~ties), ("a tie", GREY, ties)):
            axes.hlines(
                places[those], data["low"][those], data["high"][those], color=colour, lw=3, label=word, zorder=1
            )
        axes.plot(data["differences"], places, "o", ms=8, color="black", zorder=3)
        axes.set_yticks(places, data["names"])
        axes.set(ylim=(len(found) - 0.4, -0.6), xlabel=f"difference, {unit}, and two standard errors")
        axes.grid(axis="y", visible=False)
        axes.legend(loc="best", fontsize=11)
        axes.set_title(title, fontsize=12, loc="left")
    words = [
        f"{name} {one.mean:+.3f} ± {one.error:.3f}{' (a tie)' if one.is_tie else ''}" for name, one in found.items()
    ]
    picture.alt = f"{title}, in {unit} with one standard error: {'; '.join(words)}."
    if varies:
        picture.constant = f"{title}: {', '.join(found)}, with their intervals"
    return picture
