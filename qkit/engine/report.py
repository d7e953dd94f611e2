"""What happened, as frozen records: one line for `print`, a table for a notebook, a dictionary for JSON."""

import math
from dataclasses import dataclass, field
from html import escape
from typing import Any

from qkit.engine.scaling import Scaling
from qkit.numerics.error import ErrorStatistics


def html_table(header: list[str], rows: list[list[str]], caption: str) -> str:
    """A static table with inline style: it needs no kernel, no script, and reads on a dark page too."""
    cell = "padding:.25em .8em;text-align:{};border-bottom:1px solid #8884"
    parts = [
        f'<table style="border-collapse:collapse;font-variant-numeric:tabular-nums"><caption>{escape(caption)}</caption>'
    ]
    for tag, row in [("th", header), *(("td", row) for row in rows)]:
        cells = (
            f'<{tag} style="{cell.format("right" if column else "left")}">{escape(text)}</{tag}>'
            for column, text in enumerate(row)
        )
        parts.append(f"<tr>{''.join(cells)}</tr>")
    return "".join([*parts, "</table>"])


@dataclass(frozen=True)
class LayerReport:
    """One layer that was swapped."""

    name: str
    kind: str  # "Linear" or "Conv1D"
    shape: tuple[int, int]  # (out, in)
    scheme: str
    bits_per_weight: float
    nbytes: int
    error: ErrorStatistics
    tokens: int | None = None  # calibration tokens that reached it; None: none were asked for
    damp: float | None = None  # of its Hessian, as a share of the mean of the diagonal
    damped_more: bool = False  # than the scheme said, because the Hessian was not positive definite
    outlier_columns: int | None = None  # inputs that LLM.int8 keeps in floating point somewhere in the calibration text

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "shape": list(self.shape), "error": self.error.to_dict()}


@dataclass(frozen=True)
class QuantizationReport:
    """What `qkit.quantize` did: the layers it swapped, and what it left and why."""

    scheme: dict[str, Any]
    layers: tuple[LayerReport, ...]
    skipped: tuple[tuple[str, str], ...]  # (name, why)
    seconds: float  # to quantize the layers, calibration included, without measuring their error
    scaling: Scaling = field(default_factory=Scaling)  # the scales that AWQ or SmoothQuant folded in
    warnings: tuple[str, ...] = ()  # layers that calibration did not reach, that it saw too little of, ...

    @property
    def nbytes(self) -> int:
        """Bytes of all swapped weights, scales and zero points included."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def bits_per_weight(self) -> float:
        """Over all swapped weights."""
        return 8 * self.nbytes / sum(layer.shape[0] * layer.shape[1] for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "scheme": self.scheme,
            "seconds": self.seconds,
            "bits_per_weight": self.bits_per_weight,
            "nbytes": self.nbytes,
            "layers": [layer.to_dict() for layer in self.layers],
            "skipped": [list(row) for row in self.skipped],
            "warnings": list(self.warnings),
        }

    def __repr__(self) -> str:
        worst = min(self.layers, key=lambda layer: layer.error.sqnr_db)
        return (
            f"QuantizationReport({self.layers[0].scheme}: {len(self.layers)} layers, {self.bits_per_weight:.2f} bits per "
            f"weight, worst {worst.name} at {worst.error.sqnr_db:.1f} dB, {len(self.skipped)} left as they were)"
        )

    def _repr_html_(self) -> str:
        rows = [
            [
                layer.name,
                f"{layer.shape[0]} x {layer.shape[1]}",
                layer.scheme,
                f"{layer.bits_per_weight:.3f}",
                f"{layer.error.sqnr_db:.1f}",
                f"{layer.error.max_abs:.4f}",
            ]
            for layer in self.layers
        ]
        rows += [[name, "", f"left: {why}", "", "", ""] for name, why in self.skipped]
        header = ["layer", "out x in", "scheme", "bits per weight", "SQNR (dB)", "largest error"]
        return html_table(header, rows, repr(self))


@dataclass(frozen=True)
class ComparisonRow:
    """One model of a comparison."""

    name: str
    scheme: dict[str, Any] | None  # None: the original
    perplexity: float
    kl: float  # nats per token, from the original
    disk_bytes: int
    memory_bytes: int  # while it computes
    bits_per_weight: float  # over the quantized layers
    compression: float  # bytes of the original in FP32 / disk_bytes
    seconds: float  # to quantize
    report: QuantizationReport | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without the layers."""
        row = {key: value for key, value in vars(self).items() if key != "report"}
        return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in row.items()}

    def cells(self) -> list[str]:
        """As the table prints it."""
        return [
            self.name,
            f"{self.perplexity:.2f}" if self.perplexity < 1e4 else f"{self.perplexity:.1e}",
            f"{self.kl:.4f}",
            f"{self.disk_bytes / 1e6:.1f}",
            f"{self.bits_per_weight:.2f}",
            f"{self.compression:.1f}x",
            f"{self.seconds:.2f}",
        ]


@dataclass(frozen=True)
class Comparison:
    """What `qkit.compare` measured."""

    model: str
    text: str
    tokens: int  # predicted tokens, the same for every row
    rows: tuple[ComparisonRow, ...]

    header = ("", "perplexity", "KL (nats)", "MB on disk", "bits per weight", "compression", "seconds")

    @property
    def caption(self) -> str:
        """What was measured on what."""
        return f"{self.model} on {self.text}, {self.tokens:,} tokens"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        rows = [row.to_dict() for row in self.rows]
        return {"model": self.model, "text": self.text, "tokens": self.tokens, "rows": rows}

    def __repr__(self) -> str:
        best, worst = (f(self.rows, key=lambda row: row.perplexity) for f in (min, max))
        return (
            f"Comparison({self.caption}: {len(self.rows)} models, perplexity {best.perplexity:.2f} ({best.name}) "
            f"to {worst.perplexity:.2f} ({worst.name}))"
        )

    def _repr_html_(self) -> str:
        return html_table(list(self.header), [row.cells() for row in self.rows], self.caption)
