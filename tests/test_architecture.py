"""The house drawn from its imports: arrows point down, nothing goes round, and what is private stays in its room."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

import house
from house import ROOT, Arrow

MODULES = house.modules()
LIBRARY = {name: path for name, path in MODULES.items() if name.split(".")[0] in ("qkit", "qkit_kernels")}


@pytest.fixture(scope="module")
def arrows() -> list[Arrow]:
    return house.arrows()


def test_every_file_stands_in_a_room_that_has_a_floor(arrows):
    assert {house.room(module) for module in MODULES} <= set(house.FLOOR)
    assert len(MODULES) > 90 and len(arrows) > 300, "the house is not read"


def test_no_arrow_points_up(arrows):
    def up(arrow: Arrow) -> bool:
        source, target = house.room(arrow.source), house.room(arrow.target)
        return source != target and house.FLOOR[source] <= house.FLOOR[target]

    assert not [str(arrow) for arrow in arrows if up(arrow)]


def test_no_files_import_each_other_round(arrows):
    graph = defaultdict(set)
    for arrow in arrows:
        graph[arrow.source].add(arrow.target)
    assert not house.circle(graph)


def test_no_private_name_is_taken_across_rooms(arrows):
    def private(name: str | None) -> bool:
        return bool(name) and name.startswith("_") and not name.startswith("__")

    taken = [
        str(arrow)
        for arrow in arrows
        if house.room(arrow.source) != house.room(arrow.target)
        and (private(arrow.name) or private(arrow.target.rsplit(".", 1)[-1]))
    ]
    assert not taken


def test_kernels_import_nothing_of_qkit_and_the_table_of_kernels_nothing_of_ours(arrows):
    assert not [str(a) for a in arrows if house.room(a.source) == "kernels" and house.room(a.target) != "kernels"]
    assert not [str(a) for a in arrows if a.source == "qkit.dispatch"]


def test_no_public_name_hides_a_module(arrows):
    """`import qkit.quantize` would give a function where somebody wants the module."""
    hidden = []
    for module, path in LIBRARY.items():
        if path.name != "__init__.py":
            continue
        for arrow in arrows:
            if arrow.source == module and arrow.name and f"{module}.{arrow.name}" in LIBRARY:
                hidden.append(str(arrow))
    assert not hidden


def test_no_two_classes_have_one_name_and_no_list_stands_twice():
    """Of constants with one name, those of one value: a second list of the same things is one to forget."""
    places = defaultdict(list)
    for module, path in LIBRARY.items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[f"class {node.name}"].append(module)
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value and house.room(module) != "exercises":
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    if re.fullmatch(r"[A-Z][A-Z0-9_]+", word := ast.unparse(target)):
                        places[f"{word} = {ast.unparse(node.value)}"].append(module)
    assert not {name: where for name, where in places.items() if len(where) > 1}


def test_every_test_that_is_left_out_says_why():
    silent = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call | ast.Attribute):
                continue
            word = ast.unparse(node.func if isinstance(node, ast.Call) else node)
            if re.fullmatch(r"pytest\.(mark\.(skip|skipif|xfail)|skip|xfail|importorskip)", word):
                words = {keyword.arg for keyword in node.keywords} if isinstance(node, ast.Call) else set()
                called = isinstance(node, ast.Call)
                told = "reason" in words or (called and word in ("pytest.skip", "pytest.xfail") and node.args)
                if called and not told:
                    silent.append(f"{path.relative_to(ROOT)}:{node.lineno}")
                elif not called and word.startswith("pytest.mark"):
                    silent += _bare(path, node)
    assert not silent


def _bare(path: Path, mark: ast.Attribute) -> list[str]:
    """A mark that is not called has no reason."""
    source = path.read_text(encoding="utf-8").splitlines()
    after = source[mark.end_lineno - 1][mark.end_col_offset :]
    return [] if after.startswith("(") else [f"{path.relative_to(ROOT)}:{mark.lineno}"]


# ---- the reader of the house itself, on a house of paper


@pytest.fixture
def paper(tmp_path):
    def build(**files: str) -> list[Arrow]:
        for place, text in files.items():
            path = tmp_path / (place.replace("__", "/") + ".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return house.arrows(house.modules(tmp_path))

    return build


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("from qkit.plots.base import draw", ("qkit.plots.base", "draw")),
        ("def f():\n    from qkit.plots import base", ("qkit.plots.base", None)),
        ("import qkit.plots.base as b\nb.draw", ("qkit.plots.base", "draw")),
        ("import qkit.plots.base\nqkit.plots.base._draw()", ("qkit.plots.base", "_draw")),
        ("from ..plots.base import draw", ("qkit.plots.base", "draw")),
        ("from importlib import import_module\nimport_module('qkit.plots.base')", ("qkit.plots.base", None)),
    ],
)
def test_an_import_is_seen_however_it_is_written(text, expected, paper):
    found = paper(qkit__plots__base="def draw(): ...", qkit__nn__layer=text)
    assert expected in {(arrow.target, arrow.name) for arrow in found if arrow.source == "qkit.nn.layer"}


def test_a_way_round_is_found():
    assert house.circle({"a": {"b", "d"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
    assert house.circle({"a": {"b", "c"}, "b": {"c"}}) == []
