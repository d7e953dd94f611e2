"""What a comparison measured, as frozen records: one line for `print`, a table for a notebook, a dictionary for JSON."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any

from qkit.engine.report import QuantizationReport, html_table
from qkit.study.evaluate import Passage, difference
from qkit.study.paired import Estimate


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
    kl_error: float  # one standard error over passages
    ratio: float  # perplexity / perplexity of the original
    ratio_error: float  # one standard error of it, paired over passages
    passages: tuple[Passage, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without the layers."""
        row = {key: value for key, value in vars(self).items() if key not in ("report", "passages")}
        row = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in row.items()}
        return row | {"passages": [vars(passage) for passage in self.passages]}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "ComparisonRow":
        """The inverse of `to_dict`, without the report; what JSON has no number for was infinite, of an error unknown."""
        unknown = {
            "perplexity": math.inf,
            "kl": math.inf,
            "ratio": math.inf,
            "kl_error": math.nan,
            "ratio_error": math.nan,
        }
        known = {key: unknown.get(key) if value is None else value for key, value in record.items()}
        passages = tuple(Passage(**passage) for passage in record["passages"])
        return cls(**{**known, "report": None, "passages": passages})

    def cells(self) -> list[str]:
        """As the table prints it."""
        original = self.scheme is None
        return [
            self.name,
            "0" if original else with_error(self.kl, self.kl_error, 4),
            f"{self.perplexity:.2f}" if original else f"×{with_error(self.ratio, self.ratio_error, 3)}",
            f"{self.disk_bytes / 1e6:.1f}",
            f"{self.bits_per_weight:.2f}",
            f"{self.compression:.1f}x",
            f"{self.seconds:.2f}",
        ]


def with_error(value: float, error: float, digits: int) -> str:
    """As in 0.4551±0.0123; without an error where there is none, and in powers of ten where digits say nothing."""
    if not value < 1e4:
        return f"{value:.1e}"
    return f"{value:.{digits}f}" if math.isnan(error) else f"{value:.{digits}f}±{error:.{digits}f}"


@dataclass(frozen=True)
class Table:
    """Rows of words under a header: lines for `print`, a table for a notebook."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        lines = (self.header, *self.rows)
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        aligned = ("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)
        return "\n".join([self.caption, *aligned, *self.notes])

    def _repr_html_(self) -> str:
        table = html_table(list(self.header), [list(row) for row in self.rows], self.caption)
        return table + "".join(f"<p>{escape(note)}</p>" for note in self.notes)


@dataclass(frozen=True)
class Comparison:
    """What `qkit.compare` measured."""

    model: str
    text: str
    tokens: int  # predicted tokens, the same for every row
    rows: tuple[ComparisonRow, ...]

    header = ("", "KL (nats)", "perplexity", "MB on disk", "bits per weight", "times smaller", "s")

    @property
    def caption(self) -> str:
        """What was measured on what."""
        passages = len(self.rows[0].passages)
        return f"{self.model} on {self.text}, {self.tokens:,} tokens" + f" in {passages} passages" * (passages > 1)

    def difference(self, name: str, other: str, measure: str = "kl") -> Estimate:
        """How much more `name` loses than `other`, over the same passages, with its paired standard error.

        Args:
            name, other: rows of the table.
            measure: "kl", nats per token; or "nll", the difference of log perplexities, whose exp is the ratio.

        Raises:
            ValueError: a row or a measure that is not there.
        """
        rows = {row.name: row for row in self.rows}
        for one in (name, other):
            if one not in rows:
                raise ValueError(f"no row is called {one!r}; there are {', '.join(rows)}")
        return difference(rows[name].passages, rows[other].passages, measure)

    def ties(self, measure: str = "kl") -> list[tuple[str, str]]:
        """Neighbours in the order of a measure, best first, that these passages do not tell apart: two standard errors."""
        quantized = [row for row in self.rows if row.scheme is not None]
        order = sorted(quantized, key=lambda row: row.kl if measure == "kl" else row.ratio)
        return [(a.name, b.name) for a, b in pairwise(order) if self.difference(b.name, a.name, measure).is_tie]

    @property
    def notes(self) -> list[str]:
        """What stands below the table: how its errors were taken, and what they leave open."""
        if len(self.rows[0].passages) < 2:
            return ["One passage has no standard error: give more text before ranking anything."]
        ties = [f"{a} and {b}" for a, b in self.ties()]
        return [
            "± is one standard error over passages, of the ratio a paired one.",
            *([f"Ties in KL, within two standard errors of the difference: {'; '.join(ties)}."] if ties else []),
        ]

    @property
    def table(self) -> Table:
        """All that was measured."""
        rows = tuple(tuple(row.cells()) for row in self.rows)
        return Table(self.caption, self.header, rows, tuple(self.notes))

    def without_seconds(self) -> Table:
        """What every machine measures alike, to the digits that are printed: all but the seconds."""
        whole = self.table
        return Table(whole.caption, whole.header[:-1], tuple(row[:-1] for row in whole.rows), whole.notes)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        rows = [row.to_dict() for row in self.rows]
        return {"model": self.model, "text": self.text, "tokens": self.tokens, "rows": rows, "ties": self.ties()}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Comparison":
        """The inverse of `to_dict`, without the reports."""
        rows = tuple(ComparisonRow.from_dict(row) for row in record["rows"])
        return cls(record["model"], record["text"], record["tokens"], rows)

    def __repr__(self) -> str:
        best, worst = (f(self.rows, key=lambda row: row.perplexity) for f in (min, max))
        return (
            f"Comparison({self.caption}: {len(self.rows)} models, perplexity {best.perplexity:.2f} ({best.name}) "
            f"to {worst.perplexity:.2f} ({worst.name}))"
        )

    def _repr_html_(self) -> str:
        return self.table._repr_html_()
