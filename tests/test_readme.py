"""The README says nothing that a command does not show."""

import re
import sys
from pathlib import Path

import pytest

import qkit

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="another minor version of Python ships other words")
@pytest.mark.exhaustive
def test_its_table_is_what_compare_measures():
    printed = {}
    for line in README.splitlines():
        if match := re.match(r" (FP32|RTN W\d (?:per channel|g\d+)) +(.*)$", line):
            printed[match[1]] = match[2].split()
    comparison = qkit.compare("bookworm-14m")
    assert f"{comparison.tokens:,} tokens" in README
    measured = {row.name: row.cells()[1:] for row in comparison.rows}
    assert list(printed) == list(measured)
    for name, cells in measured.items():
        perplexity, kl = float(cells[0]), float(cells[1])
        # The last printed digit may turn with the order in which a CPU adds; seconds are a machine's own.
        assert float(printed[name][0]) == pytest.approx(perplexity, rel=2e-3), name
        assert float(printed[name][1]) == pytest.approx(kl, rel=2e-2, abs=2e-4), name
        assert printed[name][2:5] == cells[2:5], name


def test_its_lines_of_library_use_run_as_they_stand(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", README, re.S)[1]
    assert len(code.strip().splitlines()) <= 6
    exec(compile(code, "README.md", "exec"), {})
    assert "QuantizationReport(NF4 b64 dq: 56 layers" in capsys.readouterr().out
    assert qkit.load("small")[1] is not None


def test_its_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (Path(__file__).parents[1] / target).is_file(), target


def test_its_shelf_is_the_shelf():
    lessons = sorted(path.name for path in (Path(__file__).parents[1] / "lessons").glob("*.ipynb"))
    shelf = re.search(r"## The lessons(.*?)\n## ", README, re.S)[1]
    assert re.findall(r"\(lessons/([^)]+)\)", shelf) == lessons
