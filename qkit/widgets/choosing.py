"""The explorer of lesson 07: a budget moves, and the best method that fits moves with it."""

import ipywidgets
from torch import nn

from qkit.model.surgery import find_targets
from qkit.plots import LossAgainstBytes
from qkit.study.advice import HARDWARE, QUALITY, recommend
from qkit.study.frontier import Points
from qkit.widgets.live import DPI, LivePicture, on_offer


class ChooserExplorer(LivePicture):
    """What fits a budget, what of it was measured best (ring), and what the chart says without measuring (star)."""

    def __init__(
        self,
        model: nn.Module,
        points: Points,
        megabytes: float | None = None,
        hardware: str = "cpu",
        quality: str = "balanced",
        calibration: bool = True,
    ) -> None:
        """
        Args:
            model: the original; its parameters are what the chart is asked about.
            points: what was measured, (megabytes, loss) by the name of the scheme.
            megabytes, hardware, quality, calibration: where the controls begin; see `qkit.recommend`.
        """
        self._parameters = sum(p.numel() for p in model.parameters())
        self._left = self._parameters - sum(target.weight.numel() for target in find_targets(model)[0])
        if not points:
            raise ValueError("there is no point to choose; give (megabytes, loss) by the name of a scheme")
        sizes = [size for size, _ in points.values()]
        lo, hi = 0.95 * min(sizes), 1.05 * max(sizes)
        wide = {"description_width": "5em"}
        self.megabytes = ipywidgets.FloatSlider(
            value=(lo + hi) / 2 if megabytes is None else megabytes,
            min=lo,
            max=hi,
            step=0.1,
            description="MB",
            readout_format=".1f",
            style=wide,
        )
        self.quality = ipywidgets.SelectionSlider(
            options=QUALITY, value=on_offer("quality", quality, QUALITY), description="quality", style=wide
        )
        self.hardware = ipywidgets.Dropdown(
            options=HARDWARE,
            value=on_offer("hardware", hardware, HARDWARE),
            description="hardware",
            style=wide,
            layout={"width": "14em"},
        )
        self.calibration = ipywidgets.Checkbox(
            value=calibration, description="calibration", indent=False, layout={"width": "8em"}
        )
        names = ("megabytes", "quality", "hardware", "calibration")
        picture = LossAgainstBytes(points, megabytes=self.megabytes.value, advised=self._advised(), dpi=DPI)
        super().__init__(
            {name: getattr(self, name) for name in names},
            picture,
            lambda: picture.show(self.megabytes.value, self._advised()),
        )

    def _advised(self) -> str:
        try:
            return recommend(
                self._parameters,
                self.megabytes.value / 1e3,
                self.hardware.value,
                self.quality.value,
                self.calibration.value,
                embeddings=self._left,
            ).name
        except ValueError:
            return "nothing fits"
