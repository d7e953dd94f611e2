"""Figures of lesson 03: where activations are large, and where the levels of 4-bit formats lie."""

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib import rc_context
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, LogNorm
from torch import Tensor

from qkit.model.inputs import InputMaxima
from qkit.numerics.mapping import check_finite
from qkit.plots.axes import plain_decades
from qkit.plots.base import BLUE, BOUND, GREEN, METHOD_COLOURS, ORIGINAL, STYLE, Picture
from qkit.study.anatomy.bitsandbytes import four_bit_levels, four_bit_sqnr, shares, within_blocks

EDGES = np.linspace(-1.1, 1.1, 221)  # of the bins of weights in units of their block's largest


def input_label(names: Sequence[str]) -> str:
    """Layers that share an input, in short: ("model.layers.0.mlp.up_proj", ...) becomes "0 gate up"."""
    number = next((part for part in names[0].split(".") if part.isdigit()), "")
    return " ".join([number, *(name.rpartition(".")[2].removesuffix("_proj") for name in names)]).strip()


class OutlierMap(Picture):
    """The largest |activation| of each layer's input by token; beside it, how many channels reach a threshold.

    Its data: `largest` [inputs, tokens], not below 0.1, where the colours begin; `above` [inputs, tokens], what reaches the
    `threshold`; `columns`, how many channels of each input do; `labels` of the inputs and `tokens`.
    """

    def __init__(
        self, maxima: InputMaxima, tokens: Sequence[str], threshold: float = 6.0, title: str = "model", dpi: int = 96
    ) -> None:
        rows, columns = maxima.by_token.shape
        if len(tokens) != columns:
            raise ValueError(f"{len(tokens)} tokens are named and {columns} were read; give a name for each")
        strange = ~maxima.by_token.isfinite().all(1)
        if strange.any():
            name = maxima.layers[int(strange.nonzero()[0])][0]
            raise ValueError(
                f"the input of {name} is not finite, and has no colour; look for what makes it NaN or infinite"
            )
        self._maxima, self._title = maxima, title
        self._labels = [input_label(names) for names in maxima.layers]
        self._tokens = [token[:8] for token in tokens]
        with rc_context({**STYLE, "axes.grid": False}):
            super().__init__(11, 1.6 + 0.17 * rows, dpi)
            left, self._bars = self.subplots(1, 2, sharey=True, width_ratios=[4, 1])
            self._largest = maxima.by_token.numpy().clip(0.1)
            shown = left.imshow(
                self._largest, aspect="auto", cmap="Blues", norm=LogNorm(0.1, max(self._largest.max(), 1))
            )
            self._above = left.imshow(
                np.ma.masked_all((rows, columns)), aspect="auto", cmap=ListedColormap([BOUND]), vmin=0, vmax=1
            )
            left.set_yticks(range(rows), self._labels, fontsize=9)
            left.set_xticks(range(columns), self._tokens, rotation=90, fontsize=9)
            left.set(xlabel="token", ylabel="input of")
            self._axes = left
            self.colorbar(shown, ax=left, pad=0.01, label="largest |x|", format="{x:g}")
            self._rectangles = self._bars.barh(range(rows), np.zeros(rows), color=BOUND, height=0.8)
            self._bars.set(xlabel="outlier columns", xscale="symlog")
            self._bars.set_xlim(0, max(len(channels) for channels in maxima.by_channel))
            self._bars.set_xticks([0, 1, 10, 100, 1000], ["0", "1", "10", "100", "1000"])
            self._bars.tick_params(axis="y", length=0, labelleft=False)
        self.show(threshold)
        self.freeze()

    def show(self, threshold: float) -> None:
        """Mark what reaches another threshold."""
        self.data = data = {
            "largest": self._largest,
            "above": self._maxima.by_token.numpy() >= threshold,
            "columns": np.array(self._maxima.outlier_columns(threshold)),
            "threshold": threshold,
            "labels": np.array(self._labels),
            "tokens": np.array(self._tokens),
        }
        above, counts = data["above"], data["columns"].tolist()
        self._above.set_data(np.ma.masked_where(~above, above.astype(float)))
        for rectangle, count in zip(self._rectangles, counts, strict=True):
            rectangle.set_width(count)
        total = sum(len(channels) for channels in self._maxima.by_channel)
        share = f"{sum(counts)} of {total} columns ({100 * sum(counts) / total:.1f}%)"
        self._axes.set_title(f"{self._title}: red where |x| ≥ {threshold:g}; {share}")
        row, token = divmod(int(self._maxima.by_token.argmax()), self._maxima.by_token.shape[1])
        self.alt = (
            f"Map of the largest activation by layer input and token of {self._title}: {100 * above.mean():.1f}% of the "
            f"cells reach {threshold:g}, in {share}; the largest is {float(self._maxima.by_token.max()):.0f}, "
            f"at the input of {self._labels[row]}, token {token}."
        )


