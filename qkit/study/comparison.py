"""What a comparison measured, as frozen records: one line for `print`, a table for a notebook, a dictionary for JSON."""

import math
from dataclasses import dataclass
from typing import Any

from qkit.engine.report import QuantizationReport, html_table


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
