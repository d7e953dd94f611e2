"""Lessons as pages: formulas become pictures, code does not, and nothing is fetched."""

import base64
import html
import json
import re

import pytest

from qkit.plots.lesson_page import formula, lesson_page, main, with_pictures


def test_a_formula_is_a_picture_with_its_tex_as_its_text():
    made = formula(r"y = \sum_k x_k < \text{all}")
    assert made.startswith('<img alt="y = \\sum_k x_k &lt; \\text{all}" src="data:image/svg+xml;base64,')
    svg = base64.b64decode(re.search('base64,([^"]+)', made)[1]).decode()
    assert "<svg" in svg and "<path" in svg and "http://cdn" not in svg
    assert formula("x") == formula("x") and "fill: #ffffff" not in svg
    below = {tex: float(re.search(r"vertical-align: -([\d.]+)pt", formula(tex))[1]) for tex in "xy"}
    assert below["x"] < below["y"]


def test_formulas_are_replaced_and_code_and_prices_are_not():
    text = with_pictures("In `$8` and $x$:\n\n$$\\frac{a}{b}$$\n\nfor 5 \\$ each, `$11`.")
    assert text.count("data:image/svg+xml") == 2 and "`$8`" in text and "`$11`" in text and "5 \\$ each" in text
    assert text.count('style="text-align: center;') == 1


def test_what_cannot_be_set_is_refused():
    with pytest.raises(ValueError, match=r"the formula .* cannot be set"):
        formula(r"\begin{matrix} a \end{matrix}")


def test_a_shelf_becomes_pages_that_fetch_nothing(tmp_path, capsys):
    cells = [{"cell_type": "markdown", "id": "a", "metadata": {}, "source": "# One\n\n$$x^2$$"}]
    (tmp_path / "one.ipynb").write_text(
        json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    )
    main(str(tmp_path), str(tmp_path / "pages"))
    page = (tmp_path / "pages" / "one.html").read_text()
    assert page == lesson_page(tmp_path / "one.ipynb") and "one.html" in capsys.readouterr().out
    assert "$$" not in page.split("<body")[1] and page.count('src="data:image/svg+xml;base64') == 1
    assert not re.search(r"<script[^>]*src=", page)


def test_a_figure_keeps_its_description_whatever_signs_it_has(tmp_path):
    said = "a < b & \"c\" > 'd', 100% | ŵ"
    png = {"image/png": base64.b64encode(b"picture").decode(), "text/plain": "x"}
    metadata = ({"image/png": {"alt": said, "width": 5}}, {})
    shown = [{"output_type": "display_data", "data": png, "metadata": one} for one in metadata]
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "source": "", "execution_count": 1, "outputs": shown}
    (tmp_path / "one.ipynb").write_text(
        json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    )
    images = re.findall(r"<img [^>]*>", lesson_page(tmp_path / "one.ipynb").split("<body")[1])
    assert [html.unescape(re.search(r'alt="([^"]*)"', image)[1]) for image in images] == [said, ""]
    assert all("base64,cGljdHVyZQ==" in image for image in images) and 'width="5"' in images[0]


def test_a_page_of_markdown_is_one_of_them_and_links_lead_from_page_to_page(tmp_path):
    (tmp_path / "table.md").write_text(
        "[the step](01_a.ipynb#cell-id=01-02), [terms](glossary.md), [a](https://a.b/c.md)"
    )
    main(str(tmp_path), str(tmp_path / "pages"))
    page = (tmp_path / "pages" / "table.html").read_text()
    assert re.findall(r'href="([^"]+)"', page.split("<body")[1])[:3] == [
        "01_a.html#cell-id=01-02",
        "glossary.html",
        "https://a.b/c.md",
    ]
