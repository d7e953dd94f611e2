"""One symbol is one thing: every formula of the lessons uses those of lessons/notation.md, and none before it is defined."""

import pytest

import notation
import shelf
from qkit.plots.lesson_page import lesson_page

LESSONS = shelf.paths()
TABLE = notation.table()


@pytest.mark.parametrize(
    ("tex", "found"),
    [
        (r"w_{nk} \approx s_{ng}(q_{nk} - z_{n,g+1})", "w n k s g q z"),
        (r"\hat{W} X^\top + \hat w_n", r"\hat W|X|\hat w|n"),
        (r"s_x \cdot q_{\max} - s_{x,t}", r"s_{x}|q_{\max}|t"),
        (r"\max_{k} |x_{tk}| \mathrm{se} \sqrt{2^{10}}", "k x t"),
        (r"D_{KL}(p\,\|\,\hat p) \text{ of } \bar{\delta}_i", r"D_{KL}|p|\hat p|\bar \delta|i"),
        (r"b_{\mathrm{index}} / N", r"b_{\mathrm{index}}|N"),
        (r"\mathcal{L} = \foo^{T}", r"\mathcal L|\foo|T"),
    ],
)
def test_symbols_are_read_from_tex(tex, found):
    assert notation.symbols(tex) == set(found.split("|" if "|" in found else " "))


def test_code_holds_no_formula():
    assert notation.formulas("`$8` and $x$, `$11`\n\n```\n$y$\n```\n$$z$$") == ["x", "z"]


def test_the_table_defines_each_index_and_each_symbol_once(tmp_path):
    assert set(notation.INDICES) <= set(TABLE)
    (tmp_path / "two.md").write_text("| $s$ | a | | [01](01_a.ipynb) |\n| $s_n$ | b | | [01](01_a.ipynb) |\n")
    with pytest.raises(ValueError, match="s stands in two rows"):
        notation.table(tmp_path / "two.md")


def test_every_row_is_used_by_a_lesson():
    used = {symbol for lesson in LESSONS for symbol in notation.used(lesson)}
    assert not set(TABLE) - used - set(notation.INDICES)


def test_the_page_itself_uses_its_own_symbols_only():
    text = notation.PAGE.read_text(encoding="utf-8")
    assert {symbol for tex in notation.formulas(text) for symbol in notation.symbols(tex)} <= set(TABLE)


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_uses_symbols_of_the_table_and_none_before_it_is_defined(lesson):
    used, number = notation.used(lesson), lesson.name[:2]
    unknown = {symbol: cell for symbol, cell in used.items() if symbol not in TABLE}
    assert not unknown, (
        f"{unknown} (symbol: cell) stand in no row of lessons/notation.md; use its symbols, or add a row"
    )
    early = {symbol: (cell, TABLE[symbol]) for symbol, cell in used.items() if number < TABLE[symbol]}
    assert not early, f"{early} (symbol: cell, lesson of the table) are used before they are defined; mend either"


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_with_formulas_links_to_the_table(lesson):
    if notation.used(lesson):
        assert "](notation.md)" in lesson.read_text(encoding="utf-8"), "link to [the table of symbols](notation.md)"


def test_its_formulas_are_set_on_the_page_of_html():
    page = lesson_page(notation.PAGE)
    asked = len(notation.formulas(notation.PAGE.read_text(encoding="utf-8")))
    assert page.count('src="data:image/svg+xml;base64') == asked > 100 and 'href="01_fp32_to_int8.html"' in page
