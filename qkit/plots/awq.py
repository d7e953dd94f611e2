"""Figures of lesson 05: what each channel costs, the channels that AWQ protects, and the loss over alpha."""

import numpy as np
from matplotlib import rc_context
from matplotlib.ticker import FixedLocator
from torch import Tensor, nn

from qkit.engine.scaling import LayerScale
from qkit.numerics.mapping import GroupSize
from qkit.plots.axes import plain_decades
from qkit.plots.base import BLUE, BOUND, GREY, METHOD_COLOURS, RED, STYLE, Picture
from qkit.study.anatomy.awq import (
    channel_errors,
    consumers_weight,
    fold_label,
    losses_by_alpha,
    relative_salience,
    scale_at,
)

FACTORS = [factor * 10.0**power for power in range(-3, 4) for factor in (1, 1.5, 2, 3, 5, 7)]  # where ticks stand


class AlphaSearch(Picture):
    """Left: mean |x| of each channel, sorted, and the scale that AWQ gives it. Right: the output error over alpha.

    Its data: `salience`, mean |x| over its median, falling, and `scale` of the same `channels`; over the `alphas` the `losses`
    in percent, `unscaled` without scaling, and `alpha_now` and `loss_now`, what is shown left (alpha 0 for no scaling).
    """

    def __init__(
        self, weight: Tensor, one: LayerScale, alpha: float | None, group_size: GroupSize = 128, dpi: int = 96
    ) -> None:
        with rc_context(STYLE):
            super().__init__(11, 4.2, dpi)
            self._left, self._right = self.subplots(1, 2, width_ratios=[1.25, 1])
            self._salience = self._left.plot([], [], color=GREY, lw=2.5, label="mean |x|, by its median")[0]
            colour = METHOD_COLOURS["AWQ"]
            self._scale = self._left.plot([], [], ".", color=colour, ms=4, label="factor f of the channel")[0]
            self._left.set(yscale="log", xscale="log", xlabel="channel, the largest mean |x| first", ylabel="factor")
            self._left.xaxis.set_major_formatter("{x:g}")
            self._left.yaxis.set_major_locator(FixedLocator(FACTORS))
            self._left.yaxis.set_major_formatter("{x:g}")
            self._left.yaxis.set_minor_formatter("")
            self._left.legend(loc="upper right")
            self._curve = self._right.plot([], [], "o-", color=colour, ms=4, lw=1.5, label="scaled")[0]
            self._plain = self._right.axhline(0, color=GREY, ls="--", lw=1.5, label="no scaling")
            self._marker = self._right.plot([], [], "D", color=BOUND, ms=10, mfc="none", mew=2, label="shown left")[0]
            self._right.set(xlabel="α", ylabel="output error (%)")
            self._right.legend(loc="upper center", ncols=3, fontsize=10, columnspacing=1, handletextpad=0.5)
        self.show(weight, one, alpha, group_size)
        self.freeze()

    def show(self, weight: Tensor, one: LayerScale, alpha: float | None, group_size: GroupSize = 128) -> None:
        """Give the same picture another fold or another alpha."""
        losses = losses_by_alpha(one)
        if alpha not in losses:
            raise ValueError(
                f"alpha={alpha} has no loss in {one!r}; give one of its alphas, of a search with an AWQ scheme"
            )
        order = one.salience.argsort(descending=True)
        relative = relative_salience(one)
        scale = scale_at(weight, one, alpha, group_size)
        tried = [a for a in losses if a is not None]
        self.data = data = {
            "channels": np.arange(1, len(order) + 1),
            "salience": relative[order].numpy(),
            "scale": scale[order].numpy(),
            "alphas": np.array(tried),
            "losses": np.array([losses[a] for a in tried]),
            "unscaled": losses[None],
            "alpha_now": 0.0 if alpha is None else alpha,
            "loss_now": losses[alpha],
        }
        self._salience.set_data(data["channels"], data["salience"])
        self._scale.set_data(data["channels"], data["scale"])
        shown = np.concatenate([data["salience"], data["scale"]])
        low, high = float(shown[shown > 0].min()), float(shown.max())
        self._left.set(xlim=(0.9, 1.1 * len(order)), ylim=(max(low / 1.3, 1e-3), 1.5 * high))
        self._curve.set_data(data["alphas"], data["losses"])
        self._plain.set_ydata([data["unscaled"]] * 2)
        self._marker.set_data([data["alpha_now"]], [data["loss_now"]])
        low, high = min(losses.values()), max(losses.values())
        self._right.set(xlim=(-0.05, 1.05), ylim=(low - 0.08 * (high - low) - 1e-6, high + 0.22 * (high - low) + 1e-6))
        at = "no scaling" if alpha is None else f"α = {alpha:g}"
        best = min(losses, key=losses.get)
        self._left.set_title(fold_label(one), fontsize=11, loc="left")
        self._right.set_title(f"{at}: {losses[alpha]:.3g}%, unscaled {losses[None]:.3g}%", fontsize=11, loc="left")
        self.alt = (
            f"{fold_label(one)}, {len(order)} channels: the largest mean activation is {float(relative.max()):.1f} times "
            f"the median one. At {at} the scales go from {float(scale.min()):.2f} to {float(scale.max()):.2f} and the "
            f"output error is {losses[alpha]:.3g}%, without scaling {losses[None]:.3g}%; the least is {losses[best]:.3g}% "
            f"at {'no scaling' if best is None else f'alpha {best:g}'}."
        )


