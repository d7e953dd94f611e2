"""What happened, as frozen records: one line for `print`, a table for a notebook, a dictionary for JSON."""

from collections.abc import Mapping
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
    notes: Mapping[str, Any] = field(
        default_factory=dict
    )  # what its method alone reports, e.g. "damp"; read as attributes

    def __getattr__(self, name: str) -> Any:
        """A note, as if it were a field."""
        if name in (notes := self.__dict__.get("notes", {})):
            return notes[name]
        raise AttributeError(
            f"{self.__dict__.get('scheme')} reports no {name}; its notes: {', '.join(notes) or 'none'}"
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "shape": list(self.shape), "error": self.error.to_dict(), "notes": dict(self.notes)}


@dataclass(frozen=True)
class QuantizationReport:
    """What `qkit.quantize` did: the layers it swapped, and what it left and why."""

    scheme: dict[str, Any]
    layers: tuple[LayerReport, ...]
    skipped: tuple[tuple[str, str], ...]  # (name, why)
    seconds: float  # to quantize the layers, calibration included, without measuring their error
    scaling: Scaling = field(default_factory=Scaling)  # the scales that were folded in before rounding
    warnings: tuple[str, ...] = ()  # layers that calibration did not reach, that it saw too little of, ...
    share: float = 1.0  # of all numbers that the model computes with, those in swapped layers

    @property
    def label(self) -> str:
        """The scheme's name; those of all that were used, where a plan gave several."""
        return " + ".join(dict.fromkeys(layer.scheme for layer in self.layers))

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
            "share": self.share,
            "layers": [layer.to_dict() for layer in self.layers],
            "skipped": [list(row) for row in self.skipped],
            "warnings": list(self.warnings),
        }

    def __repr__(self) -> str:
        worst = min(self.layers, key=lambda layer: layer.error.sqnr_db)
        return (
            f"QuantizationReport({self.label}: {len(self.layers)} layers, {self.bits_per_weight:.2f} bits per "
            f"weight, worst {worst.name} at {worst.error.sqnr_db:.1f} dB, {len(self.skipped)} left as they were; "
            f"{self.share:.0%} of all weights quantized)"
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
