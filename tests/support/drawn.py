"""What a picture shows, read off its artists, and what it says that it shows."""

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle, StepPatch
from matplotlib.text import Text


def same_data(picture, other) -> None:
    """Fail unless two pictures have the same data."""
    assert list(picture.data) == list(other.data)
    for name, value in picture.data.items():
        np.testing.assert_array_equal(value, other.data[name], err_msg=name)


def numbers(picture) -> list[np.ndarray]:
    """One array for each thing drawn: x or y of a line, values or edges of a histogram, an image, ticks, bars of an axes."""
    found = []
    for artist in picture.findobj():
        if isinstance(artist, Line2D):
            found += [np.atleast_1d(np.asarray(part, float)) for part in (artist.get_xdata(), artist.get_ydata())]
        elif isinstance(artist, StepPatch):
            found += [np.asarray(part, float) for part in artist.get_data()[:2]]
        elif isinstance(artist, LineCollection):
            found.append(np.array([segment[0][0] for segment in artist.get_segments()]))
        elif isinstance(artist, AxesImage):
            values = artist.get_array()
            found.append(np.asarray(~values.mask if np.ma.is_masked(values) else values, float))
    for axes in picture.axes:
        widths = [bar.get_width() for bar in axes.patches if isinstance(bar, Rectangle)]
        found += [np.array(widths), *(np.array([width]) for width in widths)]
    return found


def texts(picture) -> list[str]:
    """All that is written in a picture."""
    picture.canvas.draw()  # tick labels are written when they are drawn
    return [text.get_text() for text in picture.findobj(Text)]


def is_drawn(value, picture) -> bool:
    """Whether an array, a number or a string of a picture's data is to be seen in it."""
    value = np.asarray(value)
    if value.dtype.kind == "U":
        return all(any(str(word) in text for text in texts(picture)) for word in value.reshape(-1))
    there, wanted = numbers(picture), value.astype(float)
    wanted = wanted[~np.isnan(wanted)] if wanted.ndim == 1 else wanted
    if any(array.shape == wanted.shape and np.array_equal(array, wanted) for array in there):
        return True
    single = {float(x) for array in there if array.ndim == 1 for x in (array[:1] if len(set(array)) == 1 else ())}
    if wanted.ndim < 2 and {float(x) for x in np.atleast_1d(wanted)} <= single:
        return True
    return wanted.ndim == 0 and any(
        f"{wanted:.{digits}f}" in text for text in texts(picture) for digits in (1, 2, 3, 4, 5)
    )
