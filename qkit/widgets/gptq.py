"""The explorer of lesson 04: GPTQ on its way through a layer."""

from collections.abc import Sequence

import ipywidgets
from torch import Tensor, nn

from qkit.model.inputs import layer_statistics
from qkit.plots import CompensationPicture
from qkit.study.anatomy.gptq import ColumnSteps, column_steps
from qkit.widgets.live import DPI, LivePicture, on_offer


class CompensationExplorer(LivePicture):
    """How does GPTQ make good its errors? A slider goes through the columns of a layer."""

    def __init__(
        self, model: nn.Module, ids: Tensor, layers: Sequence[str], bits: int = 4, column: int | None = None
    ) -> None:
        """
        Args:
            model: a decoder of transformers in float.
            ids: int64 [sequences, length], what the Hessians are taken from.
            layers: full names of the layers to choose from.
            bits: where the slider begins, 2 .. 4.
            column: where the column slider begins, one of 33 stops; None: half way.
        """
        layers = list(layers)
        if not layers:
            raise ValueError("there is no layer to choose; give full names of linear layers of the model")
        self._weights = {name: model.get_submodule(name).weight.detach() for name in layers}
        self._statistics = layer_statistics(model, ids, layers)
        self._computed: dict[tuple[str, int], ColumnSteps] = {}
        wide = {"description_width": "5em"}
        self.layer = ipywidgets.Dropdown(options=layers, description="layer", style=wide)
        self.bits = ipywidgets.IntSlider(
            value=on_offer("bits", bits, range(2, 5)), min=2, max=4, description="bits", style=wide
        )
        columns = self._steps().columns
        self.column = ipywidgets.SelectionSlider(
            options=columns,
            value=on_offer("column", columns[len(columns) // 2] if column is None else column, columns),
            description="column",
            style=wide,
        )
        picture = CompensationPicture(*self._current(), dpi=DPI)
        controls = {"layer": self.layer, "bits": self.bits, "column": self.column}
        super().__init__(controls, picture, lambda: picture.show(*self._current()))

    def _steps(self) -> ColumnSteps:
        name, bits = self.layer.value, self.bits.value
        if (name, bits) not in self._computed:
            self._computed[name, bits] = column_steps(self._weights[name], self._statistics[name], bits)
        return self._computed[name, bits]

    def _current(self) -> tuple[ColumnSteps, int, str]:
        steps = self._steps()
        if self.column.options != steps.columns:
            stop = self.column.index
            self.column.options = steps.columns
            self.column.index = stop
        name = self.layer.value.removeprefix("model.")
        return steps, self.column.index, f"{name}, {self.bits.value} bits"
