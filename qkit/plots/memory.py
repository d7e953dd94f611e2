"""Figure of lessons 00 and 02: what the numbers of a model take in each format, beside what a machine has."""

from collections.abc import Mapping
from itertools import cycle

import numpy as np
from matplotlib import rc_context

from qkit.plots.base import BLUE, BOUND, GREEN, ORANGE, STYLE, Data, Picture


def memory_bars(
    gigabytes: Mapping[str, Mapping[str, float]], machines: Mapping[str, float] | None = None, title: str = ""
) -> Picture:
    """A bar a format, in the order given, of parts one behind the other; a line where a machine's memory ends.

    Its data: the `formats`, and under the name of each part its GB in each of them.

    Args:
        gigabytes: {format: {part: GB}}; every format has the same parts, in the same order.
        machines: {name: GB}.

    Raises:
        ValueError: no format, different parts, or a size that is negative or not finite.
    """
    if not gigabytes:
        raise ValueError("there is no format to draw; give {format: {part: GB}}")
    parts = list(next(iter(gigabytes.values())))
    for name, sizes in gigabytes.items():
        if list(sizes) != parts:
            raise ValueError(f"{name!r} has the parts {list(sizes)}, the first format {parts}; give all the same")
        for part, size in sizes.items():
            if not 0 <= size < float("inf"):
                raise ValueError(f"{part!r} of {name!r} takes {size} GB; give a size of 0 or more")
    data: Data = {
        "formats": np.array(list(gigabytes)),
        **{part: np.array([sizes[part] for sizes in gigabytes.values()], float) for part in parts},
    }
    totals = np.sum([data[part] for part in parts], axis=0)
    machines = dict(machines or {})
    places = np.arange(len(gigabytes))
    with rc_context(STYLE):
        picture = Picture(9, 1.7 + 0.5 * len(gigabytes))
        picture.data = data
        axes = picture.subplots()
        begins = np.zeros(len(gigabytes))
        for part, colour in zip(parts, cycle((BLUE, ORANGE, GREEN)), strict=False):
            axes.barh(places, data[part], left=begins, color=colour, height=0.62, label=part)
            begins = begins + data[part]
        for place, total in zip(places, totals, strict=True):
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}  # a line may run behind it
            axes.annotate(
                f"{total:.1f} GB",
                (total, place),
                (6, 0),
                textcoords="offset points",
                va="center",
                fontsize=12,
                bbox=box,
            )
        for name, size in machines.items():
            axes.axvline(size, color=BOUND, lw=1.6, ls="--")
            axes.text(size, -0.62, f" {name}", color=BOUND, fontsize=11, va="bottom", ha="center")
        axes.set_yticks(places, data["formats"])
        axes.set(ylim=(len(gigabytes) - 0.45, -0.6), xlim=(0, 1.12 * max(totals.max(), *machines.values(), 0)))
        axes.set(xlabel="GB")
        axes.grid(axis="y", visible=False)
        axes.set_title(title, loc="left", pad=22 if machines else 6)
        if len(parts) > 1:
            axes.legend(loc="lower right")
    bars = "; ".join(f"{name} {total:.1f} GB" for name, total in zip(gigabytes, totals, strict=True))
    lines = "; ".join(f"{name} at {size:g} GB" for name, size in machines.items())
    picture.alt = f"{title}: {bars}." + (f" Lines: {lines}." if lines else "")
    return picture