def outlier_map(maxima: InputMaxima, tokens: Sequence[str], threshold: float = 6.0, title: str = "model") -> Picture:
    """The largest |activation| by layer input and token, and the outlier columns at `threshold`."""
    return OutlierMap(maxima, tokens, threshold, title)


def channel_ranks(maxima: Mapping[str, Tensor], threshold: float = 6.0, title: str = "model") -> Picture:
    """The largest |activation| of every channel of some inputs, the largest channel first: how few the outliers are.

    Its data: the `threshold`, and under "channels of " and its name each input's maxima, descending.

    Raises:
        ValueError: no input, or one that is not finite.
    """
    if not maxima:
        raise ValueError("there is no input to draw; give the largest activations by channel of at least one")
    for name, channels in maxima.items():
        check_finite(channels, name)
    data = {"threshold": threshold}
    data |= {f"channels of {name}": channels.sort(descending=True).values.numpy() for name, channels in maxima.items()}
    reach = {name: int((channels >= threshold).sum()) for name, channels in maxima.items()}
    with rc_context(STYLE):
        picture = Picture(9, 4.4)
        picture.data = data
        axes = picture.subplots()
        marks, colours = cycle("osD^v"), cycle((BLUE, GREEN, METHOD_COLOURS["NF4"], METHOD_COLOURS["GPTQ"]))
        for name, marker, colour in zip(maxima, marks, colours, strict=False):
            values = data[f"channels of {name}"]
            axes.plot(np.arange(1, len(values) + 1), values, marker=marker, ms=5, color=colour, label=name)
        axes.axhline(threshold, color="black", ls="--", label=f"threshold {threshold:g}")
        axes.set(xscale="log", yscale="log", title=title, xlabel="channel, the largest first", ylabel="largest |x|")
        for axis in (axes.xaxis, axes.yaxis):
            plain_decades(axis)
        axes.legend()
    words = "; ".join(
        f"{name}: {reach[name]} of {len(channels)} reach {threshold:g}, the largest is {float(channels.max()):.3g}"
        for name, channels in maxima.items()
    )
    picture.alt = f"{title}: the channels of some inputs by their largest activation. {words}."
    return picture


