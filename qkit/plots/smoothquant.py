"""Figures of lesson 06: how smoothing moves the difficulty from activations to weights."""

import numpy as np
from matplotlib import rc_context

from qkit.plots.axes import heights
from qkit.plots.base import BOUND, GREY, METHOD_COLOURS, ORANGE, STYLE, Picture
from qkit.study.anatomy.smoothquant import SmoothInput


class Migration(Picture):
    """The largest |x| and |w| of each channel, before and after smoothing; beside them the W8A8 error over alpha.

    Its data: `x_before`, `w_before`, `x_after` and `w_after` of the channels between `edges`, the largest |x| first; over the
    `alphas` the `losses` in percent, `unsmoothed` without smoothing, and `alpha_now` and `loss_now`, what is shown left (alpha
    0 for no smoothing).
    """

    def __init__(
        self,
        one: SmoothInput,
        alpha: float | None,
        static: bool = False,
        dpi: int = 96,
        losses: dict[float | None, float] | None = None,
    ) -> None:
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
                axes.set(xscale="log", yscale="log", ylabel=f"max|{letter.lower()}ₖ|")
                axes.xaxis.set_major_formatter("{x:g}")
                axes.yaxis.set_major_formatter("{x:g}")
                axes.yaxis.set_minor_formatter("")
            self._bars[0].legend(loc="upper right", ncols=2)
            self._bars[0].tick_params(labelbottom=False)
            self._bars[1].set(xlabel="channel k, the largest |x| first")
            self._curve = self._right.plot([], [], "o-", color=colour, ms=4, lw=1.5, label="smoothed")[0]
            self._plain = self._right.axhline(1, color=GREY, ls="--", lw=1.5, label="plain W8A8")
            self._marker = self._right.plot([], [], "D", color=BOUND, ms=10, mfc="none", mew=2, label="shown left")[0]
            self._right.set(yscale="log", xlabel="α", ylabel="output error in W8A8 (%)", xlim=(-0.05, 1.05))
            self._right.yaxis.set_major_formatter("{x:g}")
            self._right.yaxis.set_minor_formatter("")
            self._right.legend(loc="upper left")
        self.show(one, alpha, static, losses)
        self.freeze()

    def show(
        self, one: SmoothInput, alpha: float | None, static: bool, losses: dict[float | None, float] | None = None
    ) -> None:
        """Give the same picture another input, alpha, or kind of activations; `losses` where they are known already."""
        losses = one.losses(static) if losses is None else losses
        if alpha not in losses:
            raise ValueError(f"alpha={alpha} is not on the grid; use None or a multiple of 0.05 from 0 to 1")
        percent = {a: 100 * loss for a, loss in losses.items()}
        places = heights({f"alpha {a}": loss for a, loss in percent.items()}, "output error")
        drawn = dict(zip(percent, places.tolist(), strict=True))
        tried = [a for a in percent if a is not None]
        before, after = one.maxima(alpha)
        order = before[0].argsort(descending=True)
        self.data = data = {
            "edges": np.arange(len(order) + 1) + 0.5,
            "x_before": before[0][order].numpy(),
            "x_after": after[0][order].numpy(),
            "w_before": before[1][order].numpy(),
            "w_after": after[1][order].numpy(),
            "alphas": np.array(tried),
            "losses": np.array([drawn[a] for a in tried]),
            "unsmoothed": drawn[None],
            "alpha_now": 0.0 if alpha is None else alpha,
            "loss_now": drawn[alpha],
        }
        spreads = []
        for i, (axes, letter) in enumerate(zip(self._bars, "xw", strict=True)):
            self._before[i].set_data(data[f"{letter}_before"], data["edges"], baseline=0)
            self._after[i].set_data(data[f"{letter}_after"], data["edges"])
            values = np.concatenate([data[f"{letter}_before"], data[f"{letter}_after"]])
            alive = values[values > 0]
            low, high = (float(alive.min()), float(alive.max())) if len(alive) else (1.0, 1.0)
            axes.set(xlim=(0.5, len(order) + 0.5), ylim=(low / 1.3, high * 2))
            spreads.append([float(v.max() / v.median().clamp(min=1e-12)) for v in (before[i], after[i])])
            axes.set_title(
                f"max|{'xw'[i]}ₖ|: the largest {spreads[i][0]:.1f} → {spreads[i][1]:.1f} times the median",
                fontsize=11,
                loc="left",
            )
        self._curve.set_data(data["alphas"], data["losses"])
        self._plain.set_ydata([data["unsmoothed"]] * 2)
        self._marker.set_data([data["alpha_now"]], [data["loss_now"]])
        low, high = min(drawn.values()), max(drawn.values())
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
