import argparse
import ast
import dataclasses
import gc
import hashlib
import os
import re
import subprocess
import sys
import typing
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from qkit import passages, texts
from qkit.text import corpora


def is_held_out(topic: str) -> bool:
    return int(hashlib.sha1(topic.encode()).hexdigest(), 16) % 3 == 0


def test_the_held_out_text_is_every_third_topic_by_sha1():
    expected = "\n\n".join(topics[topic].strip() for topic in sorted(topics) if is_held_out(topic))
    assert texts("python-docs-heldout") == expected


@pytest.mark.exhaustive
def test_the_two_texts_do_not_overlap():
    calibration = texts("python-docs")
    long_lines = [line.strip() for line in texts("python-docs-heldout").splitlines() if len(line.strip()) > 60]
    own = "\n".join(topics[topic] for topic in topics if not is_held_out(topic))
    shared = [line for line in long_lines if line in calibration and line not in own]
    # Docstrings may quote a line of the language reference; a topic that leaked would bring all of its lines.
    assert len(shared) < 0.01 * len(long_lines)
    for topic, text in topics.items():
        assert (text.strip() in calibration) == (not is_held_out(topic)), topic


@pytest.mark.exhaustive
def test_the_texts_are_as_large_as_python_makes_them():
    assert 20_000 < len(texts("python-docs-heldout")) < 1_000_000
    assert 500_000 < len(texts("python-docs")) < 20_000_000


@pytest.mark.exhaustive
def test_the_calibration_text_holds_docstrings_of_the_standard_library_and_of_nothing_else():
    calibration = texts("python-docs")
    assert "JSON (JavaScript Object Notation) <https://json.org>" in calibration
    assert "safetensors" not in calibration


def test_the_tales_are_passages_of_plain_prose():
    tales = passages("tales")
    assert len(tales) >= 32 and texts("tales") == "\n\n".join(tales)
    for tale in tales:
        assert len(tale.split()) >= 600 and tale.isascii() and tale == tale.strip() and "\n\n" in tale


@pytest.mark.exhaustive
def test_no_13_words_in_a_row_of_the_tales_stand_elsewhere():
    """Not in Python's documentation, and not in another tale; the books need the books: benchmarks/clean_text.py."""

    def runs(text: str) -> set[tuple[str, ...]]:
        words = re.findall(r"[a-z0-9]+", text.lower())
        return {tuple(words[i : i + 13]) for i in range(len(words) - 12)}

    tales = [runs(tale) for tale in passages("tales")]
    seen = runs(texts("python-docs")) | runs(texts("python-docs-heldout"))
    for tale in tales:
        assert not tale & seen
        seen |= tale


def test_any_other_text_is_one_passage(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("One.\n\nTwo.", encoding="utf-8")
    assert passages(path) == ["One.\n\nTwo."]


def test_a_path_is_read_as_utf_8(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("Grüße, ŵ = s(q - z)\n".encode())
    assert texts(path) == texts(str(path)) == "Grüße, ŵ = s(q - z)\n"


@pytest.mark.parametrize("name", ["python-doc", "wikitext", "", "no/such/file.txt"])
def test_an_unknown_name_is_refused_with_those_that_exist(name):
    with pytest.raises(
        ValueError, match=f"text '{name}' is no file and none of tales, python-docs, python-docs-heldout, wikitext-2"
    ):
        texts(name)


def test_a_folder_is_no_text(tmp_path):
    with pytest.raises(ValueError, match=r"is no file and none of .*; check the path or use a name"):
        texts(tmp_path)


def test_a_file_that_is_not_utf_8_is_refused_by_name(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("Grüße".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt.*UTF-8"):
        texts(path)


def test_wikitext_without_datasets_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        ImportError, match=r"'wikitext-2' needs the package datasets.*pip install 'qkit\[wikitext\]'.*tales"
    ):
        texts("wikitext-2")


def test_the_calibration_text_does_not_depend_on_the_locale(tmp_path):
    """As on Windows, where files are read in a code page unless their encoding is said."""
    sentence = "Ångström, naïve and ŵ are words of this docstring. " * 4
    (tmp_path / "module.py").write_text(f'"""{sentence}"""\n', encoding="utf-8")
    script = (
        f"import os; os.__file__ = {str(tmp_path / 'os.py')!r}; import qkit; print(ascii(qkit.texts('python-docs')))"
    )
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    shown = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert ascii(sentence.strip())[1:-1] in shown.stdout


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="another minor version ships other words")
def test_as_much_of_the_held_out_text_was_trained_on_as_the_docstring_says():
    seen, words = texts("python-docs").split(), texts("python-docs-heldout").split()
    runs = {tuple(seen[i : i + 13]) for i in range(len(seen) - 12)}
    repeated = {j for i in range(len(words) - 12) if tuple(words[i : i + 13]) in runs for j in range(i, i + 13)}
    assert len(repeated) / len(words) == pytest.approx(0.62, abs=0.01)


SOURCE = """
'module'
import os
if os:
    def in_if(): 'in_if'
else:
    class InElse:
        'InElse'
        async def unseen(self):
            'unseen'
            def in_unseen(): 'in_unseen'
        def method(self):
            'method'
            with os as x:
                def in_with(): 'in_with'
            return lambda: 'no docstring'
try:
    def in_try(): 'in_try'
except OSError:
    def in_except(): 'in_except'
else:
    def in_try_else(): 'in_try_else'
finally:
    def in_finally(): 'in_finally'
for i in (x if x else y for x in os):
    def in_for(): 'in_for'
while os:
    def in_while(): 'in_while'
match os:
    case 1:
        def in_case(): 'in_case'
    case _:
        def without(): pass
"""


def test_docstrings_come_in_the_order_in_which_ast_walks():
    """The text is what bookworm was trained on: another order would be another text."""
    tree = ast.parse(SOURCE)
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    expected = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]
    assert list(corpora._docstrings(tree)) == expected and len(expected) == 14 and expected.count("") == 1
    for module in (argparse, ast, dataclasses, typing):
        tree = ast.parse(Path(module.__file__).read_bytes())
        expected = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]
        assert list(corpora._docstrings(tree)) == expected and len(expected) > 20


@pytest.mark.parametrize("collects", [True, False])
def test_the_collector_is_left_as_it_was(collects):
    before = gc.isenabled()
    (gc.enable if collects else gc.disable)()
    try:
        with corpora._uncollected():
            assert not gc.isenabled()
        assert gc.isenabled() is collects
        with pytest.raises(ZeroDivisionError), corpora._uncollected():
            _ = 1 / 0
        assert gc.isenabled() is collects
    finally:
        (gc.enable if before else gc.disable)()
