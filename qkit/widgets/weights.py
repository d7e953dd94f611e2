"""Widgets: figures of `qkit.plots` with sliders. Everything they draw is computed by the functions a reader can call.

An explorer keeps one picture, gives it new data when a control moves, and sends it as an image: about 60 ms of work, where
drawing a new figure takes 600. For readers without a kernel its output also carries the picture as it stands
(image/png) and a line of text that is the same on every machine.
"""

from collections.abc import Mapping
from typing import Any

try:
    import ipywidgets
except ImportError as error:
    raise ImportError("qkit.widgets needs ipywidgets, which is not installed; pip install 'qkit[lab]'") from error
from torch import Tensor, nn

from qkit.engine.quantize import quantize_tensor
from qkit.model.surgery import find_targets
from qkit.plots import ErrorCurve, WeightHistogram
from qkit.widgets.live import DPI, LivePicture, on_offer

Weights = nn.Module | Mapping[str, Tensor]
ROW = "row"  # a slider cannot hold None


def linear_weights(weights: Weights) -> dict[str, Tensor]:
    """The weights [out, in] to choose from: those of a model's linear layers, or the ones given by name."""
    if isinstance(weights, nn.Module):
        return {target.name: target.weight.detach() for target in find_targets(weights)[0]}
    if not weights:
        raise ValueError("there is no weight to choose; give a model, or weights [out, in] by name")
    return dict(weights)


def group_options(weights: Mapping[str, Tensor]) -> list[tuple[str, Any]]:
    """Granularities that fit every weight: the whole tensor, a row, and the powers of two that divide all rows."""
    sizes = [g for g in (256, 128, 64, 32, 16) if all(weight.shape[1] % g == 0 for weight in weights.values())]
    return [("whole tensor", "tensor"), ("row", ROW), *((str(g), g) for g in sizes)]


class Explorer(LivePicture):
    """Controls over one live picture of a quantized weight: layer, bits, group size, symmetric or not."""

    picture_class: type[WeightHistogram] | type[ErrorCurve]

    def __init__(
        self,
        weights: Weights,
        layer: str | None = None,
        bits: int = 4,
        group_size: int | str | None = None,
        symmetric: bool = False,
    ) -> None:
        """
        Args:
            weights: a model, or weights [out, in] by name.
            layer, bits, group_size, symmetric: where the controls begin; `layer` None is the first.
        """
        self._weights = linear_weights(weights)
        wide = {"description_width": "6em"}
        self.layer = ipywidgets.Dropdown(
            options=list(self._weights),
            value=on_offer("layer", layer or next(iter(self._weights)), self._weights),
            description="layer",
            style=wide,
            layout={"width": "32em"},
        )
        self.bits = ipywidgets.IntSlider(
            value=on_offer("bits", bits, range(2, 9)), min=2, max=8, description="bits", style=wide
        )
        groups = group_options(self._weights)
        self.group_size = ipywidgets.SelectionSlider(
            options=groups,
            value=on_offer("group_size", group_size or ROW, [value for _, value in groups]),
            description="group size",
            style=wide,
        )
        self.symmetric = ipywidgets.Checkbox(value=symmetric, description="symmetric", indent=False)
        picture = self.picture_class(*self._current(), dpi=DPI)
        controls = {name: getattr(self, name) for name in ("layer", "bits", "group_size", "symmetric")}
        rows = [("layer", "symmetric"), ("bits", "group_size")]
        super().__init__(controls, picture, lambda: picture.show(*self._current()), rows)

    def _current(self) -> tuple[Tensor, Any, str]:
        weight = self._weights[self.layer.value]
        group_size = None if self.group_size.value == ROW else self.group_size.value
        q = quantize_tensor(weight, bits=self.bits.value, group_size=group_size, symmetric=self.symmetric.value)
        return weight, q, self.layer.value.removeprefix("model.")


class HistogramExplorer(Explorer):
    """The histogram of a layer's weights, before and after, with the integer grid: how do 2^b values share the range?"""

    picture_class = WeightHistogram


class ErrorExplorer(Explorer):
    """The error of each weight of the layer's widest group: where does it lie between -s/2 and s/2?"""

    picture_class = ErrorCurve
