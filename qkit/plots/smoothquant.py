"""Figures of lesson 06: how smoothing moves the difficulty from activations to weights."""

from dataclasses import dataclass

import torch
from matplotlib import rc_context
from torch import Tensor, nn

from qkit.methods.smoothquant import fake_int8, search_alpha, smoothing_factor
from qkit.model.folding import model_folds
from qkit.model.inputs import layer_inputs
from qkit.model.surgery import weight_of
from qkit.plots.base import BOUND, GREY, METHOD_COLOURS, ORANGE, STYLE, Picture


@dataclass(frozen=True, eq=False)
class SmoothInput:
    """An input that can be smoothed, and the layers that take it.

    Attributes:
        label: "layers.2: mlp.up_proj → mlp.down_proj".
        weight: float32 [out, in], all layers that share the input, one below the other.
        sample: float32 [tokens, in], some of the inputs.
        x_absmax, w_absmax: float32 [width], the largest |x| (of all tokens) and |w| of the channels of each factor.
        index: int64 [in], which factor each input channel takes.
    """

    label: str
    weight: Tensor
    sample: Tensor
    x_absmax: Tensor
    w_absmax: Tensor
    index: Tensor

    def factor(self, alpha: float | None) -> Tensor:
        """s_j for each input channel, [in] (eq. 4); None: ones, no smoothing."""
        if alpha is None:
            return torch.ones(len(self.index))
        return smoothing_factor(self.x_absmax, self.w_absmax, alpha)[self.index]

    def losses(self, static: bool) -> dict[float | None, float]:
        """The relative squared error of the output in W8A8 over alpha; None is no smoothing."""
        arguments = (self.weight, self.sample, self.x_absmax, self.w_absmax, static, lambda s: s[self.index])
        return {None: w8a8_error(self.weight, self.sample, self.factor(None), static)} | search_alpha(*arguments)


def w8a8_error(weight: Tensor, sample: Tensor, factor: Tensor, static: bool = False) -> float:
    """||Y' - Y||² / ||Y||² when both sides of Y = X Wᵀ are rounded to INT8 after smoothing.

    Args:
        weight: float [out, in].
        sample: [tokens, in].
        factor: [in], what X is divided and W multiplied by.
        static: one activation scale for all these tokens, from their largest |x|.
    """
    x, w = sample / factor, weight * factor
    reach = x.abs().max() if static else x.abs().amax(-1, keepdim=True)
    exact = sample @ weight.T
    y = fake_int8(x, reach) @ fake_int8(w, w.abs().amax(-1, keepdim=True)).T
    return float((y - exact).square().sum() / exact.square().sum())


@torch.no_grad()
def smooth_inputs(model: nn.Module, ids: Tensor, tokens: int = 512) -> list[SmoothInput]:
    """Every input of a model that a factor can be folded out of, in the order of the blocks.

    Args:
        model: a decoder of transformers.
        ids: int64 [sequences, length].
        tokens: how many of the inputs are kept as a sample, the first ones.
    """
    inputs, found = layer_inputs(model, ids), []
    for name, (folds, _) in model_folds(model, ids[:1, :16]).items():
        block = model.get_submodule(name)
        for one in folds:
            weight = torch.cat([weight_of(block.get_submodule(n)).detach().float() for n in one.consumers])
            x = inputs[f"{name}.{one.consumers[0]}"]
            x_absmax, w_absmax = (
                torch.zeros(one.width).scatter_reduce(0, one.index, values.abs().amax(0), "amax")
                for values in (x, weight)
            )
            label = f"{name.removeprefix('model.')}: {one.producer} → {', '.join(one.consumers)}"
            found.append(SmoothInput(label, weight, x[:tokens].clone(), x_absmax, w_absmax, one.index))
    return found


