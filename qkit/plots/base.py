"""What all figures share: the palette, the style, and the Picture.

Every figure is computed, never drawn by hand: it takes what a qkit function returned. One style for all: the Okabe-Ito
palette (told apart with any colour vision), type that reads on a projector, and the same colour for the same thing
everywhere. A figure is a `Picture`: a matplotlib Figure with a sentence that says what is to be seen, for readers who do
not see it and for notebooks read without a kernel, and with the numbers that are seen, `data`.

    >>> picture = qkit.plots.weight_histogram(weight, q)
    >>> picture.data["edges"], picture.data["before"], picture.data["after"]

What is drawn is taken from `data` and from nowhere else, in the units of the axes: percent where they show percent, and an
infinite value at the height where it is drawn. Which names there are stands at each figure.
"""

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from qkit.methods.registry import SCHEMES

BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#999999"
PURPLE, SKY, YELLOW = "#CC79A7", "#56B4E9", "#F0E442"
EXAMPLES = {  # a scheme of each method, by the word that its name begins with
    example.name.partition(" ")[0]: example
    for example in (scheme.parse(scheme.spellings[0]) for scheme in SCHEMES.values())
}
METHOD_COLOURS = {"FP32": "#000000"} | {word: example.colour for word, example in EXAMPLES.items()}  # in every figure
BITS_STYLES = {8: ("o", "-"), 4: ("s", "--"), 3: ("^", "-."), 2: ("v", ":")}  # marker, line
ORIGINAL, QUANTIZED, BOUND = GREY, BLUE, RED

Data = Mapping[str, np.ndarray | float | str]

STYLE = {
    "font.size": 12,
    "axes.titlesize": 13,
    "axes.labelsize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.8,
    "lines.linewidth": 2,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


class Picture(Figure):
    """A Figure that says what it shows.

    Attributes:
        alt: a sentence or two; its text in a notebook and its alternative text in HTML.
        data: what is drawn, arrays, numbers and strings by name.
        constant: of a picture of times, which no two runs have alike, what is the same in each; its text in a notebook then, so
            that a page that was run again can be compared with the stored one. "": `alt` is.
    """

    def __init__(self, width: float, height: float, dpi: int = 96) -> None:
        super().__init__(figsize=(width, height), dpi=dpi, layout="constrained")
        FigureCanvasAgg(self)
        self.alt = self.constant = ""
        self.data: Data = {}

    def freeze(self) -> None:
        """Lay the picture out once more and then keep the layout: new data is then drawn several times faster."""
        self.draw_without_rendering()
        self.set_layout_engine("none")

    def png(self, compress_level: int = 9) -> bytes:
        """The picture as a PNG file; `compress_level` 1 is larger and quicker, for pictures that follow a slider."""
        buffer = io.BytesIO()
        self.canvas.draw()  # savefig would draw twice
        Image.fromarray(np.asarray(self.canvas.buffer_rgba())).convert("RGB").save(
            buffer, "png", compress_level=compress_level
        )
        return buffer.getvalue()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, str], dict[str, Any]]:
        data = {"image/png": base64.b64encode(self.png()).decode(), "text/plain": self.constant or self.alt}
        return data, {"image/png": {"alt": self.alt}}
