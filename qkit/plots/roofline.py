"""The roofline: what layers reach, and what the machine would allow."""

import numpy as np
from matplotlib import rc_context

from qkit.bench.record import LinearRecord, Measurement
from qkit.plots.base import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, STYLE, Picture
from qkit.plots.weights import _plain_ticks

PAIRS = {  # of qkit's layers: (colour, the peer of the same format)
    "W4 g128 sym A8": (BLUE, "onnxruntime W4 g128 sym level 4"),
    "W4 g128": (SKY, "torch W4 g128 int4pack bf16"),
    "NF4 b64": (ORANGE, "bitsandbytes NF4 b64"),
    "W8A8 dynamic": (GREEN, "torch dynamic INT8"),
    "LLM.int8": (PURPLE, "bitsandbytes LLM.int8"),
}
FLOAT = "torch fp32"
QKIT, PEER = {"ls": "-"}, {"ls": "--", "mfc": "white", "lw": 1.2}
TICKS = [n * 10**k for k in range(-1, 5) for n in (1, 3)]


def bandwidth_bars(axes, case: list[Measurement], limit: float) -> None:
    """GB of weight a second, fastest on top, and the line that no one passes who reads from memory."""
    rows = sorted(case, key=lambda m: m.gigabytes_per_second)
    colours = [BLUE if m.library == "qkit" else GREY for m in rows]
    axes.barh(range(len(rows)), [m.gigabytes_per_second for m in rows], color=colours, height=0.72)
    axes.set_yticks(range(len(rows)), [m.label for m in rows], fontsize=9.5)
    axes.axvline(limit, color=RED, ls="--", lw=1.6)
    axes.set(xlim=(0, 1.12 * max(limit, *(m.gigabytes_per_second for m in rows))), ylim=(-0.6, len(rows) - 0.4))
    axes.set(xlabel="GB of weight a second", title=f"M = {rows[0].tokens}: as fast as memory?")
    axes.grid(axis="y", visible=False)
    style = {"textcoords": "offset points", "ha": "right", "color": RED, "fontsize": 10.5}
    axes.annotate(f"memory: {limit:.1f}", (limit, 0), (-4, -4), **style)


def roofline(record: LinearRecord, shape: tuple[int, int], threads: int) -> Picture:
    """One shape and number of threads: left the bandwidth that each layer reaches with the fewest tokens, right the roofline.

    Right, a line joins a layer's points from few tokens to many: full for qkit, dashed and hollow for the peer of the same
    format. Operations are counted as 2 tokens out in, bytes as those of the weight. (What multiplies in bfloat16, as
    bitsandbytes' NF4 does, may rise above the float32 roof.)
    """
    case, roof = record.case(shape, threads), record.roof(threads)
    fewest = [m for m in case if m.tokens == min(m.tokens for m in case)]
    with rc_context(STYLE):
        picture = Picture(13, 6.6)
        left, right = picture.subplots(1, 2, width_ratios=(1, 1.25))
        bandwidth_bars(left, fewest, roof.gigabytes_per_second)
        points = {m.label: [] for m in case}
        for m in case:
            points[m.label].append((m.operations_per_byte, m.gops))
        legend, shown = {}, []
        for name, (colour, peer) in {**PAIRS, "": ("black", FLOAT)}.items():
            for label, style in ((f"qkit {name}", QKIT), (peer, PEER)):
                if label in points:
                    curve = zip(*sorted(points[label]), strict=True)
                    (line,) = right.plot(*curve, color=colour, marker="o", ms=6, label=label, **style)
                    legend.setdefault(f"{name}, {peer.split()[0]}" if name else FLOAT, line)
                    shown.append(label)
        _draw_roof(right, roof, [point for label in shown for point in points[label]])
        right.legend(
            legend.values(),
            legend.keys(),
            loc="lower right",
            fontsize=9.5,
            title="full: qkit, dashed: peer",
            title_fontsize=9.5,
        )
        places = "1 thread" if threads == 1 else f"{threads} threads"
        picture.suptitle(f"{shape[0]} x {shape[1]}, {places}", fontsize=14)
    best = max(fewest, key=lambda m: m.gigabytes_per_second)
    listed = ", ".join(f"{m.label} {m.gigabytes_per_second:.1f}" for m in fewest)
    picture.alt = (
        f"{shape[0]} x {shape[1]}, {places}. Memory is read at {roof.gigabytes_per_second:.1f} GB/s; with M = "
        f"{best.tokens} the layers read their weights at, in GB/s: {listed}. Roofs: float32 {roof.float_gops:.0f}, INT8 "
        f"{roof.int8_gops:.0f} GOP/s; drawn below them: {', '.join(shown)}."
    )
    return picture


def _draw_roof(axes, roof, points: list[tuple[float, float]]) -> None:
    xs, ys = zip(*points, strict=True)
    low, high = min(xs) / 1.6, max(max(xs), 2 * roof.int8_gops / roof.gigabytes_per_second) * 1.6
    span = np.geomspace(low, high, 200)
    for peak, words, style in ((roof.float_gops, "float32", "-."), (roof.int8_gops, "INT8", "-")):
        line = np.minimum(span * roof.gigabytes_per_second, peak)
        axes.plot(span, line, color=RED, lw=1.6, ls=style, zorder=1)
        axes.annotate(
            f"{words}: {peak:.0f} GOP/s",
            (high, peak),
            (-4, 4),
            textcoords="offset points",
            ha="right",
            color=RED,
            fontsize=10.5,
        )
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(min(ys) / 1.6, 1.8 * max(*ys, roof.int8_gops)))
    axes.set(
        xlabel="operations a byte of weight",
        ylabel="10⁹ operations a second",
        title="the roofline, from few tokens to many",
    )
    _plain_ticks(axes.xaxis, TICKS)
    _plain_ticks(axes.yaxis, TICKS)
