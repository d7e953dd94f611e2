"""The README says nothing that a command does not show."""

import importlib.util
import re
from itertools import pairwise
from pathlib import Path

import pytest

import house
import qkit
import who_loads
from qkit.bench.judged import judged
from qkit.bench.methods import methods, table
from qkit.checkpoints.formats import FORMATS

ROOT = Path(__file__).parents[1]
PAGES = [
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "benchmarks/results/*.md", "data/*/*.md", "lessons/*.md")
    for path in sorted(ROOT.glob(pattern))
]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.exhaustive
def test_its_table_is_what_compare_measures():
    printed = {}
    for line in README.splitlines():
        if match := re.match(r" (FP32|RTN W\d (?:per channel|g\d+)) +(.*)$", line):
            printed[match[1]] = match[2].split()
    comparison = qkit.compare("bookworm-14m")
    assert comparison.caption in README and not comparison.ties()
    measured = {row.name: row.cells()[1:] for row in comparison.rows}
    assert list(printed) == list(measured)
    for name, cells in measured.items():
        for said, found in zip(printed[name][:2], cells[:2], strict=True):
            # The last printed digit may turn with the order in which a CPU adds; seconds are a machine's own.
            (value, error), (here, about) = (map(float, re.findall(r"[\d.]+", f"{one}±0")[:2]) for one in (said, found))
            assert value == pytest.approx(here, rel=2e-2, abs=2e-3) and error == pytest.approx(about, rel=0.1, abs=2e-3)
        assert printed[name][2:5] == cells[2:5], name


@pytest.mark.parametrize("page", PAGES)
def test_every_row_of_a_table_has_the_columns_of_its_head(page):
    """A line that is no row ends a table, and the page shows what follows as text."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    for before, line in pairwise(lines):
        if re.match(r"\s*\|", line) and re.match(r"\s*\|", before):
            assert cells_in(line) == cells_in(before), line
        assert line.strip() != "|", before


def cells_in(row: str) -> int:
    """How many cells a row of a table has; a bar within code, or behind a backslash, parts nothing."""
    return len(re.findall(r"(?<!\\)\|", re.sub(r"`[^`]*`", "", row)))


def test_its_table_of_smollm2_is_that_of_the_results():
    def table(text: str) -> dict[str, list[str]]:
        """Name: (bits, perplexity, KL); the results have megabytes between."""
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if " ± " in line]
        return {row[0]: [row[1], *row[-2:]] for row in rows if len(row) > 3}

    measured = table((ROOT / "benchmarks" / "results" / "smollm2-2026-11-29.md").read_text(encoding="utf-8"))
    here = table(README.split("## The same on a model that nobody here made")[1])
    assert len(here) == 15 and all(measured[name] == row for name, row in here.items())
    assert "RTN W4 g32 min-max" in measured and "RTN W4 g32 min-max" not in here  # it says nothing


def test_what_lesson_07_says_of_novels_is_that_of_the_results():
    page = (ROOT / "benchmarks" / "results" / "quality-2026-11-23.md").read_text(encoding="utf-8")
    ratios = {"LLM.int8": 1.0016, "AWQ W4 g128": 1.044, "GPTQ W3 g128": 1.1096}
    for name, ratio in ratios.items():
        assert re.search(rf"{re.escape(name)}\D.*{ratio}", page), name
    kept = [f"{100 / ratio:.1f}" for ratio in ratios.values()]
    lesson = (ROOT / "lessons" / "07_choosing_a_method.ipynb").read_text(encoding="utf-8")
    assert kept == ["99.8", "95.8", "90.1"] and lesson.count("99.8, 95.8 and 90.1%") == 2


def test_its_table_of_methods_is_that_of_the_record():
    found = methods().comparison
    written = re.search(r"## What the methods are worth.*?(\| method \|.*?\n)\n", README, re.S)[1]
    names = [line.split("|")[1].strip() for line in written.splitlines()[2:]]  # all 33 are in the page of results
    assert len(names) > 20 and written == table(found, names)
    assert found.caption in re.sub(r"\s+", " ", README)
    page = (ROOT / "benchmarks" / "results" / f"methods-{methods().date}.md").read_text(encoding="utf-8")
    assert table(found) in page and methods().command in page and methods().learned in page
    # "GPTQ leads at 4, 3 and 2 bits"; "by a hair more"; "in one order by KL and in the other by perplexity"
    pairs = [("AWQ W4 g128", "GPTQ W4 g128"), ("NF4 b64 dq", "GPTQ W4 g128"), ("AWQ W3 g128", "GPTQ W3 g128")]
    pairs += [("AWQ W2 g64", "GPTQ W2 g64"), ("GPTQ W4 g128", "AWQ W4 g128 + GPTQ"), ("AWQ W4 g128", "NF4 b64 dq")]
    more = [found.difference(*pair) for pair in pairs] + [found.difference("NF4 b64 dq", "AWQ W4 g128", "nll")]
    assert all(one.mean > 0 and not one.is_tie for one in more) and more[4].mean < 0.002


def test_its_table_of_who_loads_what_is_that_of_the_record():
    assert who_loads.quoted(README) == who_loads.table(judged())  # make claims
    shelf = re.search(r"\| format \| qkit writes \|.*?\n\n", README, re.S)[0]
    assert re.findall(r"^\| `([\w-]+)`", shelf, re.M) == list(FORMATS)


def test_its_lines_of_library_use_run_as_they_stand(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", README, re.S)[1]
    assert len(code.strip().splitlines()) <= 6
    exec(compile(code, "README.md", "exec"), {})
    assert "QuantizationReport(NF4 b64 dq: 56 layers" in capsys.readouterr().out
    assert qkit.load("small")[1] is not None


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_its_links_and_pictures_exist(page):
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S)  # quoted, no links
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert (ROOT / target).is_file(), target


def test_what_moved_is_where_the_changelog_says():
    """`qkit.a.b` is a place; `.c` after it stands beside b."""
    rows = re.findall(r"^\| `[^|]+\| ([^|]+) \|$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    places = []
    for row in rows:
        for word in re.findall(r"`(qkit\.[\w.]+|\.\w+)`", row):
            places.append(places[-1].rpartition(".")[0] + word if word.startswith(".") else word)
    assert len(places) > 40
    for place in places:
        package, _, name = place.rpartition(".")
        assert (spec := importlib.util.find_spec(package)), place
        assert importlib.util.find_spec(place) or hasattr(importlib.import_module(spec.name), name), place


def test_the_rooms_of_contributing_are_those_of_the_tree():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms = re.findall(r"^(\w+) {2,}\S", re.search(r"## The rooms.*?```\n(.*?)```", page, re.S)[1], re.M)
    floors = house.FLOORS[1:]  # benchmarks and tests are no rooms
    assert rooms[:-1] == [floor[0] for floor in floors[:-1]] and rooms[-1] in floors[-1]


def test_its_shelf_is_the_shelf():
    lessons = sorted(path.name for path in (Path(__file__).parents[1] / "lessons").glob("*.ipynb"))
    shelf = re.search(r"## The lessons(.*?)\n## ", README, re.S)[1]
    assert re.findall(r"\(lessons/([^)]+\.ipynb)\)", shelf) == lessons
