"""The ledger of claims: every claim that a lesson holds against a measurement, with the cell that does it.

A code cell says so in its metadata:

    {"qkit": {"claims": {"N13": {"claim": "...", "verdict": "corrected", "source": "newsletter"}}}}

Ids beginning with N are the newsletter's, the others are ours or a paper's. One id is one claim, in the same words wherever
it stands; several cells may look at it from several sides, each with a verdict of its own.

    python tests/support/claims.py          writes lessons/claims.md
"""

from dataclasses import dataclass
from pathlib import Path

from shelf import SHELF, notebook, paths

VERDICTS = ("confirmed", "bounded", "corrected", "not measured")

PREFACE = """# What is claimed, and what was measured

Every claim that these lessons hold against a measurement, and the cell that does it: the link opens the lesson, in JupyterLab
at that cell. N01 to N30 are those of the newsletter that this course grew from (in Korean, August 2025); Q ids are claims of
papers and of our own. *Confirmed* and *corrected* mean what they say; *bounded*: true within limits, which the cell measures
or computes; *not measured*: what it would take is said there. A claim with several verdicts was looked at from several sides.

This page is made of the cells' metadata by `make claims`; a test compares the two.

| id | claim | verdict | source |
|---|---|---|---|
"""


@dataclass(frozen=True)
class Shown:
    """One claim at one code cell."""

    id: str
    claim: str
    verdict: str
    source: str
    lesson: str  # the notebook's file name
    cell: str  # the cell's id
    code: str
    outputs: int  # how many the cell stores

    @property
    def link(self) -> str:
        """The verdict and where it was reached, in Markdown."""
        return f"{self.verdict} ([{self.cell}]({self.lesson}#cell-id={self.cell}))"


def claims_of(shelf: Path = SHELF) -> list[Shown]:
    """All claims of the notebooks in `shelf`, in the order in which a reader meets them.

    Raises:
        KeyError: a claim lacks its text, its verdict or its source.
    """
    found = []
    for path in paths(shelf):
        for cell in notebook(path)["cells"]:
            for id, record in cell["metadata"].get("qkit", {}).get("claims", {}).items():
                words = (record["claim"], record["verdict"], record["source"])
                place = (path.name, cell["id"], "".join(cell["source"]), len(cell.get("outputs", ())))
                found.append(Shown(id, *words, *place))
    return found


def ledger(shelf: Path = SHELF) -> str:
    """The whole page: a row an id, with every cell that speaks of it."""
    rows: dict[str, list[Shown]] = {}
    for shown in claims_of(shelf):
        rows.setdefault(shown.id, []).append(shown)
    lines = []
    for id in sorted(rows):
        first, links = rows[id][0], ", ".join(shown.link for shown in rows[id])
        lines.append(f"| {id} | {_cell(first.claim)} | {links} | {_cell(first.source)} |\n")
    return PREFACE + "".join(lines)


def _cell(text: str) -> str:
    """Text that cannot end its table cell."""
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    (SHELF / "claims.md").write_text(ledger(), encoding="utf-8")
