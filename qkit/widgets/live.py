"""What explorers with controls of their own share: a picture, its image, and how both follow the controls."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ipywidgets
from traitlets import Unicode

from qkit.plots import Picture

DPI = 80
NARROW = {"description_width": "4em"}  # names before controls that stand side by side


def place_slider(name: str, value: int, count: int, **options: Any) -> ipywidgets.IntSlider:
    """A slider over 0 .. count - 1, the rows or columns of a weight; refuses a value that is none of them."""
    value = on_offer(name, value, range(count))
    return ipywidgets.IntSlider(value=value, min=0, max=count - 1, description=name, style=NARROW, **options)


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


class DescribedImage(ipywidgets.Image):
    """An image whose tooltip is its name for those who cannot see it; it has no other description.

    What shows it (8.1.9) sets a tooltip only on what has a `description`, and breaks where there is none: this one is empty.
    """

    description = Unicode("").tag(sync=True)


class LivePicture(ipywidgets.VBox):
    """Named controls over one picture; when a control moves, `update` gives the picture new data, and it is sent anew.

    Attributes:
        picture: what is seen, with its `data` and its `alt`.
        image: the widget that shows it, a PNG, with the picture's `alt`.
    """

    def __init__(
        self,
        controls: Mapping[str, ipywidgets.Widget],
        picture: Picture,
        update: Callable[[], object],
        rows: Sequence[Sequence[str]] | None = None,
    ) -> None:
        """
        Args:
            controls: by name, in the order in which `repr` lists them.
            rows: the names that stand beside each other; None: all in one row.
        """
        self._controls, self._update, self.picture = dict(controls), update, picture
        self.image = DescribedImage(
            format="png",
            value=picture.png(compress_level=1),
            tooltip=picture.alt,
            layout={"align_self": "flex-start"},  # its own size: stretched, it blurs
        )
        boxes = [ipywidgets.HBox([self._controls[name] for name in row]) for row in rows or [list(controls)]]
        super().__init__([*boxes, self.image])
        for control in self._controls.values():
            control.observe(self._redraw, "value")

    def _redraw(self, _change: Any = None) -> None:
        self._update()
        with self.image.hold_sync():  # one message
            self.image.value, self.image.tooltip = self.picture.png(compress_level=1), self.picture.alt

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={control.value!r}" for name, control in self._controls.items())
        return f"{type(self).__name__}({settings})"

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        data, metadata = self.picture._repr_mimebundle_()
        return {**super()._repr_mimebundle_(**kwargs), **data, "text/plain": repr(self)}, metadata
