"""The explorer of lesson 10: where in another library's file the code of a weight lies."""

from collections.abc import Mapping

import ipywidgets
from torch import nn

from qkit.checkpoints.format import SaveReport
from qkit.model.surgery import find_targets
from qkit.plots import FilePicture
from qkit.plots.file_layout import CORNER
from qkit.study.anatomy.files import Piece, file_piece
from qkit.widgets.live import DPI, NARROW, LivePicture, on_offer, place_slider


class FileExplorer(LivePicture):
    """Where does this weight lie? File, row and column light up the word or block that holds its code, and its bytes."""

    def __init__(
        self,
        model: nn.Module,
        saved: Mapping[str, SaveReport],
        layer: str | None = None,
        file: str | None = None,
        row: int = 9,
        column: int = 77,
    ) -> None:
        """
        Args:
            model: as it was before it was quantized to 4 bits and saved.
            saved: what `qkit.save(model, ..., format=...)` returned, by a name of its own.
            layer: the name of one of its layers; None: the first.
            file, row, column: where the controls begin; of rows the first 16 can be chosen, of columns the first 128.
        """
        layers = {target.name: target.weight.shape for target in find_targets(model)[0]}
        self._layer = on_offer("layer", layer or next(iter(layers), None), layers)
        self._saved = dict(saved)
        rows, columns = (min(size, most) for size, most in zip(layers[self._layer], CORNER, strict=True))
        self.file = ipywidgets.Dropdown(
            options=list(saved),
            value=on_offer("file", file or next(iter(saved), None), saved),
            description="file",
            style=NARROW,
        )
        self.column = place_slider("column", column, columns, layout={"width": "26em"})
        self.row = place_slider("row", row, rows)
        picture = FilePicture(*self._current(), dpi=DPI)
        controls = {name: getattr(self, name) for name in ("file", "column", "row")}
        super().__init__(controls, picture, lambda: picture.show(*self._current()))

    def _current(self) -> tuple[Piece, int, int, str]:
        row, column, name = self.row.value, self.column.value, self.file.value
        piece = file_piece(self._saved[name], self._layer, row, column)
        return piece, row, column, f"{self._layer.removeprefix('model.')}, {name}"
