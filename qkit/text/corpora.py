"""Real text that is present on every machine with Python, and the doors to other text.

CPython ships megabytes of English documentation: the docstrings of its standard library, and `pydoc_data.topics`, the
language reference that `help("topic")` prints. Nobody here wrote it, and no network is needed for it. bookworm-14m was
trained on what "python-docs" returns; the topics that "python-docs-heldout" returns were held out.

Held out by name, that is: Python's topics repeat each other. Of the words of "python-docs-heldout" (CPython 3.11) 62% lie
in runs of 13 words that also stand in "python-docs", nearly all of them in six topics ("class" stands whole in
"compound"). So it is kept for showing what a recited text does to a measurement, and nothing is judged on it. Another minor
version of Python ships slightly other words: compare within one version.

What is judged is judged on "tales": short prose in several voices, written for qkit when the model had been trained. None of
it stands in any text that a model was trained on before it was published here (data/tales/README.md says how that was
checked, and what each passage's perplexity is).
"""

import ast
import gc
import hashlib
import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics

from qkit.text.resources import expanded, folder

NAMES = ("tales", "python-docs", "python-docs-heldout", "wikitext-2")
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "idlelib", "lib2to3", "__pycache__", "pydoc_data"}
BLOCKS = {"body", "handlers", "orelse", "finalbody", "cases"}  # where a statement has others inside


def texts(name_or_path: str | os.PathLike) -> str:
    """A text by name, or the contents of a UTF-8 file.

    Args:
        name_or_path: "tales" (for evaluation; `passages` has them apart), "python-docs" (for calibration),
            "python-docs-heldout" (recited in part), "wikitext-2" (needs the package `datasets` and a network), or a path.

    Raises:
        ValueError: neither a name nor a file.
        ImportError: "wikitext-2" without `datasets`.
    """
    if name_or_path == "tales":
        return "\n\n".join(passages("tales"))
    if name_or_path == "python-docs":
        return python_docs()
    if name_or_path == "python-docs-heldout":
        return "\n\n".join(text.strip() for topic, text in sorted(topics.items()) if held_out(topic))
    if name_or_path == "wikitext-2":
        return wikitext_2()
    path = expanded(name_or_path)
    if not path.is_file():
        raise ValueError(
            f"text {str(name_or_path)!r} is no file and none of {', '.join(NAMES)}; check the path or use a name"
        )
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"text {str(path)!r} is not UTF-8 (byte {error.start}); convert it, e.g. with iconv"
        ) from error


def passages(name_or_path: str | os.PathLike) -> list[str]:
    """A text as the passages it consists of, what standard errors are taken over: of "tales" each tale, of any other the whole.

    `evaluate` and `compare` cut each passage of such a list by itself.
    """
    if name_or_path == "tales":
        return [path.read_text(encoding="utf-8").strip() for path in sorted(folder("data/tales").glob("*.txt"))]
    return [texts(name_or_path)]


def held_out(topic: str) -> bool:
    """One pydoc topic in three is kept for evaluation, chosen by the sha1 of its name."""
    return int(hashlib.sha1(topic.encode()).hexdigest(), 16) % 3 == 0


@contextmanager
def _uncollected() -> Iterator[None]:
    """Inside, nobody looks for cycles: syntax trees have none, and to look through all of their nodes takes most of the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@cache
@_uncollected()
def python_docs() -> str:
    """The pydoc topics that are not held out, then all docstrings over 120 characters of the standard library."""
    parts = [text.strip() for topic, text in sorted(topics.items()) if not held_out(topic)]
    for path in sorted(_sources(Path(os.__file__).parent)):
        try:
            tree = ast.parse(path.read_bytes())  # which heeds the encoding that a file declares
        except (SyntaxError, ValueError, OSError):
            continue  # the library keeps a few files that are broken on purpose
        parts.extend(docstring for docstring in _docstrings(tree) if len(docstring) > 120)
    return "\n\n".join(parts)


def _sources(library: Path) -> Iterator[Path]:
    """Its Python files; what is installed beside it, often many times as much, is not entered."""
    for place, inside, files in os.walk(library):
        inside[:] = [name for name in inside if name not in SKIPPED_FOLDERS and not name.startswith("test")]
        yield from (Path(place, name) for name in files if name.endswith(".py"))


def _docstrings(tree: ast.Module) -> Iterator[str]:
    """Of modules, classes and functions, in the order of ast.walk; only statements are looked at, where all of them stand."""
    nodes = deque([tree])
    while nodes:
        node = nodes.popleft()
        for name in node._fields:
            if name in BLOCKS:
                nodes.extend(getattr(node, name))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield ast.get_docstring(node) or ""


def wikitext_2() -> str:
    """The test split of wikitext-2-raw, as GPTQ's and most later papers evaluate it."""
    try:
        from datasets import load_dataset  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "text 'wikitext-2' needs the package datasets, which is not installed; pip install 'qkit[wikitext]', "
            "or use 'tales', which come with qkit"
        ) from error
    return "\n\n".join(load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1", split="test")["text"])
