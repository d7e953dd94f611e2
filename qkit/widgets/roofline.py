"""The explorer of lesson 08: what bounds a layer, its bytes or its operations."""

from collections.abc import Mapping

import ipywidgets
from torch import nn

from qkit.bench.record import Roof
from qkit.bench.roofline import Layer
from qkit.model.surgery import find_targets
from qkit.plots import LayerOnRoofline
from qkit.widgets.live import DPI, LivePicture, on_offer

LARGE = ((4096, 4096), (11008, 4096))  # of a model with 7 billion parameters
BITS = (2, 3, 4, 8, 16, 32)
GROUPS = (32, 64, 128, "row")
TOKENS = tuple(2**n for n in range(10))


class RooflineExplorer(LivePicture):
    """How long does a layer take at best, and why? Bits, groups and tokens move it along the roofline."""

    def __init__(
        self,
        model: nn.Module,
        roof: Roof,
        measured: Mapping[Layer, Mapping[str, float]] | None = None,
        bits: int = 4,
        group_size: int | None = 128,
        tokens: int = 1,
        shape: tuple[int, int] = LARGE[0],
    ) -> None:
        """
        Args:
            model: the shapes of its layers can be chosen, and two of a larger model.
            roof: what the machine does at best, `qkit.bench.roof.measure_roof()`.
            measured: what `qkit.bench.roofline.measure` gave for some layers; these get dots.
            bits, group_size, tokens, shape: where the controls begin; the shape is (out, in).
        """
        self._measured = dict(measured or {})
        shapes = sorted({tuple(target.weight.shape) for target in find_targets(model)[0]}) + list(LARGE)
        wide = {"description_width": "4em"}
        narrow = {"width": "17em"}
        self.bits = ipywidgets.SelectionSlider(
            options=BITS, value=on_offer("bits", bits, BITS), description="bits", style=wide, layout=narrow
        )
        self.group_size = ipywidgets.SelectionSlider(
            options=GROUPS,
            value=on_offer("group_size", group_size or "row", GROUPS),
            description="group",
            style=wide,
            layout=narrow,
        )
        self.tokens = ipywidgets.SelectionSlider(
            options=TOKENS, value=on_offer("tokens", tokens, TOKENS), description="tokens", style=wide, layout=narrow
        )
        self.shape = ipywidgets.Dropdown(
            options=[(f"{out} x {in_}", (out, in_)) for out, in_ in shapes],
            value=on_offer("shape", shape, shapes),
            description="layer",
            style=wide,
            layout=narrow,
        )
        names = ("bits", "group_size", "tokens", "shape")
        picture = LayerOnRoofline(roof, *self._current(), dpi=DPI)
        super().__init__({name: getattr(self, name) for name in names}, picture, lambda: picture.show(*self._current()))

    def _current(self) -> tuple[Layer, Mapping[str, float] | None, str]:
        bits, (out_features, in_features) = self.bits.value, self.shape.value
        size = self.group_size.value
        group_size = None if bits > 8 or size == "row" or in_features % size else size
        layer = Layer(out_features, in_features, bits, group_size, self.tokens.value)
        kind = f"W{bits}" if bits <= 8 else f"{bits} bits"
        group = "" if bits > 8 else " a scale a row" if group_size is None else f" g{group_size}"
        plural = "" if layer.tokens == 1 else "s"
        title = f"{out_features} x {in_features}, {kind}{group}, {layer.tokens} token{plural}"
        return layer, self._measured.get(layer), title
