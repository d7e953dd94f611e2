"""The explorer of lesson 06: alpha moves the difficulty between activations and weights."""

import ipywidgets
from torch import Tensor, nn

from qkit.methods.smoothquant import ALPHAS
from qkit.plots.smoothquant import Migration
from qkit.study.anatomy.smoothquant import SmoothInput, smooth_inputs
from qkit.widgets.live import DPI, LivePicture, on_offer

ACTIVATIONS = ("per-token", "per-tensor")
NO_SMOOTHING = "none"  # a slider cannot hold None


class SmoothQuantExplorer(LivePicture):
    """An input, an alpha, and one activation scale a token or for all: where is the difficulty, and what is the error?"""

    def __init__(
        self,
        model: nn.Module,
        ids: Tensor,
        layer: int = 0,
        alpha: float | None = None,
        activations: str = "per-token",
        tokens: int = 512,
    ) -> None:
        """
        Args:
            model: a decoder of transformers in float.
            ids: int64 [sequences, length], what it reads.
            layer: where the first control begins, a position among the inputs that can be smoothed.
            alpha: a multiple of 0.05 from 0 to 1, or None: no smoothing.
            activations: "per-token" or "per-tensor".
            tokens: how many of them the error is computed on.
        """
        self._inputs = smooth_inputs(model, ids, tokens)
        if not self._inputs:
            raise ValueError(
                f"no input of this {type(model).__name__} can be smoothed: nothing before one takes a factor"
            )
        self._losses: dict[tuple[int, bool], dict[float | None, float]] = {}
        wide = {"description_width": "5em"}
        self.layer = ipywidgets.Dropdown(
            options=[one.label for one in self._inputs],
            index=on_offer("layer", layer, range(len(self._inputs))),
            description="input",
            style=wide,
            layout={"width": "38em"},
        )
        self.alpha = ipywidgets.SelectionSlider(
            options=[(NO_SMOOTHING, NO_SMOOTHING), *((f"{a:.2f}", a) for a in ALPHAS)],
            value=NO_SMOOTHING if alpha is None else on_offer("alpha", alpha, ALPHAS),
            description="α",
            style=wide,
            layout={"width": "22em"},
        )
        self.activations = ipywidgets.Dropdown(
            options=ACTIVATIONS,
            value=on_offer("activations", activations, ACTIVATIONS),
            description="scale",
            style=wide,
            layout={"width": "14em"},
        )
        one, alpha, static, losses = self._current()
        picture = Migration(one, alpha, static, DPI, losses)
        controls = {"layer": self.layer, "alpha": self.alpha, "activations": self.activations}
        super().__init__(controls, picture, lambda: picture.show(*self._current()))

    def _current(self) -> tuple[SmoothInput, float | None, bool, dict[float | None, float]]:
        position, static = self.layer.index, self.activations.value == "per-tensor"
        one = self._inputs[position]
        if (position, static) not in self._losses:
            self._losses[position, static] = one.losses(static)
        alpha = None if self.alpha.value == NO_SMOOTHING else self.alpha.value
        return one, alpha, static, self._losses[position, static]