class CodebookLevels(Picture):
    """A layer's weights, each divided by the largest of its block, over the levels that four 4-bit formats have.

    Its data: `edges` of the bins, the `shares` of the weights in them, the levels and the SQNR in dB of the four formats,
    `NF4`, `E2M1`, `FP4`, `INT4` and `sqnr_db of NF4`, ...; `spread`, the standard deviation.
    """

    def __init__(self, weight: Tensor, block_size: int = 64, title: str = "weights", dpi: int = 96) -> None:
        self._levels = {name: levels.numpy() for name, levels in four_bit_levels().items()}
        colours = {"NF4": METHOD_COLOURS["NF4"], "E2M1": GREEN, "FP4": "#8a7d00", "INT4": BLUE}
        with rc_context(STYLE):
            super().__init__(9, 5, dpi)
            self._axes, rug = self.subplots(2, 1, sharex=True, height_ratios=[3, 1.8])
            self._stairs = self._axes.stairs(np.ones(len(EDGES) - 1), EDGES, fill=True, color=ORIGINAL)
            self._axes.set(ylabel="share of weights", xlim=(-1.1, 1.1), ylim=(0, 0.05))
            for row, (name, levels) in enumerate(reversed(self._levels.items())):
                segments = [[(float(level), row + 0.1), (float(level), row + 0.9)] for level in levels]
                rug.add_collection(LineCollection(segments, colors=colours[name], lw=2))
            self._rug = rug
            rows = len(self._levels)
            rug.set(yticks=[row + 0.5 for row in range(rows)], ylim=(0, rows), xlabel="weight / largest of its block")
            rug.set_yticklabels([f"{name} 00.0 dB" for name in reversed(self._levels)])  # as wide as they will be
            rug.grid(False)
        self.show(weight, block_size, title)
        self.freeze()

    def show(self, weight: Tensor, block_size: int, title: str) -> None:
        """Give the same picture other data."""
        check_finite(weight, title)
        inside = within_blocks(weight.detach().float().cpu(), block_size)
        sqnr = four_bit_sqnr(weight.detach().float().cpu(), block_size)
        self.data = data = {
            "edges": EDGES,
            "shares": shares(inside, EDGES),
            **self._levels,
            **{f"sqnr_db of {name}": value for name, value in sqnr.items()},
            "spread": float(inside.std()),
        }
        self._stairs.set_data(data["shares"], data["edges"])
        self._axes.set_ylim(0, 1.1 * data["shares"].max())
        self._rug.set_yticklabels([f"{name} {value:4.1f} dB" for name, value in reversed(sqnr.items())])
        self._axes.set_title(f"{title}, blocks of {block_size}: spread {data['spread']:.2f} of the largest")
        words = ", ".join(f"{name} {value:.1f} dB" for name, value in sqnr.items())
        self.alt = (
            f"Histogram of {title}, each weight divided by the largest of its block of {block_size}: the standard "
            f"deviation is {data['spread']:.2f}. Under it the levels of four formats; SQNR {words}."
        )


def codebook_levels(weight: Tensor, block_size: int = 64, title: str = "weights") -> Picture:
    """`weight` [out, in] in units of its blocks' largest, over the levels of NF4, E2M1, FP4 and INT4."""
    return CodebookLevels(weight, block_size, title)


def levels_used(uses: Mapping[str, Tensor], levels: Tensor, title: str = "levels") -> Picture:
    """How often each level of a table is used, in percent: bars for the first of `uses`, marks for the others.

    Its data: `levels`, `even`, the percentage that each would have if all were used alike, and under "use by " and its name
    each series in percent.

    Raises:
        ValueError: no series, or one that has not a share for each level.
    """
    if not uses:
        raise ValueError("there is no use of levels to draw; give at least one series")
    for name, shares_of_levels in uses.items():
        if len(shares_of_levels) != len(levels):
            raise ValueError(f"{name!r} has {len(shares_of_levels)} shares for {len(levels)} levels; give one for each")
    data = {"levels": levels.numpy(), "even": 100 / len(levels)}
    data |= {f"use by {name}": 100 * np.asarray(shares_of_levels) for name, shares_of_levels in uses.items()}
    first = next(iter(uses))
    with rc_context(STYLE):
        picture = Picture(9, 4)
        picture.data = data
        axes = picture.subplots()
        axes.grid(False, axis="x")
        width = 0.8 * float(np.diff(data["levels"]).min(initial=2))
        axes.bar(data["levels"], data[f"use by {first}"], color=METHOD_COLOURS["NF4"], width=width, label=first)
        for name, marker, colour in zip(
            uses, cycle(".x_"), cycle((METHOD_COLOURS["NF4"], BLUE, "black")), strict=False
        ):
            label = None if name == first else name
            axes.plot(data["levels"], data[f"use by {name}"], marker, color=colour, ms=9, mew=2, label=label)
        axes.axhline(data["even"], color=BOUND, ls="--", label="all alike")
        axes.set(xlabel="level / largest of the block", ylabel="% of the weights", title=title)
        axes.set_ylim(0, 1.35 * max(series.max() for name, series in data.items() if name.startswith("use by ")))
        axes.legend(ncols=2, loc="upper left")
    words = "; ".join(
        f"{name} from {data[f'use by {name}'].min():.1f}% to {data[f'use by {name}'].max():.1f}%" for name in uses
    )
    picture.alt = (
        f"{title}: how often each of {len(levels)} levels is used. {words}; all alike would be {data['even']:.2f}%."
    )
    return picture
