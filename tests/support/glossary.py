"""The terms of lessons/glossary.md, and where the lessons use them first."""

import re
from dataclasses import dataclass
from pathlib import Path

from shelf import SHELF, markdown, notebook, paths, plain

PAGE = SHELF / "glossary.md"
ROW = re.compile(r"\| \*\*(.+?)\*\*(.*?) \| (.+) \| \[(\d\d)\]\((\d\d_[\w]+\.ipynb)#cell-id=([\w-]+)\) \|$")


@dataclass(frozen=True)
class Term:
    """A row of the page: the word, its other forms, and the cell that explains it."""

    name: str
    forms: tuple[str, ...]
    meaning: str
    lesson: str  # "03_bitsandbytes.ipynb"
    cell: str

    def stands_in(self, text: str) -> bool:
        """Whether the text uses the word; one that has a capital letter is looked for as it is written."""
        words = "|".join(map(re.escape, (self.name, *self.forms)))
        case = 0 if any(c.isupper() for c in self.name) else re.IGNORECASE
        return re.search(rf"(?<![\w-])(?:{words})(?![\w-])", text, case) is not None


def terms(page: Path = PAGE) -> list[Term]:
    """The rows of the page."""
    found = []
    for line in page.read_text(encoding="utf-8").splitlines():
        if row := ROW.match(line):
            forms = tuple(form for form in row[2].split(", ") if form)
            found.append(Term(row[1], forms, row[3], row[5], row[6]))
    return found


def cells(shelf: Path = SHELF) -> list[tuple[str, str, str]]:
    """(lesson, id, text) of every cell of Markdown, in the order of reading."""
    return [(path.name, id, text) for path in paths(shelf) for id, text in markdown(notebook(path))]


def too_early(term: Term, read: list[tuple[str, str, str]]) -> list[str]:
    """The cells before the explaining one that use the word and do not say where it is explained.

    The first cell of the lesson that explains it may use it: it says what one will learn. So may a paragraph that names that
    lesson, or says that a later one will come to it.
    """
    places = [(lesson, id) for lesson, id, _ in read]
    if (term.lesson, term.cell) not in places:
        raise ValueError(f"{term.name}: {term.lesson} has no cell of Markdown {term.cell}; mend lessons/glossary.md")
    found = []
    for at, (lesson, id, text) in enumerate(read[: places.index((term.lesson, term.cell))]):
        heads = at == 0 or read[at - 1][0] != lesson
        if heads and lesson == term.lesson:
            continue
        number = term.lesson[:2]
        for paragraph in re.split(r"\n\s*\n|\n(?=[-*|])", text):
            points = f"({term.lesson}" in paragraph or f"lesson {number}" in paragraph or "later lesson" in paragraph
            if term.stands_in(plain(paragraph)) and not points:
                found.append(id)
                break
    return found


if __name__ == "__main__":
    every = cells()
    for one in terms():
        if early := too_early(one, every):
            print(f"{one.name} ({one.cell}): {', '.join(early)}")
