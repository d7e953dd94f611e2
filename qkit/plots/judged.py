"""Figure of lesson 10: what other libraries compute from our files, as it was recorded."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context

from qkit.bench.judged import Judged, Judgement
from qkit.plots.base import BLUE, GREEN, ORANGE, PURPLE, SKY, STYLE, YELLOW, Picture

PALES = (SKY, YELLOW, ORANGE, PURPLE)
MARKERS = {True: "o", False: "X", None: "D"}  # weights are equal, are not, are given out by nobody
SAYS = {True: "weights equal, bit for bit", False: "weights equal but for a last bit", None: "gives no weights out"}


def judged_errors(
    record: Judged, verdicts: Sequence[Judgement], bands: Mapping[str, tuple[float, float]], title: str = ""
) -> Picture:
    """How far each judge's logits are from ours, a mark a scheme, and what such a distance comes from.

    Its data: under the name of each judge its relative `errors`, in the order of `verdicts`. The text names, for each judge, the
    bands in which its errors lie, and no digits: the record may be made again.

    Args:
        record: whose judges they are.
        verdicts: those to draw.
        bands: from what error to what (low <= error < high), by the reason.

    Raises:
        ValueError: there is nothing to draw, or an error lies in no band.
    """
    if not verdicts:
        raise ValueError("there is no verdict to draw; give some of qkit.bench.judged.judged().verdicts")
    names = sorted({one.judge for one in verdicts}, key=str.lower)
    said = {name: [_band(one, bands) for one in verdicts if one.judge == name] for name in names}
    with rc_context(STYLE):
        picture = Picture(11, 1.9 + 0.55 * len(names))
        picture.data = {name: np.array([one.error for one in verdicts if one.judge == name]) for name in names}
        axes = picture.subplots()
        for (words, (low, high)), pale in zip(bands.items(), PALES, strict=False):
            axes.axvspan(low, high, color=pale, alpha=0.35, lw=0)
            axes.text(np.sqrt(low * high), -0.75, words, ha="center", va="center", fontsize=10)
        for equal, colour in ((True, BLUE), (False, ORANGE), (None, GREEN)):
            chosen = [one for one in verdicts if one.weights_equal is equal]
            heights = [names.index(one.judge) for one in chosen]
            errors = [one.error for one in chosen]
            if chosen:
                axes.scatter(
                    errors,
                    heights,
                    marker=MARKERS[equal],
                    color=colour,
                    edgecolor="black",
                    lw=0.6,
                    s=54,
                    label=SAYS[equal],
                    zorder=3,
                )
        axes.set_yticks(range(len(names)), [f"{record.judge(name).label}" for name in names], fontsize=10)
        axes.set(xscale="log", xlabel="relative error of the logits", ylim=(len(names) - 0.4, -1.2))
        axes.set_xlim(min(low for low, _ in bands.values()), max(high for _, high in bands.values()))
        axes.grid(axis="y", visible=False)
        axes.set_title(title, loc="left")
        axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.25), ncols=3, fontsize=10)
    found = "; ".join(
        f"{name}: {', '.join(words for words in bands if words in bands_of)}" for name, bands_of in said.items()
    )
    picture.alt = f"{title}. Each judge's errors are of the size of these: {found}."
    return picture


def _band(verdict: Judgement, bands: Mapping[str, tuple[float, float]]) -> str:
    for words, (low, high) in bands.items():
        if low <= verdict.error < high:
            return words
    raise ValueError(
        f"the error {verdict.error:g} of {verdict.judge} with {verdict.scheme} lies in no band; give one that holds it"
    )
