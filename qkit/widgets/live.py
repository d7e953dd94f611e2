"""What explorers with controls of their own share: a picture, its image, and how both follow the controls."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ipywidgets

from qkit.plots import Picture

DPI = 80


def on_offer(name: str, value: Any, options: Iterable[Any]) -> Any:
    """`value`, where a control begins.

    Raises:
        ValueError: it is none of the control's `options`.
    """
    options = list(options)
    if value not in options:
        few = ", ".join(map(repr, options[:12])) + ", ..." * (len(options) > 12)
        raise ValueError(f"{name}={value!r} is not on offer; use one of {few}")
    return value


class LivePicture(ipywidgets.VBox):
    """Named controls over one picture; when a control moves, `update` gives the picture new data, and it is sent anew."""

    def __init__(
        self, controls: Mapping[str, ipywidgets.Widget], picture: Picture, update: Callable[[], object]
    ) -> None:
        self._controls, self._update, self.picture = dict(controls), update, picture
        self._image = ipywidgets.Image(
            format="png", value=picture.png(compress_level=1), layout={"align_self": "flex-start"}
        )
        super().__init__([ipywidgets.HBox(list(self._controls.values())), self._image])
        for control in self._controls.values():
            control.observe(self._redraw, "value")

    def _redraw(self, _change: Any = None) -> None:
        self._update()
        self._image.value = self.picture.png(compress_level=1)

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={control.value!r}" for name, control in self._controls.items())
        return f"{type(self).__name__}({settings})"

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        data, metadata = self.picture._repr_mimebundle_()
        return {**super()._repr_mimebundle_(**kwargs), **data, "text/plain": repr(self)}, metadata
