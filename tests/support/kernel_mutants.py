"""Every kernel that is one small change away from a given one: the systematic wrong answers to an exercise.

Changed are one at a time: a comparison, an operator, a whole number, a mask or an `other` that is left out, a cast.
"""

import ast
import copy
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COMPARED = {ast.Lt: (ast.LtE, ast.Gt), ast.LtE: (ast.Lt,), ast.Gt: (ast.GtE,)}
COMBINED = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Add,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
    ast.BitAnd: (ast.BitOr,),
    ast.RShift: (ast.LShift,),
}
CASTS = {"int32": ("int16", "int8", "float32"), "float32": ("int32",)}
HEAD = "import triton\nimport triton.language as tl\n\n\n"


def _changes(node: ast.AST) -> Iterator[tuple[str, Any]]:
    """(what, a function that makes it) for one node."""
    if isinstance(node, ast.Compare):
        for other in COMPARED.get(type(node.ops[0]), ()):
            yield f"{ast.unparse(node)}: {other.__name__}", lambda n, other=other: setattr(n, "ops", [other()])
    if isinstance(node, ast.BinOp | ast.AugAssign):
        for other in COMBINED.get(type(node.op), ()):
            yield f"{ast.unparse(node)}: {other.__name__}", lambda n, other=other: setattr(n, "op", other())
    if isinstance(node, ast.Constant) and type(node.value) is int:
        for by in (-1, 1):
            yield f"{node.value} -> {node.value + by}", lambda n, by=by: setattr(n, "value", n.value + by)
    if isinstance(node, ast.Attribute) and node.attr in CASTS:
        for other in CASTS[node.attr]:
            yield f"{node.attr} -> {other}", lambda n, other=other: setattr(n, "attr", other)
    if isinstance(node, ast.Call):
        for index, keyword in enumerate(node.keywords):
            what = f"{ast.unparse(node)} without {keyword.arg}"
            yield what, lambda n, index=index: n.keywords.pop(index)


def mutants(source: str) -> Iterator[tuple[str, str]]:
    """(what was changed, the kernel's source) of each."""
    tree = ast.parse(source)
    body = tree.body[0]
    body.body = [n for n in body.body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
    for index, node in enumerate(ast.walk(tree)):
        for what, change in _changes(node):
            other = copy.deepcopy(tree)
            change(list(ast.walk(other))[index])
            yield what, ast.unparse(other)


def kernel(source: str, folder: Path, number: int = 0) -> Any:
    """The kernel that a source defines; Triton reads it from a file."""
    path = folder / f"kernel_{number}.py"
    path.write_text(HEAD + source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return next(value for name, value in vars(module).items() if hasattr(value, "run") and name not in ("triton", "tl"))
