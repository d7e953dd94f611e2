"""The page of a comparison stands alone."""

import re

import qkit
from qkit.plots.page import write_page


def test_it_holds_every_number_of_the_table_and_loads_nothing(llama, ids, tmp_path):
    comparison = qkit.compare(llama, [qkit.RTN(bits=4)], ids, text_name="<a & b>")
    page, picture = write_page(comparison, tmp_path / "made" / "here")
    html = page.read_text()
    for row in comparison.rows:
        assert all(f"<td>{cell}</td>" in html for cell in row.cells())
    assert all(note in html for note in comparison.notes) and "±" in html
    assert "&lt;a &amp; b&gt;" in html and "<a & b>" not in html
    assert not re.search(r'(src|href)="(?!data:)', html) and "<script" not in html
    assert re.search(r'<img src="data:image/png;base64,[^"]+" alt="Perplexity against megabytes', html)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in page.parent.iterdir()) == ["compare.html", "compare.png"]


def test_written_again_it_replaces_the_old_page(llama, ids, tmp_path):
    for bits in (8, 3):
        page, _ = write_page(qkit.compare(llama, [qkit.RTN(bits=bits)], ids), tmp_path)
    assert "RTN W3" in page.read_text() and "RTN W8" not in page.read_text()
