"""The roofline: what layers reach, and what the machine would allow."""

import numpy as np
from matplotlib import rc_context

from qkit.bench.record import LinearRecord
from qkit.plots.axes import plain_ticks
from qkit.plots.base import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, STYLE, Data, Picture

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


def _draw_bandwidths(axes, data: Data, tokens: int) -> None:
    """GB of weight a second, fastest on top, and the line that no one passes who reads from memory."""
    labels, rates, limit = data["labels"], data["gigabytes_per_second"], data["memory"]
    axes.barh(range(len(rates)), rates, color=[BLUE if n.startswith("qkit ") else GREY for n in labels], height=0.72)
    axes.set_yticks(range(len(rates)), labels, fontsize=9.5)
    axes.axvline(limit, color=RED, ls="--", lw=1.6)
    axes.set(xlim=(0, 1.12 * max(limit, *rates)), ylim=(-0.6, len(rates) - 0.4))
    axes.set(xlabel="GB of weight a second", title=f"M = {tokens}: as fast as memory?")
    axes.grid(axis="y", visible=False)
    style = {"textcoords": "offset points", "ha": "right", "color": RED, "fontsize": 10.5}
    axes.annotate(f"memory: {limit:.1f}", (limit, 0), (-4, -4), **style)


def roofline(record: LinearRecord, shape: tuple[int, int], threads: int) -> Picture:
    """One shape and number of threads: left the bandwidth that each layer reaches with the fewest tokens, right the roofline.

    Right, a line joins a layer's points from few tokens to many: full for qkit, dashed and hollow for the peer of the same
    format. Operations are counted as 2 tokens out in, bytes as those of the weight. (What multiplies in bfloat16, as
    bitsandbytes' NF4 does, may rise above the float32 roof.)

    Its data: left the `labels`, their `gigabytes_per_second`, and `memory`, the limit; right under "operations a byte of " and
    "gops of " and the label of each line its points.

    Raises:
        ValueError: the record has nothing of this shape with so many threads.
    """
    case = record.case(shape, threads)
    if not case:
        measured = ", ".join(f"{s[0]} x {s[1]} with {n}" for s, n in record.cases) or "nothing"
        raise ValueError(f"{shape[0]} x {shape[1]} with {threads} threads is not in the record, which has {measured}")
    roof = record.roof(threads)
    fewest = [m for m in case if m.tokens == min(m.tokens for m in case)]
    rows = sorted(fewest, key=lambda m: m.gigabytes_per_second)
    places = "1 thread" if threads == 1 else f"{threads} threads"
    with rc_context(STYLE):
        picture = Picture(13, 6.6)
        picture.data = data = {
            "labels": np.array([m.label for m in rows]),
            "gigabytes_per_second": np.array([m.gigabytes_per_second for m in rows]),
            "memory": roof.gigabytes_per_second,
        }
        left, right = picture.subplots(1, 2, width_ratios=(1, 1.25))
        _draw_bandwidths(left, data, fewest[0].tokens)
        points: dict[str, list[tuple[float, float]]] = {m.label: [] for m in case}
        for m in case:
            points[m.label].append((m.operations_per_byte, m.gops))
        legend, shown = {}, []
        for name, (colour, peer) in {**PAIRS, "": ("black", FLOAT)}.items():
            for label, style in ((f"qkit {name}", QKIT), (peer, PEER)):
                if label in points:
                    x, y = np.array(sorted(points[label])).T
                    data |= {f"operations a byte of {label}": x, f"gops of {label}": y}
                    (line,) = right.plot(x, y, color=colour, marker="o", ms=6, label=label, **style)
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
        picture.suptitle(f"{shape[0]} x {shape[1]}, {places}", fontsize=14)
    best = max(fewest, key=lambda m: m.gigabytes_per_second)
    listed = ", ".join(f"{m.label} {m.gigabytes_per_second:.1f}" for m in fewest)
    picture.alt = (
        f"{shape[0]} x {shape[1]}, {places}. Memory is read at {roof.gigabytes_per_second:.1f} GB/s; with M = "
        f"{best.tokens} the layers read their weights at, in GB/s: {listed}. Roofs: float32 {roof.float_gops:.0f}, INT8 "
        f"{roof.int8_gops:.0f} GOP/s; drawn below them: {', '.join(shown) or 'nothing'}."
    )
    return picture


def _draw_roof(axes, roof, points: list[tuple[float, float]]) -> None:
    ridge = (roof.float_gops / roof.gigabytes_per_second, roof.float_gops)
    xs, ys = zip(*(points or [ridge]), strict=True)
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
    plain_ticks(axes.xaxis, TICKS)
    plain_ticks(axes.yaxis, TICKS)
