"""Figures of lesson 03: where activations are large, and where the levels of 4-bit formats lie."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, LogNorm
from torch import Tensor

from qkit.engine.quantize import quantize_tensor
from qkit.methods.schemes import FP4, NF4, RTN
from qkit.model.inputs import InputMaxima
from qkit.numerics.codebooks import absmax_blocks, codebook
from qkit.numerics.error import sqnr_db
from qkit.plots.base import BLUE, BOUND, METHOD_COLOURS, ORIGINAL, STYLE, Picture


def input_label(names: Sequence[str]) -> str:
    """Layers that share an input, in short: ("model.layers.0.mlp.up_proj", ...) becomes "0 gate up"."""
    number = next((part for part in names[0].split(".") if part.isdigit()), "")
    return " ".join([number, *(name.rpartition(".")[2].removesuffix("_proj") for name in names)]).strip()


class OutlierMap(Picture):
    """The largest |activation| of each layer's input by token; beside it, how many channels reach a threshold."""

    def __init__(
        self, maxima: InputMaxima, tokens: Sequence[str], threshold: float = 6.0, title: str = "model", dpi: int = 96
    ) -> None:
        self._maxima, self._title = maxima, title
        self._labels = [input_label(names) for names in maxima.layers]
        rows, columns = maxima.by_token.shape
        with rc_context({**STYLE, "axes.grid": False}):
            super().__init__(11, 1.6 + 0.17 * rows, dpi)
            left, self._bars = self.subplots(1, 2, sharey=True, width_ratios=[4, 1])
            values = maxima.by_token.numpy().clip(0.1)
            shown = left.imshow(values, aspect="auto", cmap="Blues", norm=LogNorm(0.1, max(values.max(), 1)))
            self._above = left.imshow(
                np.ma.masked_all((rows, columns)), aspect="auto", cmap=ListedColormap([BOUND]), vmin=0, vmax=1
            )
            left.set_yticks(range(rows), self._labels, fontsize=9)
            left.set_xticks(range(columns), [token[:8] for token in tokens], rotation=90, fontsize=9)
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
        above = self._maxima.by_token.numpy() >= threshold
        self._above.set_data(np.ma.masked_where(~above, above.astype(float)))
        counts = self._maxima.outlier_columns(threshold)
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


def four_bit_levels() -> dict[str, Tensor]:
    """The levels of a block whose absmax is 1, ascending: NF4, FP4 (15, zero counts once) and INT4 symmetric."""
    return {
        "NF4": codebook("nf4"),
        "FP4": codebook("fp4").unique(),
        "INT4": (torch.arange(16) - 8) * 2 / 15,
    }


def four_bit_sqnr(weight: Tensor, block_size: int) -> dict[str, float]:
    """SQNR in dB of NF4, FP4 and symmetric INT4, all in blocks of `block_size` weights with unquantized scales.

    Args:
        weight: float32 [out, in].
        block_size: a power of two from 32 to 4096; blocks run over the ends of rows.

    Raises:
        ValueError: `block_size` does not divide the number of weights.
    """
    if weight.numel() % block_size:
        raise ValueError(
            f"block_size={block_size} does not divide {weight.numel()} weights; use a smaller power of two"
        )
    blocks = weight.reshape(-1, block_size)
    schemes = {
        "NF4": NF4(block_size, double_quant=False),
        "FP4": FP4(block_size, double_quant=False),
        "INT4": RTN(4, symmetric=True, scale_dtype="float32"),
    }
    return {name: sqnr_db(blocks, quantize_tensor(blocks, scheme).dequantize()) for name, scheme in schemes.items()}


class CodebookLevels(Picture):
    """A layer's weights, each divided by the largest of its block, over the levels that three 4-bit formats have."""

    def __init__(self, weight: Tensor, block_size: int = 64, title: str = "weights", dpi: int = 96) -> None:
        names = four_bit_levels()
        colours = {"NF4": METHOD_COLOURS["NF4"], "FP4": "#8a7d00", "INT4": BLUE}
        with rc_context(STYLE):
            super().__init__(9, 4.6, dpi)
            self._axes, rug = self.subplots(2, 1, sharex=True, height_ratios=[3, 1.4])
            self._edges = np.linspace(-1.1, 1.1, 221)
            self._stairs = self._axes.stairs(np.ones(220), self._edges, fill=True, color=ORIGINAL)
            self._axes.set(ylabel="share of weights", xlim=(-1.1, 1.1), ylim=(0, 0.05))
            for row, (name, levels) in enumerate(reversed(names.items())):
                segments = [[(float(level), row + 0.1), (float(level), row + 0.9)] for level in levels]
                rug.add_collection(LineCollection(segments, colors=colours[name], lw=2))
            self._rug = rug
            rug.set(yticks=[0.5, 1.5, 2.5], ylim=(0, 3), xlabel="weight / largest of its block")
            rug.set_yticklabels([f"{name} 00.0 dB" for name in reversed(names)])  # as wide as they will be
            rug.grid(False)
        self.show(weight, block_size, title)
        self.freeze()

    def show(self, weight: Tensor, block_size: int, title: str) -> None:
        """Give the same picture other data."""
        absmax = absmax_blocks(weight.reshape(-1), block_size)
        inside = weight.reshape(-1) / absmax.repeat_interleave(block_size).clamp(min=1e-38)
        counts = torch.histc(inside, bins=220, min=-1.1, max=1.1).numpy() / weight.numel()
        self._stairs.set_data(counts, self._edges)
        self._axes.set_ylim(0, 1.1 * counts.max())
        sqnr = four_bit_sqnr(weight, block_size)
        self._rug.set_yticklabels([f"{name} {value:4.1f} dB" for name, value in reversed(sqnr.items())])
        self._axes.set_title(f"{title}, blocks of {block_size}: spread {float(inside.std()):.2f} of the largest")
        words = ", ".join(f"{name} {value:.1f} dB" for name, value in sqnr.items())
        self.alt = (
            f"Histogram of {title}, each weight divided by the largest of its block of {block_size}: the standard "
            f"deviation is {float(inside.std()):.2f}. Under it the levels of three formats; SQNR {words}."
        )


def codebook_levels(weight: Tensor, block_size: int = 64, title: str = "weights") -> Picture:
    """`weight` [out, in] in units of its blocks' largest, over the levels of NF4, FP4 and INT4."""
    return CodebookLevels(weight, block_size, title)
