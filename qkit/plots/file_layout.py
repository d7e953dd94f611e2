"""Figures of lesson 10: what the bytes of another library's file are, half byte by half byte."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap

from qkit.plots.base import BLUE, GREEN, ORANGE, RED, SKY, STYLE, Picture
from qkit.study.anatomy.files import Piece

PALE = "#E8E8E8"
EMPTY, NUMBER, EVEN, ODD, CHOSEN = -1, 0, 1, 2, 3  # nothing, part of a scale, codes in turn, the code looked for
FIELDS = ListedColormap(["white", ORANGE, PALE, SKY, RED])
MOST_BYTES = 20  # of a piece: a block Q4_1
CORNER = (16, 128)  # rows and columns of a weight that FilePicture shows


class _Strip:
    """The half bytes of one piece, lowest bits left; above each byte how it is written in hexadecimal."""

    def __init__(self, axes: Axes, size: float = 10) -> None:
        self._axes = axes
        blank = np.full((1, 2 * MOST_BYTES), EMPTY)
        self._image = axes.imshow(blank, cmap=FIELDS, vmin=-1.5, vmax=3.5, aspect="auto")
        style = {"ha": "center", "va": "center"}
        self._codes = [axes.text(x, -0.14, "", fontsize=size, **style) for x in range(2 * MOST_BYTES)]
        self._owners = [
            axes.text(x, 0.3, "", fontsize=size - 2, color="#333333", **style) for x in range(2 * MOST_BYTES)
        ]
        self._octets = [
            axes.text(2 * x + 0.5, -0.68, "", fontsize=size - 1, family="monospace", **style) for x in range(MOST_BYTES)
        ]
        axes.vlines(np.arange(-0.5, 2 * MOST_BYTES, 2), -0.5, 0.5, color="white", lw=3)
        axes.set(xticks=[], yticks=[], xlim=(-0.5, 2 * MOST_BYTES - 0.5), ylim=(0.5, -0.9))
        for side in axes.spines.values():
            side.set_visible(False)
        axes.grid(False)

    def show(self, piece: Piece, row: int, column: int) -> np.ndarray:
        """One piece; the fields that are drawn."""
        shown = fields(piece, row, column)
        self._image.set_data(np.pad(shown, (0, 2 * MOST_BYTES - len(shown)), constant_values=EMPTY)[None])
        owners = piece.column if _along(piece) == "columns" else piece.row
        for x, (code, owner) in enumerate(zip(self._codes, self._owners, strict=True)):
            inside = x < len(shown) and shown[x] != NUMBER
            code.set_text(str(piece.halves[x]) if inside else "")
            owner.set_text(str(owners[x]) if inside else "")
        for x, octet in enumerate(self._octets):
            octet.set_text(f"{piece.octets[x]:02x}" if x < len(piece.octets) else "")
        for numbers in np.split(np.flatnonzero(shown == NUMBER), range(4, int((shown == NUMBER).sum()), 4)):
            if len(numbers):
                value = piece.octets[numbers[0] // 2 : numbers[0] // 2 + 2].view(np.float16)[0]
                self._codes[numbers[0]].set_text(f"{value:.4f}")
                self._codes[numbers[0]].set_x(numbers[0] + 1.5)
                self._codes[numbers[0]].set_backgroundcolor(ORANGE)
        for x in np.flatnonzero(shown != NUMBER):
            self._codes[x].set_x(x)
            self._codes[x].set_bbox(None)
        what = f"{piece.form}, {piece.unit} at byte {piece.start:,} of {piece.file}"
        self._axes.set_title(f"{what}: {_whose(piece)}", loc="left", fontsize=11)
        return shown


def fields(piece: Piece, row: int, column: int) -> np.ndarray:
    """What each half byte of a piece is: 0 part of a scale or minimum, 1 and 2 codes in turn, 3 the code of that weight."""
    count = len(piece.row)
    shown = np.where(piece.row < 0, NUMBER, np.where(np.arange(count) % 2, ODD, EVEN))
    shown[(piece.row == row) & (piece.column == column)] = CHOSEN
    return shown


def file_layouts(pieces: Sequence[Piece], row: int, column: int, title: str = "") -> Picture:
    """The pieces of several files in which one weight's code lies.

    Its data: under each format's name its `fields`, int [half bytes], as `fields` has them, its `octets`, and its `owners`, the
    column (in AWQ the row) of each half byte's code.

    Raises:
        ValueError: there is nothing to draw.
    """
    if not pieces:
        raise ValueError("there is no piece to draw; give at least one (qkit.study.anatomy.files.file_piece)")
    with rc_context(STYLE):
        picture = Picture(12, 0.5 + 1.05 * len(pieces))
        said = []
        for axes, piece in zip(picture.subplots(len(pieces), squeeze=False)[:, 0], pieces, strict=True):
            shown = _Strip(axes).show(piece, row, column)
            picture.data = {**picture.data, **_data(piece, shown, f", {piece.form}")}
            said.append(_sentence(piece, row, column))
        picture.suptitle(title, fontsize=13)
    picture.alt = f"{title}: {' '.join(said)}"
    return picture


class FilePicture(Picture):
    """Above, a corner of a weight: one code, and those that share its word or block; below, the bytes of that piece.

    Its data: `shares` int [16, 128], 2 the code, 1 in the same piece; `fields`, `octets` and `owners` as `file_layouts` has them.
    """

    def __init__(self, piece: Piece, row: int, column: int, title: str = "", dpi: int = 96) -> None:
        """
        Args:
            piece: `qkit.study.anatomy.files.file_piece` of that row and column.
            row, column: up to 15 and 127.
        """
        with rc_context(STYLE):
            super().__init__(12, 4.4, dpi)
            above, below = self.subplots(2, height_ratios=[2.4, 1])
            self._map = above.imshow(
                np.zeros(CORNER),
                cmap=ListedColormap([PALE, SKY, RED]),
                vmin=-0.5,
                vmax=2.5,
                aspect="auto",
            )
            above.set_xticks(range(0, CORNER[1] + 1, 16))
            above.set_yticks(range(0, CORNER[0], 4))
            above.set(xlabel="column (blue: in the same piece of the file)", ylabel="row of the weight")
            above.grid(False)
            self._above, self._strip = above, _Strip(below)
        self.show(piece, row, column, title)
        self.freeze()

    def show(self, piece: Piece, row: int, column: int, title: str = "") -> None:
        """Another code or file, in the same picture."""
        shares = np.zeros(CORNER, int)
        seen = (piece.row >= 0) & (piece.row < CORNER[0]) & (piece.column < CORNER[1])
        shares[piece.row[seen], piece.column[seen]] = 1
        shares[row, column] = 2
        self._map.set_data(shares)
        self._above.set_title(f"{title}: row {row}, column {column}", loc="left")
        self.data = {"shares": shares, **_data(piece, self._strip.show(piece, row, column))}
        self.alt = f"{title}. {_sentence(piece, row, column)}"


def errors_in_steps(errors: Mapping[str, np.ndarray], title: str = "") -> Picture:
    """How far dequantized weights are from the weights, in steps of their group: a histogram for each reading.

    Its data: the `edges`, and under each name what part of the weights lies between them, in percent.

    Args:
        errors: (ŵ - w) / s by name, of any shape.

    Raises:
        ValueError: there is nothing to draw.
    """
    if not errors:
        raise ValueError("there is no reading to draw; give at least one array of errors")
    edges = np.linspace(-2, 2, 41)
    shares = {name: 100 * np.histogram(one, edges)[0] / np.size(one) for name, one in errors.items()}
    with rc_context(STYLE):
        picture = Picture(11, 3.4)
        picture.data = {"edges": edges, **shares}
        axes = picture.subplots()
        for (name, share), colour, line in zip(
            shares.items(), (RED, BLUE, GREEN, ORANGE), ("-", "--", "-.", ":"), strict=False
        ):
            axes.stairs(share, edges, color=colour, ls=line, lw=2, label=name)
        axes.axvspan(-0.5, 0.5, color=PALE, zorder=0)
        axes.set(xlabel="error in steps (grey: what rounding can do)", ylabel="% of the weights", title=title)
        axes.legend()
    middles = (edges[:-1] + edges[1:]) / 2
    means = [
        f"{name}: {round((middles * share).sum() / share.sum(), 1) + 0.0:.1f} steps in the mean"
        for name, share in shares.items()
    ]
    picture.alt = f"{title}. Rounding errs by half a step at most. {'; '.join(means)}."
    return picture


def _data(piece: Piece, shown: np.ndarray, end: str = "") -> dict[str, np.ndarray]:
    owners = piece.column if _along(piece) == "columns" else piece.row
    return {f"fields{end}": shown, f"octets{end}": piece.octets, f"owners{end}": owners}


def _along(piece: Piece) -> str:
    """What changes from code to code."""
    return "columns" if len(set(piece.row[piece.row >= 0].tolist())) == 1 else "rows"


def _whose(piece: Piece) -> str:
    inside = piece.row >= 0
    if _along(piece) == "columns":
        return f"columns of row {piece.row[inside][0]}"
    return f"rows of column {piece.column[inside][0]}"


def _sentence(piece: Piece, row: int, column: int) -> str:
    at = piece.of(row, column)
    inside = piece.row >= 0
    order = (piece.column if _along(piece) == "columns" else piece.row)[inside]
    return (
        f"{piece.form}: {piece.octets.tobytes().hex(' ')}, {piece.unit} in {piece.file}. The code "
        f"{piece.halves[at]} of row {row}, column {column} is half byte {at}, counted from 0, the lower half of a byte first. "
        f"Codes in the order of the file are those of {_whose(piece)}: {', '.join(map(str, order))}."
    )