class Migration(Picture):
    """The largest |x| and |w| of each channel, before and after smoothing; beside them the W8A8 error over alpha."""

    def __init__(self, one: SmoothInput, alpha: float | None, static: bool = False, dpi: int = 96) -> None:
        with rc_context(STYLE):
            super().__init__(11, 4.6, dpi)
            grid = self.add_gridspec(2, 2, width_ratios=[1.5, 1])
            self._bars = [self.add_subplot(grid[0, 0]), self.add_subplot(grid[1, 0])]
            self._right = self.add_subplot(grid[:, 1])
            colour = METHOD_COLOURS["SmoothQuant"]
            self._before, self._after = [], []
            for axes, letter in zip(self._bars, "XW", strict=True):
                self._before.append(axes.stairs([1.0], [0, 1], fill=True, color="#CCCCCC", label="before", baseline=0))
                self._after.append(axes.stairs([1.0], [0, 1], color=ORANGE, lw=1.2, label="after", baseline=None))
                axes.set(xscale="log", yscale="log", ylabel=f"max|{letter}ⱼ|")
                axes.xaxis.set_major_formatter("{x:g}")
                axes.yaxis.set_major_formatter("{x:g}")
                axes.yaxis.set_minor_formatter("")
            self._bars[0].legend(loc="upper right", ncols=2)
            self._bars[0].tick_params(labelbottom=False)
            self._bars[1].set(xlabel="channel j, the largest |x| first")
            self._curve = self._right.plot([], [], "o-", color=colour, ms=4, lw=1.5, label="smoothed")[0]
            self._plain = self._right.axhline(1, color=GREY, ls="--", lw=1.5, label="plain W8A8")
            self._marker = self._right.plot([], [], "D", color=BOUND, ms=10, mfc="none", mew=2, label="shown left")[0]
            self._right.set(yscale="log", xlabel="α", ylabel="output error in W8A8 (%)", xlim=(-0.05, 1.05))
            self._right.yaxis.set_major_formatter("{x:g}")
            self._right.yaxis.set_minor_formatter("")
            self._right.legend(loc="upper left")
        self.show(one, alpha, static)
        self.freeze()

    def show(
        self, one: SmoothInput, alpha: float | None, static: bool, losses: dict[float | None, float] | None = None
    ) -> None:
        """Give the same picture another input, alpha, or kind of activations; `losses` where they are known already."""
        losses = one.losses(static) if losses is None else losses
        if alpha not in losses:
            raise ValueError(f"alpha={alpha} is not on the grid; use None or a multiple of 0.05 from 0 to 1")
        percent = {a: 100 * loss for a, loss in losses.items()}
        factor = one.factor(alpha)
        factor = factor / factor.median()  # a factor common to all channels changes nothing in INT8
        before = [values[one.index] for values in (one.x_absmax, one.w_absmax)]
        order = before[0].argsort(descending=True)
        after = [before[0] / factor, before[1] * factor]
        edges = torch.arange(len(order) + 1) + 0.5
        spreads = []
        for i, axes in enumerate(self._bars):
            self._before[i].set_data(before[i][order].numpy(), edges.numpy(), baseline=0)
            self._after[i].set_data(after[i][order].numpy(), edges.numpy())
            values = torch.cat([before[i], after[i]])
            low, high = float(values[values > 0].min()), float(values.max())
            axes.set(xlim=(0.5, len(order) + 0.5), ylim=(low / 1.3, high * 2))
            spreads.append([float(v.max() / v.median().clamp(min=1e-12)) for v in (before[i], after[i])])
            axes.set_title(
                f"max|{'XW'[i]}ⱼ|: the largest {spreads[i][0]:.1f} → {spreads[i][1]:.1f} times the median",
                fontsize=11,
                loc="left",
            )
        tried = [a for a in percent if a is not None]
        self._curve.set_data(tried, [percent[a] for a in tried])
        self._plain.set_ydata([percent[None]] * 2)
        self._marker.set_data([0 if alpha is None else alpha], [percent[alpha]])
        low, high = min(percent.values()), max(percent.values())
        self._right.set_ylim(low / 1.5, high * (high / low) ** 0.35 * 1.2)
        at = "no smoothing" if alpha is None else f"α = {alpha:g}"
        kind = "static" if static else "dynamic"
        self._right.set_title(f"{kind}, {at}: {percent[alpha]:.3g}%", fontsize=11, loc="left")
        best = min(percent, key=percent.get)
        self.suptitle(one.label, fontsize=12, x=0.01, ha="left")
        self.alt = (
            f"{one.label}, {len(order)} channels, {at}: the largest activation maximum goes from {spreads[0][0]:.1f} to "
            f"{spreads[0][1]:.1f} times the median, that of the weights from {spreads[1][0]:.1f} to {spreads[1][1]:.1f}. "
            f"The output error in W8A8 ({kind}) is {percent[alpha]:.3g}%, unsmoothed {percent[None]:.3g}%, least "
            f"{percent[best]:.3g}% at {'no smoothing' if best is None else f'alpha {best:g}'}."
        )


def migration(one: SmoothInput, alpha: float | None, static: bool = False) -> Picture:
    """The largest |x| and |w| of each channel before and after smoothing with `alpha`, and the error over alpha."""
    return Migration(one, alpha, static)