def alpha_search(model: nn.Module, one: LayerScale, alpha: float | None = None, group_size: GroupSize = 128) -> Picture:
    """The picture of one fold of `model` (as it was before scaling); alpha None is no scaling."""
    return AlphaSearch(consumers_weight(model, one), one, alpha, group_size)


def salient_channels(weight: Tensor, w_hat: Tensor, x: Tensor, share: float = 0.01, title: str = "") -> Picture:
    """The channels in the order of their activations: how large those are, how large the weights, what rounding them costs.

    Its data: over `channels`, counted in that order, `activations`, mean |x| over its median, `weights`, mean |w| likewise, and
    `costs` in percent of ||XWᵀ||²; `by_activation` and `by_weight`, the percent of all costs that the `share` of channels with
    the largest activations has, and that with the largest weights.

    Args:
        weight, w_hat: float32 [out, in], and what its codes stand for.
        x: float32 [tokens, in].
        share: of the channels that are marked.

    Raises:
        ValueError: no channel, or all of them.
    """
    count = round(share * weight.shape[1])
    if not 0 < count < weight.shape[1]:
        raise ValueError(f"share={share:g} of {weight.shape[1]} channels marks {count} of them; mark some, not all")
    activations, weights, costs = x.abs().mean(0), weight.abs().mean(0), channel_errors(weight, w_hat, x)
    order = activations.argsort(descending=True, stable=True)
    heavy = weights[order].argsort(descending=True, stable=True)[:count].sort().values
    bars = {
        "activations": (activations / activations.median())[order].numpy(),
        "weights": (weights / weights.median())[order].numpy(),
        "costs": (100 * costs)[order].numpy(),
    }
    total = bars["costs"].sum()
    by_activation, by_weight = (
        100 * float(bars["costs"][which].sum() / total) for which in (slice(count), heavy.numpy())
    )
    labels = ("mean |x|,\nmedian = 1", "mean |w|,\nmedian = 1", "cost, % of\nthe output")
    with rc_context(STYLE):
        picture = Picture(11, 5.2)
        picture.data = data = {"channels": np.arange(1, len(order) + 1), **bars}
        data |= {"by_activation": by_activation, "by_weight": by_weight}
        for axes, name, label in zip(picture.subplots(3, 1, sharex=True), bars, labels, strict=True):
            axes.plot(data["channels"], data[name], ".", ms=3, color=GREY, zorder=1)
            axes.plot(data["channels"][:count], data[name][:count], "o", ms=6, color=RED, label="largest mean |x|")
            places = heavy.numpy()
            axes.plot(
                places + 1, data[name][places], "s", ms=6, mfc="none", mew=1.8, color=BLUE, label="largest mean |w|"
            )
            axes.set(
                xscale="log",
                xlim=(0.9, 1.1 * len(order)),
                ylabel=label,
                **({"ylim": (0, None)} if name != "costs" else {}),
            )
        axes.set(yscale="log")
        plain_decades(axes.yaxis)
        plain_decades(axes.xaxis)
        axes.set(xlabel="input channel, the largest mean |x| first")
        picture.axes[0].legend(
            loc="upper right", title=f"{count} of {len(order)} channels each", title_fontsize=11, fontsize=11
        )
        said = f"the largest |x| have {by_activation:.1f}% of all costs, the largest |w| {by_weight:.1f}%"
        axes.set_title(said, fontsize=11, loc="right")
        picture.suptitle(title, fontsize=12, x=0.01, ha="left")
    picture.alt = (
        f"{title or 'A layer'}, {len(order)} input channels in the order of their mean |x|, which falls from "
        f"{bars['activations'][0]:.1f} times the median; beside it their mean |w|, and what rounding each of them costs. Of "
        f"{count} channels each {said}."
    )
    return picture
