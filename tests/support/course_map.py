"""The course map, lessons/README.md: what the lessons' first cells say of themselves, put together.

    python tests/support/course_map.py          writes it (so does make claims)

A lesson's first cell is the one source of its minutes and of what it needs: "After these 35 minutes you can ...", and the lessons
that the paragraph "You need" links to.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from shelf import SHELF, notebook, paths

PAGE = SHELF / "README.md"

# The ways through: how long one has (minutes), what for, its lessons; the shortest leaves the exercises for later
WAYS = {
    "An hour": (60, "to know what is done to a model and what it costs; the exercises can wait", ("00", "01")),
    "Half a day": (
        270,
        "to choose a method for a model of your own, and to have looked into the one that learns most from a text",
        ("00", "01", "02", "04", "07"),
    ),
    "Two days": (
        660,
        "everything, in the order of the numbers; the first day ends with 05",
        tuple(f"{n:02}" for n in range(11)),
    ),
}

HEAD = """# Course map

Eleven lessons, one model, no GPU and no network. Beside them lie [the symbols](notation.md), [the terms](glossary.md) and
[the ledger](claims.md) of what was claimed and what was measured.

This page is made of the lessons' first cells by `make claims`; a test compares the two.

"""


@dataclass(frozen=True)
class Lesson:
    """What the first cell of a notebook says: minutes in all, of reading and of exercises; `needs` are numbers, "02"."""

    file: str
    title: str
    minutes: int
    reading: int
    exercises: int
    needs: tuple[str, ...]
    goals: tuple[str, ...]

    @property
    def number(self) -> str:
        """Its number on the shelf."""
        return self.file[:2]

    @property
    def link(self) -> str:
        """Its title, as a link."""
        return f"[{self.title}]({self.file})"


def lessons(shelf: Path = SHELF) -> list[Lesson]:
    """All of the shelf.

    Raises:
        ValueError: a first cell does not say its minutes or what the lesson needs.
    """
    found = []
    for path in paths(shelf):
        text = "".join(notebook(path)["cells"][0]["source"])
        title = re.match(r"# (.+)", text)
        after = re.search(r"\*\*After these (\d+) minutes you can\*\*(.+)", text)
        needs = re.search(r"\*\*You need\*\*(.+)", text)
        practice = re.search(r"(\d+) minutes of reading and trying, (\d+) of exercises", text)
        if not (title and after and needs and practice):
            raise ValueError(f"the first cell of {path.name} lacks its title, its minutes or what it needs")
        numbers = tuple(dict.fromkeys(n for n in re.findall(r"\]\((\d\d)_[^)]*\.ipynb\)", needs[1])))
        goals = tuple(goal.strip().rstrip(".") for goal in after[2].split(" · "))
        times = (int(after[1]), int(practice[1]), int(practice[2]))
        found.append(Lesson(path.name, title[1], *times, numbers, goals))
    return found


def page(shelf: list[Lesson]) -> str:
    """The whole page."""
    by_number = {lesson.number: lesson for lesson in shelf}
    lines = [HEAD, "## Three ways through\n\n"]
    for name, (_, purpose, way) in WAYS.items():
        minutes = time_of(name, shelf)
        lines.append(f"- **{name}** ({_time(minutes)}): {_way(way, by_number)}. {purpose[0].upper()}{purpose[1:]}.\n")
    lines.append(
        "\nTwo roads lead off: to whoever writes kernels 08 and 09, to whoever loads others' files 10; both after 03.\n"
    )
    lines.append("\n## What depends on what\n\nA lesson stands below the last one that it needs.\n\n")
    lines.extend(_tree(shelf, ""))
    lines.append(
        "\n## The lessons\n\n| lesson | minutes | of them exercises | needs | you can afterwards |\n|---|---|---|---|---|\n"
    )
    for lesson in shelf:
        needs = ", ".join(lesson.needs) or "Python"
        goals = " · ".join(lesson.goals).replace("|", "\\|")
        lines.append(f"| {lesson.link} | {lesson.minutes} | {lesson.exercises} | {needs} | {goals} |\n")
    total = sum(lesson.minutes for lesson in shelf)
    lines.append(
        f"\nIn all {_time(total)}, of which {_time(sum(lesson.exercises for lesson in shelf))} of exercises.\n"
    )
    return "".join(lines)


def time_of(name: str, shelf: list[Lesson]) -> int:
    """The minutes of a way through."""
    limit, _, way = WAYS[name]
    return sum(lesson.minutes - lesson.exercises * (limit <= 60) for lesson in shelf if lesson.number in way)


def _way(way: tuple[str, ...], by_number: dict[str, Lesson]) -> str:
    if len(way) == len(by_number):
        return f"{way[0]} to {way[-1]}"
    return ", ".join(f"[{number}]({by_number[number].file})" for number in way)


def _tree(shelf: list[Lesson], above: str, depth: int = 0) -> list[str]:
    lines = []
    for lesson in shelf:
        if max(lesson.needs, default="") == above:
            also = [number for number in lesson.needs if number != above]
            note = f" (and {', '.join(also)})" if also else ""
            lines.append(f"{'  ' * depth}- {lesson.link}{note}\n")
            lines.extend(_tree(shelf, lesson.number, depth + 1))
    return lines


def _time(minutes: int) -> str:
    hours, rest = divmod(minutes, 60)
    words = [f"{hours} h"] * bool(hours) + [f"{rest} min"] * bool(rest)
    return " ".join(words) or "0 min"


if __name__ == "__main__":
    PAGE.write_text(page(lessons()), encoding="utf-8")
