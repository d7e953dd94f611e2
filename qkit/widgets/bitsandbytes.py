"""Explorers of lesson 03: outliers in activations, and the levels of 4-bit formats."""

from collections.abc import Sequence

import ipywidgets
from torch import Tensor, nn

from qkit.model.inputs import input_maxima
from qkit.plots import CodebookLevels, OutlierMap
from qkit.widgets.live import DPI, LivePicture, on_offer
from qkit.widgets.weights import Weights, linear_weights

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)


class OutlierExplorer(LivePicture):
    """Where are activations large? By layer and token, with a slider for what counts as large."""

    def __init__(
        self, model: nn.Module, ids: Tensor, tokens: Sequence[str], threshold: float = 6.0, title: str = "model"
    ) -> None:
        """
        Args:
            model: a decoder of transformers.
            ids: int64 [1, length], a few dozen tokens.
            tokens: how the picture calls them.
            threshold: where the slider begins, 1 .. 128.
        """
        self.threshold = ipywidgets.SelectionSlider(
            options=sorted({1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0, 128.0, float(threshold)}),
            value=float(threshold),
            description="threshold",
            style={"description_width": "6em"},
        )
        picture = OutlierMap(input_maxima(model, ids), tokens, threshold, title, dpi=DPI)
        super().__init__({"threshold": self.threshold}, picture, lambda: picture.show(self.threshold.value))


class CodebookExplorer(LivePicture):
    """Do sixteen levels lie where the weights are? NF4, E2M1, FP4 and INT4 on a layer, with a slider for the block size."""

    def __init__(self, weights: Weights, layer: str | None = None, block_size: int = 64) -> None:
        """
        Args:
            weights: a model, or weights [out, in] by name.
            layer, block_size: where the controls begin; `layer` None is the first.
        """
        self._weights = linear_weights(weights)
        sizes = [size for size in BLOCK_SIZES if all(w.numel() % size == 0 for w in self._weights.values())]
        if not sizes:
            raise ValueError(
                f"no block size of {BLOCK_SIZES} divides all weights; leave out those that have no multiple of 32"
            )
        wide = {"description_width": "6em"}
        self.layer = ipywidgets.Dropdown(
            options=list(self._weights),
            value=on_offer("layer", layer or next(iter(self._weights)), self._weights),
            description="layer",
            style=wide,
            layout={"width": "32em"},
        )
        self.block_size = ipywidgets.SelectionSlider(
            options=sizes, value=on_offer("block_size", block_size, sizes), description="block size", style=wide
        )
        picture = CodebookLevels(*self._current(), dpi=DPI)
        controls = {"layer": self.layer, "block_size": self.block_size}
        super().__init__(controls, picture, lambda: picture.show(*self._current()))

    def _current(self) -> tuple[Tensor, int, str]:
        name = self.layer.value
        return self._weights[name].float(), self.block_size.value, name.removeprefix("model.")
