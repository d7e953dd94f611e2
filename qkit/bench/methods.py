"""Methods and settings on the tales: `data/measured/methods.json`, what README's table and lesson 07 are made of.

`benchmarks/methods.py` writes it from what `qkit compare --json` printed: for each scheme and each passage the mean KL and the
mean negative log-likelihood, so that any two schemes can be compared passage by passage.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qkit.study.comparison import Comparison, ComparisonRow, with_error
from qkit.text.resources import folder


@dataclass(frozen=True)
class Methods:
    """One run.

    Attributes:
        command: what printed it.
        learned: what the methods that need data learned from, in words.
        date: of the run.
        cpu: of the machine.
        versions: of the packages that took part.
        comparison: what it measured.
    """

    command: str
    learned: str
    date: str
    cpu: str
    versions: Mapping[str, str]
    comparison: Comparison

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Methods":
        """What the file holds."""
        return cls(**{**record, "comparison": Comparison.from_dict(record["comparison"])})


def methods(path: Path | None = None) -> Methods:
    """The record that comes with qkit, or another file of the kind."""
    place = path or folder("data") / "measured" / "methods.json"
    return Methods.from_dict(json.loads(place.read_text(encoding="utf-8")))


WIDTHS = ((6, "8 bits"), (3.6, "4 bits"), (2.6, "3 bits"), (0, "2 bits"))  # (from so many stored bits on, their name)
HEAD = """| method | bits per weight | KL (nats) | times FP32's perplexity | KL more than the row above |
|---|---|---|---|---|
"""


def width(row: ComparisonRow) -> str:
    """Which of `WIDTHS` a row belongs to: schemes are compared with those of as many bits."""
    return next(name for least, name in WIDTHS if row.bits_per_weight > least)


def ranked(comparison: Comparison, names: Collection[str] | None = None) -> dict[str, list[ComparisonRow]]:
    """By width the rows (of `names`, or all) but the original, the least KL first."""
    rows = [row for row in comparison.rows if row.scheme is not None and (names is None or row.name in names)]
    return {
        name: of_width
        for _, name in WIDTHS
        if (of_width := sorted((row for row in rows if width(row) == name), key=lambda row: row.kl))
    }


def table(comparison: Comparison, names: Collection[str] | None = None) -> str:
    """`ranked` in Markdown: KL and perplexity with one standard error, and by how much a row loses more than the one above it.

    The last column is paired over passages; what lies within two standard errors of nothing is called a tie. A width begins
    anew: its first row is compared with none.
    """
    lines = []
    for rows in ranked(comparison, names).values():
        for above, row in zip([None, *rows], rows, strict=False):
            kl = with_error(row.kl, row.kl_error, 4)
            ratio = with_error(row.ratio, row.ratio_error, 3)
            cells = (row.name, f"{row.bits_per_weight:.2f}", kl, ratio, _more(comparison, row, above))
            lines.append("| " + " | ".join(cells).replace("±", " ± ") + " |\n")
    return HEAD + "".join(lines)


def _more(comparison: Comparison, row: ComparisonRow, above: ComparisonRow | None) -> str:
    if above is None:
        return ""
    found = comparison.difference(row.name, above.name)
    return with_error(found.mean, found.error, 4) + (", a tie" if found.is_tie else "")
