"""The explorer of lesson 05: which channels AWQ scales, and what alpha does to the error."""

import ipywidgets
from torch import Tensor, nn

from qkit.engine.scaling import LayerScale, Scaling
from qkit.numerics.mapping import GroupSize
from qkit.plots.awq import AlphaSearch
from qkit.study.anatomy.awq import consumers_weight, fold_label
from qkit.widgets.live import DPI, LivePicture, on_offer

NO_SCALING = "no scaling"  # a slider cannot hold None


class AWQExplorer(LivePicture):
    """A fold and an alpha to choose: the scale of each channel, and the output error that it leaves."""

    def __init__(
        self,
        model: nn.Module,
        scaling: Scaling,
        fold: int = 0,
        alpha: float | None = None,
        group_size: GroupSize = 128,
    ) -> None:
        """
        Args:
            model: the model that the scales were searched on, not scaled.
            scaling: of `qkit.search_scales(model, qkit.AWQ(...))`.
            fold, alpha: where the controls begin, the position in `scaling` and an alpha of the grid; None: no scaling.
            group_size: of the scheme.

        Raises:
            ValueError: the scales were not searched by AWQ.
        """
        if not len(scaling) or any(None not in one.alphas for one in scaling):
            raise ValueError(f"{scaling!r} was not searched by AWQ; use qkit.search_scales(model, qkit.AWQ(...))")
        self._model, self._scaling, self._group_size = model, scaling, group_size
        wide = {"description_width": "4em"}
        self.layer = ipywidgets.Dropdown(
            options=[fold_label(one) for one in scaling],
            index=on_offer("fold", fold, range(len(scaling))),
            description="layer",
            style=wide,
            layout={"width": "44em"},
        )
        steps = [a for a in scaling[0].alphas if a is not None]
        self.alpha = ipywidgets.SelectionSlider(
            options=[(NO_SCALING, NO_SCALING), *((f"{a:.2f}", a) for a in steps)],
            value=NO_SCALING if alpha is None else on_offer("alpha", alpha, steps),
            description="α",
            style=wide,
            layout={"width": "24em"},
        )
        picture = AlphaSearch(*self._current(), dpi=DPI)
        controls = {"layer": self.layer, "alpha": self.alpha}
        super().__init__(controls, picture, lambda: picture.show(*self._current()))

    def _current(self) -> tuple[Tensor, LayerScale, float | None, GroupSize]:
        one = self._scaling[self.layer.index]
        alpha = None if self.alpha.value == NO_SCALING else self.alpha.value
        return consumers_weight(self._model, one), one, alpha, self._group_size
