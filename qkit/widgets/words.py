"""The explorer of lesson 09: in which word a code lies, at which bits, and which lane loads it."""

import ipywidgets
import numpy as np
from torch import nn

from qkit.backends.triton.layout import BLOCK, pack_words
from qkit.engine.quantize import quantize_tensor
from qkit.model.surgery import find_targets
from qkit.plots import WordPicture
from qkit.study.anatomy.words import Places, code_places
from qkit.widgets.live import DPI, NARROW, LivePicture, on_offer, place_slider

WIDTHS = (2, 3, 4, 8)  # bits of a code
SHOWN_ROWS = 16


class WordExplorer(LivePicture):
    """Where does the kernel find this weight? Row, column and bits light up its word, its lane and its bits."""

    def __init__(
        self, model: nn.Module, layer: str | None = None, bits: int = 4, row: int = 9, column: int = 77
    ) -> None:
        """
        Args:
            model: of whose layer the codes are.
            layer: its name; None: the first.
            bits, row, column: where the controls begin; of rows the first 16 can be chosen, of columns the first 128.
        """
        weights = {target.name: target.weight.detach() for target in find_targets(model)[0]}
        self._layer = on_offer("layer", layer or next(iter(weights)), weights)
        self._weight = weights[self._layer]
        self._words: dict[int, np.ndarray] = {}
        rows, columns = (min(size, most) for size, most in zip(self._weight.shape, (SHOWN_ROWS, BLOCK), strict=True))
        self.column = place_slider("column", column, columns, layout={"width": "26em"})
        self.row = place_slider("row", row, rows)
        self.bits = ipywidgets.SelectionSlider(
            options=WIDTHS, value=on_offer("bits", bits, WIDTHS), description="bits", style=NARROW
        )
        picture = WordPicture(*self._current(), dpi=DPI)
        controls = {name: getattr(self, name) for name in ("column", "row", "bits")}
        super().__init__(controls, picture, lambda: picture.show(*self._current()))

    def _current(self) -> tuple[Places, np.ndarray, int, int, str]:
        bits = self.bits.value
        if bits not in self._words:
            codes = quantize_tensor(self._weight, bits=bits, symmetric=True).codes()[:BLOCK, :BLOCK]
            self._words[bits] = pack_words(codes, bits).numpy().view(np.uint32)
        title = f"{self._layer.removeprefix('model.')}, {bits} bits"
        return code_places(bits), self._words[bits], self.row.value, self.column.value, title
