"""The house read from its imports: which file takes what from which, wherever in the file the import stands.

Nothing is imported to find out: files are parsed. A name that a function imports when it is called is an arrow like any other;
a place that a table names in a string is not one (that is what `qkit.dispatch` is for).
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]

# From the top down: a room imports only from rooms on lower floors. Those on one floor do not know each other.
FLOORS = (
    ("benchmarks", "tests"),
    ("cli",),
    ("exercises",),
    ("widgets",),
    ("plots",),
    ("bench",),
    ("qkit",),  # the public names
    ("integrations",),
    ("study",),
    ("train",),
    ("engine",),
    ("checkpoints",),
    ("export",),
    ("model",),
    ("methods",),
    ("nn",),
    ("ops",),
    ("backends",),
    ("text",),
    ("numerics",),
    ("dispatch", "kernels"),
)
FLOOR = {room: len(FLOORS) - height for height, rooms in enumerate(FLOORS) for room in rooms}


@dataclass(frozen=True)
class Arrow:
    """One import: `source` takes `name` of the module `target` (None: the module itself)."""

    source: str  # a module, by its dotted name
    target: str
    name: str | None
    line: int

    def __str__(self) -> str:
        return f"{self.source}:{self.line} imports {self.target}" + (f".{self.name}" if self.name else "")


@cache
def modules(root: Path = ROOT) -> dict[str, Path]:
    """All modules of the tree by their dotted names."""
    found = {}
    for start, folder in (("", "qkit"), ("kernels", "qkit_kernels"), ("", "benchmarks"), ("", "tests/support")):
        for path in sorted((root / start / folder).rglob("*.py")):
            parts = path.relative_to(root / start).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room(module: str) -> str:
    """The room that a module stands in: `qkit.plots.base` in `plots`, `qkit` itself in `qkit`, all kernels in `kernels`."""
    first, *rest = module.split(".")
    return {"qkit_kernels": "kernels", "qkit": rest[0] if rest else "qkit"}.get(first, first)


def _resolve(module: str | None, name: str | None, known: dict[str, Path]) -> tuple[str, str | None] | None:
    """(module, name) of what `from module import name` takes, where it is ours; a name may be a module itself."""
    module = f"tests.support.{module}" if f"tests.support.{module}" in known else module
    if name is not None and f"{module}.{name}" in known:
        return f"{module}.{name}", None
    return (module, name) if module in known else None


def _taken(tree: ast.AST, source: str, package: str) -> Iterator[tuple[str, str | None, str, int]]:
    """(module, name, what it is called here, line) of each import; import_module("...") is one too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None, alias.asname or alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield module, alias.name, alias.asname or alias.name, node.lineno
        elif isinstance(node, ast.Call) and re.search(r"\bimport_module$", ast.unparse(node.func)):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant):
                    yield argument.value, None, "", node.lineno


def arrows(known: dict[str, Path] | None = None) -> list[Arrow]:
    """Every import of one file of ours from another, and every `module._name` with a module of ours."""
    known, found = known or modules(), []
    for source, path in known.items():
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        package = source if path.name == "__init__.py" else source.rpartition(".")[0]
        called = {}  # what a name in this file stands for, where that is a module of ours
        for module, name, alias, line in _taken(tree, source, package):
            if ours := _resolve(module, name, known):
                found.append(Arrow(source, *ours, line))
                if ours[1] is None:
                    called[alias] = ours[0]
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and (module := called.get(ast.unparse(node.value))):
                found.append(Arrow(source, module, node.attr, node.lineno))
    return [arrow for arrow in found if arrow.source != arrow.target]


def circle(graph: dict[str, set[str]]) -> list[str]:
    """One way round in a graph, or []."""
    done: set[str] = set()

    def walk(place: str, way: list[str]) -> list[str]:
        if place in way:
            return [*way[way.index(place) :], place]
        if place in done:
            return []
        for following in sorted(graph.get(place, ())):
            if found := walk(following, [*way, place]):
                return found
        done.add(place)
        return []

    return next((found for place in sorted(graph) if (found := walk(place, []))), [])
