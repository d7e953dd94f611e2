"""No lesson uses a term of lessons/glossary.md before the cell that explains it, unless it says where that is."""

import json

import pytest

import glossary

TERMS, READ = glossary.terms(), glossary.cells()


@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.name)
def test_a_term_is_explained_before_it_is_used(term):
    assert not glossary.too_early(term, READ), (
        f"explained in {term.cell} (lessons/glossary.md); explain it where it comes first and mend the page, or say `lesson NN`"
    )


@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.name)
def test_a_term_is_used_by_a_lesson(term):
    assert any(term.stands_in(glossary.plain(text)) for _, _, text in READ)


def test_the_page_is_in_order_and_names_each_term_once_in_one_sentence():
    names = [term.name for term in TERMS]
    assert len(names) > 70 and names == sorted(names, key=lambda name: name.lower())
    forms = [form for term in TERMS for form in (term.name, *term.forms)]
    assert len(set(forms)) == len(forms)
    lines = [line for line in glossary.PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| **")]
    assert len(lines) == len(TERMS), "a row that cannot be read"
    assert all(len(term.meaning) < 160 and not term.meaning.endswith(".") for term in TERMS)


def test_what_counts_as_a_use(tmp_path):
    def lesson(name, *texts):
        cells = [{"cell_type": "markdown", "id": f"{name[:2]}-{n}", "source": text} for n, text in enumerate(texts)]
        (tmp_path / name).write_text(json.dumps({"cells": cells}))

    lesson(
        "01_a.ipynb",
        "# A",
        "A warp? `warp` $warp$ [here](warp.md)",
        "warps, says lesson 02",
        "See [B](02_b.ipynb): warps",
    )
    lesson("02_b.ipynb", "# B\n\nwarps", "- warp-wise\n- of a Warp", "A **warp** is 32 lanes.", "warps")
    term = glossary.Term("warp", ("warps",), "32 lanes", "02_b.ipynb", "02-2")
    assert glossary.too_early(term, glossary.cells(tmp_path)) == ["01-1", "02-1"]
    with pytest.raises(ValueError, match=r"warp: 02_b.ipynb has no cell of Markdown 02-9"):
        glossary.too_early(glossary.Term("warp", (), "", "02_b.ipynb", "02-9"), glossary.cells(tmp_path))
