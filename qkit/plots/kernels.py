"""Figures of lesson 09: what the programs of a GPU kernel write, what a word holds, and how long cards took."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.colors import LinearSegmentedColormap, ListedColormap, TwoSlopeNorm
from matplotlib.ticker import NullLocator

from qkit.bench.recorded import Recorded
from qkit.bench.roofline import attainable
from qkit.plots.axes import plain_decades
from qkit.plots.base import BLUE, GREEN, ORANGE, PURPLE, RED, SKY, STYLE, YELLOW, Picture
from qkit.study.anatomy.words import Places

PROGRAMS = (SKY, ORANGE, GREEN, PURPLE, YELLOW, BLUE)  # they take turns
LINES = ("-o", "-s", "-^", "-D", "-v", "-P", "-X")
COLOURS = ("black", BLUE, ORANGE, GREEN, PURPLE, SKY, RED)
PALE = "#EEEEEE"


def written_by(owners: Mapping[str, np.ndarray], inside: np.ndarray, title: str = "") -> Picture:
    """Which program wrote each place of a piece of memory; a cross where it belonged to no one.

    Its data: each of `owners`, and under "behind the end, " and its name how many places behind the end were written.

    Args:
        owners: int [height, width] by name: the program that wrote there, -1 for none.
        inside: bool [height, width]: what belongs to the result.

    Raises:
        ValueError: there is nothing to draw, or the shapes differ.
    """
    if not owners or any(written.shape != inside.shape for written in owners.values()):
        shapes = {name: written.shape for name, written in owners.items()}
        raise ValueError(f"owners have shapes {shapes}, and inside {inside.shape}; give at least one, all of one shape")
    height, width = inside.shape
    with rc_context(STYLE):
        picture = Picture(11, 0.9 + max(1.6, min(3.6, 0.26 * height)))
        lost = {name: int(((written >= 0) & ~inside).sum()) for name, written in owners.items()}
        picture.data = {**owners, **{f"behind the end, {name}": count for name, count in lost.items()}}
        for axes, (name, written) in zip(np.ravel(picture.subplots(1, len(owners))), owners.items(), strict=True):
            colours = ["white", *(PROGRAMS[p % len(PROGRAMS)] for p in range(max(1, written.max() + 1)))]
            axes.imshow(written, cmap=ListedColormap(colours), vmin=-1.5, vmax=len(colours) - 1.5, aspect="auto")
            axes.hlines(np.arange(0.5, height - 1), -0.5, width - 0.5, color="white", lw=0.8)
            axes.vlines(np.arange(0.5, width - 1), -0.5, height - 0.5, color="white", lw=0.8)
            wrong = np.argwhere((written >= 0) & ~inside)
            if len(wrong):
                axes.scatter(wrong[:, 1], wrong[:, 0], marker="x", color=RED, s=22, lw=1.4)
            for row, column in np.argwhere(np.diff(inside.astype(int), axis=0) != 0):
                axes.plot([column - 0.5, column + 0.5], [row + 0.5] * 2, color="black", lw=2.4)
            for row, column in np.argwhere(np.diff(inside.astype(int), axis=1) != 0):
                axes.plot([column + 0.5] * 2, [row - 0.5, row + 0.5], color="black", lw=2.4)
            axes.set_title(f"{name}: {lost[name]} behind the end", loc="left")
            axes.grid(False)
            axes.set(xlabel="place in the row", ylabel="row")
        picture.suptitle(title, fontsize=13)
    counted = "; ".join(
        f"{name}, {len(np.unique(w[w >= 0]))} programs write {int((w >= 0).sum())} places, {lost[name]} of them behind the end"
        for name, w in owners.items()
    )
    picture.alt = f"{title}: {counted}. {int(inside.sum())} places belong to the result."
    return picture


class WordPicture(Picture):
    """Left, 16 rows of a block of 128 columns: a code, and what shares its word and its lane. Right, the bits of its word.

    Its data: `shares` int [16, 128], 3 the code, 2 in the same word, 1 in the same lane; `fields` and `second fields`
    int [1, 32] from bit 31 down, 2 the code's bits, 0 and 1 in turn those of its neighbours (-1: there is no second word);
    `words`, in hexadecimal.
    """

    def __init__(
        self, places: Places, words: np.ndarray, row: int, column: int, title: str = "", dpi: int = 96
    ) -> None:
        """
        Args:
            places: `qkit.study.anatomy.words.code_places` for so many bits.
            words: uint32, one block of 128 rows and columns as `pack_words` leaves it.
            row, column: of the code, up to 15 and 127.
        """
        with rc_context(STYLE):
            super().__init__(12, 4.2, dpi)
            grid = self.add_gridspec(2, 2, width_ratios=[1, 1.1])
            self._left = self.add_subplot(grid[:, 0])
            self._map = self._left.imshow(
                np.zeros((16, 128)), cmap=ListedColormap([PALE, SKY, ORANGE, RED]), vmin=-0.5, vmax=3.5, aspect="auto"
            )
            self._left.set_xticks(range(0, 129, 32))
            self._left.set_yticks(range(0, 16, 2))
            self._left.set(
                xlabel="column (orange: in the same word, blue: in the same lane)", ylabel="row of the weight"
            )
            self._left.grid(False)
            self._rows = [_BitRow(self.add_subplot(grid[y, 1])) for y in range(2)]
        self.show(places, words, row, column, title)
        self._rows[1].show("a second word", 0, places.column[0], column)  # room for it: the layout stays
        self.freeze()
        self.show(places, words, row, column, title)

    def show(self, places: Places, words: np.ndarray, row: int, column: int, title: str = "") -> None:
        """Another code, in the same picture."""
        where, bits = places.of(row, column)
        mine = list(dict.fromkeys(where.tolist()))
        lane = int(places.lane[mine[0]])
        shares = np.zeros((16, 128), int)
        for level, chosen in ((1, places.lane == lane), (2, mine)):
            rows, columns = places.row[chosen].ravel(), places.column[chosen].ravel()
            shares[rows[rows < 16], columns[rows < 16]] = level
        shares[row, column] = 3
        value = sum(
            int(words[word] >> bit & 1) << order for order, (word, bit) in enumerate(zip(where, bits, strict=True))
        )
        code = f"row {row}, column {column}: code {value}"
        fields = [
            bit_row.show(f"{code}; word {word}: 0x{words[word]:08x}", int(words[word]), places.column[word], column)
            for bit_row, word in zip(self._rows, mine, strict=False)
        ]
        if len(mine) == 1:
            fields.append(self._rows[1].hide())
        hexadecimal = np.array([f"0x{words[word]:08x}" for word in mine])
        self.data = {"shares": shares, "fields": fields[0], "second fields": fields[1], "words": hexadecimal}
        self._map.set_data(shares)
        self._left.set_title(f"{title}: lane {lane} of 32 loads it", loc="left")
        shared = sorted({int(c) for word in mine for c in places.column[word]})
        self.alt = (
            f"{title}. The code {value} of row {row}, column {column} lies in bits {', '.join(map(str, bits))} of word "
            f"{' and '.join(map(str, mine))} ({', '.join(hexadecimal)}), which lane {lane} of 32 loads. In the same word lie "
            f"columns {', '.join(map(str, shared))} of this row; the lane's other words hold {int((shares == 1).sum())} codes of "
            f"{len(set(np.nonzero(shares)[0].tolist()))} of the 16 rows shown."
        )


class _BitRow:
    """The 32 bits of one word, and whose they are."""

    def __init__(self, axes) -> None:
        self._axes = axes
        colours = ListedColormap(["white", PALE, SKY, RED])
        self._image = axes.imshow(np.zeros((1, 32)), cmap=colours, vmin=-1.5, vmax=2.5, aspect="auto")
        style = {"ha": "center", "va": "center"}
        self._digits = [axes.text(31 - bit, -0.1, "", fontsize=10, **style) for bit in range(32)]
        self._owners = [axes.text(31 - bit, 0.3, "", fontsize=9.5, **style) for bit in range(32)]
        axes.set_xticks([31 - bit for bit in range(0, 32, 4)], [str(bit) for bit in range(0, 32, 4)])
        axes.set(ylabel="bits", yticks=[])
        axes.grid(False)

    def show(self, title: str, word: int, columns: np.ndarray, column: int) -> np.ndarray:
        """One word; the fields that are drawn."""
        order = list(dict.fromkeys(columns.tolist()))
        whose = columns[::-1]
        fields = np.array([[2 if one == column else order.index(one) % 2 for one in whose]])
        self._image.set_data(fields)
        self._axes.set_title(title, loc="left", fontsize=12)
        self._axes.set_visible(True)
        starts = [bit for bit in range(32) if bit == 0 or columns[bit - 1] != columns[bit]]
        middles = {first: (first + last - 1) / 2 for first, last in zip(starts, [*starts[1:], 32], strict=True)}
        for bit in range(32):
            self._digits[bit].set_text(str(word >> bit & 1))
            self._owners[bit].set_text(str(columns[bit]) if bit in middles else "")
            self._owners[bit].set_x(31 - middles.get(bit, bit))
        return fields

    def hide(self) -> np.ndarray:
        """No word; the fields that are drawn."""
        fields = np.full((1, 32), -1)
        self._image.set_data(fields)
        self._axes.set_visible(False)
        return fields


def register_bits(steps: Sequence[tuple[str, int, str]], title: str = "") -> Picture:
    """The 32 bits of a register after each of some instructions.

    Its data: `bits` int [steps, 32] from bit 31 down, and `meaning`, what each register says.

    Args:
        steps: (instruction, the register's word, what it says) of each.
    """
    if not steps:
        raise ValueError("there is no step to draw; give at least one (instruction, word, meaning)")
    with rc_context(STYLE):
        picture = Picture(12, 1.1 + 0.52 * len(steps))
        bits = np.array([[word >> bit & 1 for bit in range(31, -1, -1)] for _, word, _ in steps])
        picture.data = {"bits": bits, "meaning": np.array([meaning for _, _, meaning in steps])}
        axes = picture.subplots()
        axes.imshow(bits, cmap=ListedColormap([PALE, BLUE]), vmin=-0.5, vmax=1.5, aspect="auto")
        for y, row in enumerate(bits):
            for x, bit in enumerate(row):
                axes.text(x, y, str(bit), ha="center", va="center", fontsize=9, color="white" if bit else "#555555")
        axes.axvline(15.5, color="black", lw=2)
        axes.set_xticks([31 - bit for bit in range(0, 32, 4)], [str(bit) for bit in range(0, 32, 4)])
        axes.set_yticks(range(len(steps)), [text for text, _, _ in steps], family="monospace", fontsize=10)
        right = axes.twinx()
        right.set_ylim(axes.get_ylim())
        right.set_yticks(range(len(steps)), [meaning for _, _, meaning in steps], fontsize=10)
        right.grid(False)
        axes.grid(False)
        axes.set_xlabel("bit of the register: left the upper half, right the lower")
        axes.set_title(title, loc="left")
    said = "; ".join(f"{text}: 0x{word:08x}, {meaning}" for text, word, meaning in steps)
    picture.alt = f"{title}. {said}."
    return picture


def operand_fill(tokens: Sequence[int] = (1, 4, 8)) -> Picture:
    """Of the 16 by 8 results of one instruction of the tensor core those that are wanted, tokens on either side.

    Its data: under "tokens left, " and "tokens right, " and their number int [16, 8], 1 where a result is wanted.
    """
    with rc_context(STYLE):
        picture = Picture(11, 4.6)
        grid = picture.subplots(2, len(tokens), squeeze=False)
        shares = []
        for line, (side, words) in enumerate((("left", "rows: tokens"), ("right", "columns: tokens"))):
            for axes, count in zip(grid[line], tokens, strict=True):
                wanted = np.zeros((16, 8), int)
                wanted[(slice(count), slice(None)) if side == "left" else (slice(None), slice(count))] = 1
                picture.data = {**picture.data, f"tokens {side}, {count}": wanted}
                axes.imshow(wanted, cmap=ListedColormap([PALE, BLUE]), vmin=-0.5, vmax=1.5, aspect="auto")
                axes.set_xticks(np.arange(0.5, 7), [])
                axes.set_yticks(np.arange(0.5, 15), [])
                axes.grid(color="white", lw=1)
                axes.tick_params(length=0)
                share = f"{int(wanted.sum())} of {wanted.size} wanted"
                axes.set_title(f"M = {count}, tokens {side}: {share}", fontsize=11)
                axes.set_ylabel(words if count == tokens[0] else "", fontsize=10)
                shares.append(f"M = {count} with tokens {side}, {share}")
    picture.alt = f"The 16 x 8 results of one instruction m16n8k16: {'; '.join(shares)}."
    return picture


def times_by_tokens(record: Recorded, names: Sequence[str]) -> Picture:
    """Microseconds against tokens, of each of `names`; dashed what bytes and operations allow each format at best.

    Its data: of each name its `tokens` and `microseconds`; of the first of each format what is `at best` possible.
    """
    roof, bounded = record.best, set()
    with rc_context(STYLE):
        picture = Picture(11, 5)
        axes = picture.subplots()
        for name, colour, style in zip(names, COLOURS, LINES, strict=False):
            tokens, times = (
                np.array(part, float) for part in zip(*sorted(record.microseconds[name].items()), strict=True)
            )
            picture.data = {**picture.data, f"tokens, {name}": tokens, f"microseconds, {name}": times}
            axes.plot(tokens, times, style, color=colour, label=name, ms=6)
            layers = tuple(record.layer(name, int(m)) for m in tokens)
            kind = layers[0], "A8" in name
            if kind not in bounded:  # another library's kernel of the same format has the same bound
                bounded.add(kind)
                floor = np.array([1e6 * layer.floor(roof, "A8" in name) for layer in layers])
                picture.data = {**picture.data, f"at best, {name}": floor}
                axes.plot(tokens, floor, ls="--", lw=1.2, color=colour)
        axes.set(xscale="log", yscale="log", xlabel="tokens, M", ylabel="microseconds")
        ticks = sorted({m for name in names for m in record.microseconds[name]})
        kept = [m for m in ticks if m & (m - 1) == 0]
        axes.set_xticks(kept, [str(m) for m in kept])
        axes.xaxis.set_minor_locator(NullLocator())
        plain_decades(axes.yaxis)
        axes.legend(fontsize=11, title="dashed: at best", title_fontsize=10)
        axes.set_title(f"{record.rows} x {record.features}, {record.machine}, {record.date}", loc="left")
    spans = ", ".join(
        f"{name} {record.microseconds[name][min(record.microseconds[name])]:g} to "
        f"{record.microseconds[name][max(record.microseconds[name])]:g}"
        for name in names
    )
    picture.alt = (
        f"Microseconds of a layer of {record.rows} x {record.features} on {record.machine} ({record.date}) against tokens, from "
        f"the fewest to the most: {spans}."
    )
    return picture


def ratios_to_baseline(records: Mapping[str, Recorded], names: Sequence[str]) -> Picture:
    """The time of each of `names` over that of the baseline, by tokens: blue is faster, orange slower.

    Its data: of each record its ratios, float64 [names, tokens], for the numbers of tokens that all of `names` have there.

    Raises:
        ValueError: a record lacks one of `names`.
    """
    for title, record in records.items():
        if lacking := [name for name in names if name not in record.microseconds]:
            raise ValueError(
                f"{', '.join(lacking)} not in the record {title!r}, which has {', '.join(record.microseconds)}"
            )
    colours = LinearSegmentedColormap.from_list("faster to slower", [BLUE, "white", ORANGE])
    with rc_context(STYLE):
        picture = Picture(13, 1.5 + 0.4 * len(names))
        said = []
        for axes, (title, record) in zip(
            picture.subplots(1, len(records), squeeze=False)[0], records.items(), strict=True
        ):
            tokens = sorted(set.intersection(*(set(record.microseconds[name]) for name in names)))
            ratios = np.array([[record.ratio(name, m) for m in tokens] for name in names])
            picture.data = {**picture.data, title: ratios}
            axes.imshow(ratios, cmap=colours, norm=TwoSlopeNorm(1.0, 0.2, 2.5), aspect="auto")
            for (y, x), ratio in np.ndenumerate(ratios):
                axes.text(x, y, f"{ratio:.2f}", ha="center", va="center", fontsize=8.5)
            axes.set_xticks(range(len(tokens)), [str(m) for m in tokens], fontsize=10)
            axes.set_yticks(range(len(names)), names if not said else [""] * len(names), fontsize=10.5)
            axes.grid(False)
            axes.set_title(title, loc="left", fontsize=12)
            axes.set_xlabel("tokens, M", fontsize=11)
            said.append(
                f"{title}: {int((ratios > 1).sum())} of {ratios.size} are slower than {record.baseline}, from {ratios.min():.2f} "
                f"to {ratios.max():.2f} of its time"
            )
    picture.alt = f"Times over those of the plain product, of {', '.join(names)}. {'; '.join(said)}."
    return picture


def on_rooflines(machines: Mapping[str, tuple[Recorded, Sequence[str]]]) -> Picture:
    """Several machines' roofs in one picture, and what their layers reached below them, joined from few tokens to many.

    Its data: of each machine `intensities` and what is `attainable` there; of each line `operations a byte` and `gops`.

    Args:
        machines: (what was recorded, the names to draw) by the machine's name.
    """
    with rc_context(STYLE):
        picture = Picture(11, 5.6)
        axes = picture.subplots()
        said, marks = [], iter(LINES)
        for colour, (machine, (record, names)) in zip((BLUE, ORANGE, GREEN), machines.items(), strict=False):
            roof, x = record.best, np.geomspace(0.25, 4096, 300)
            line = np.array([attainable(roof, i) for i in x])
            picture.data = {**picture.data, f"intensities, {machine}": x, f"attainable, {machine}": line}
            axes.plot(x, line, color=colour, lw=2.2)
            most = float(f"{roof.float_gops:.2g}")
            axes.text(3900, 1.15 * roof.float_gops, f"{machine}: {most:,.0f}", ha="right", color=colour)
            axes.text(0.28, 0.75 * roof.gigabytes_per_second, f"{roof.gigabytes_per_second:,.0f} GB/s", color=colour)
            for name in names:
                tokens = sorted(record.microseconds[name])
                spots = [(record.layer(name, m).intensity, record.gops(name, m)) for m in tokens]
                xs, ys = (np.array(part) for part in zip(*spots, strict=True))
                label = f"{machine}, {name}"
                picture.data = {**picture.data, f"operations a byte, {label}": xs, f"gops, {label}": ys}
                face = "white" if name == record.baseline else colour
                axes.plot(xs, ys, next(marks), color=colour, mfc=face, ms=6.5, lw=1.1, label=label)
            said.append(
                f"{machine} reads {roof.gigabytes_per_second:,.0f} GB/s and does {roof.float_gops:,.0f} 10⁹ operations a second, "
                f"its ridge at {roof.float_gops / roof.gigabytes_per_second:.0f} operations a byte, with {', '.join(names)}"
            )
        axes.set(
            xscale="log", yscale="log", xlabel="operations a byte", ylabel="10⁹ operations a second", xlim=(0.25, 4096)
        )
        ticks = [1, 4, 16, 64, 256, 1024, 4096]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        plain_decades(axes.yaxis)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")  # :g would write 1e+06
        axes.legend(fontsize=10, loc="lower right")
    picture.alt = f"Rooflines: {'; '.join(said)}."
    return picture
