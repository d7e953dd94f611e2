"""The lessons as they are stored, for what reads all of them: their cells, and their prose."""

import json
import re
from pathlib import Path
from typing import Any

SHELF = Path(__file__).parents[2] / "lessons"
CODE = re.compile(r"```.*?```|`[^`]*`", re.S)
FORMULA = re.compile(r"\$\$.*?\$\$|\$[^$\n]+\$", re.S)
NO_PROSE = re.compile(f"{CODE.pattern}|{FORMULA.pattern}", re.S)


def paths(shelf: Path = SHELF) -> list[Path]:
    """The notebooks, in the order of reading."""
    return sorted(shelf.glob("*.ipynb"))


def notebook(path: Path) -> dict[str, Any]:
    """A lesson as it is stored."""
    return json.loads(path.read_text(encoding="utf-8"))


def markdown(lesson: dict[str, Any]) -> list[tuple[str, str]]:
    """(id, text) of its cells of Markdown."""
    return [(cell["id"], "".join(cell["source"])) for cell in lesson["cells"] if cell["cell_type"] == "markdown"]


def plain(text: str) -> str:
    """Markdown without code, formulas and the targets of links."""
    return re.sub(r"\]\([^)]*\)", "]", NO_PROSE.sub(" ", text))
