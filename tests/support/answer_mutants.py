"""Every function that is one small change away from an exercise's solution: the systematic wrong answers.

A grader that accepts one of them tests too little, unless the change changes no result: those are listed, each with its reason,
in tests/exercises/test_mutants.py.

    python tests/support/answer_mutants.py [NAME ...]          which live
"""

import ast
import copy
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qkit import exercises
from qkit.exercises.compare import copies, same, unchanged
from qkit.exercises.core import Exercise

COMPARED = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
}
COMBINED = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div, ast.Add),
    ast.Div: (ast.Mult, ast.FloorDiv),
    ast.Mod: (ast.FloorDiv,),
    ast.FloorDiv: (ast.Div,),
    ast.Pow: (ast.Mult,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd, ast.Add),
    ast.RShift: (ast.LShift,),
    ast.LShift: (ast.RShift,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
}
ONE_SIDED = ast.Sub | ast.Div | ast.MatMult | ast.Pow | ast.FloorDiv | ast.Mod | ast.LShift | ast.RShift
# Of a call `f(x)` or a method `x.f()`: what else may stand there
NAMED = {
    "min": ("max",),
    "max": ("min",),
    "amin": ("amax",),
    "amax": ("amin", "mean"),
    "argmax": ("argmin",),
    "argmin": ("argmax",),
    "mean": ("sum", "median"),
    "sum": ("mean",),
    "any": ("all",),
    "all": ("any",),
    "round": ("floor", "trunc", "ceil"),
    "floor": ("round", "ceil", "trunc"),
    "ceil": ("floor",),
    "log": ("log2",),
    "double": ("float", "half"),
    "float": ("half",),
    "int": ("char", "short"),
    "long": ("char", "short"),
    "triu": ("tril",),
    "maximum": ("minimum",),
    "minimum": ("maximum",),
}
TYPES = {
    "uint8": ("int64", "float32"),
    "int16": ("int8",),
    "int32": ("int8", "int16", "float32"),
    "float64": ("float32",),
}


def _changes(node: ast.AST) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """(what, a function that makes it: of the node what takes its place) for one node."""
    text = ast.unparse(node)
    if isinstance(node, ast.Compare):
        for other in COMPARED.get(type(node.ops[0]), ()):
            yield f"{text}: {other.__name__}", lambda n, other=other: _with(n, ops=[other()])
    if isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp):
        for other in COMBINED.get(type(node.op), ()):
            yield f"{text}: {other.__name__}", lambda n, other=other: _with(n, op=other())
    if isinstance(node, ast.BinOp):
        if isinstance(node.op, ONE_SIDED):
            yield f"{text}: swapped", lambda n: _with(n, left=n.right, right=n.left)
        yield f"{text}: left alone", lambda n: n.left
        yield f"{text}: right alone", lambda n: n.right
    if isinstance(node, ast.UnaryOp):
        yield f"{text}: without its sign", lambda n: n.operand
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        near = (node.value - 1, node.value + 1) if abs(node.value) < 1e5 else (node.value * 0.99, node.value * 1000)
        for value in near:
            yield f"{text} -> {value}", lambda n, value=value: _with(n, value=value)
    if isinstance(node, ast.IfExp):
        yield f"{text}: always", lambda n: n.body
        yield f"{text}: never", lambda n: n.orelse
    if isinstance(node, ast.Attribute):
        for other in TYPES.get(node.attr, ()):
            yield f"{text} -> {other}", lambda n, other=other: _with(n, attr=other)
        if node.attr in ("T", "mT"):
            yield f"{text}: not turned", lambda n: n.value
    if isinstance(node, ast.Slice):
        for part in ("lower", "upper", "step"):
            if getattr(node, part) is not None:
                yield f"[{text}] without {part}", lambda n, part=part: _with(n, **{part: None})
    if isinstance(node, ast.Tuple | ast.List) and len(node.elts) == 2 and isinstance(node.ctx, ast.Load):
        yield f"{text}: turned round", lambda n: _with(n, elts=n.elts[::-1])
    if isinstance(node, ast.comprehension) and node.ifs:
        yield f"{text}: without if", lambda n: _with(n, ifs=[])
    if isinstance(node, ast.Call):
        yield from _of_a_call(node, text)


def _of_a_call(node: ast.Call, text: str) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    function = node.func
    name = (
        function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""
    )
    for other in NAMED.get(name, ()):
        field = "attr" if isinstance(function, ast.Attribute) else "id"
        if field == "id" and other in ("floor", "trunc", "ceil", "char", "short", "half", "mean", "median", "log2"):
            if name != "round" or len(node.args) != 1:
                continue
            yield f"{text}: {other}", lambda n, other=other: _math(n, other)
        else:
            yield f"{text}: {other}", lambda n, other=other, field=field: _with(n, func=_with(n.func, **{field: other}))
    if name == "round":
        yield f"{text}: halves up", _halves_up
    for at in range(len(node.keywords)):
        what = f"{text} without {node.keywords[at].arg}"
        yield what, lambda n, at=at: _with(n, keywords=n.keywords[:at] + n.keywords[at + 1 :])
    is_module = isinstance(function, ast.Attribute) and ast.unparse(function.value) in (
        "torch",
        "math",
        "torch.linalg",
        "F",
    )
    if isinstance(function, ast.Attribute) and not is_module:
        yield f"{text}: without it", lambda n: n.func.value
    elif len(node.args) == 1 and not isinstance(node.args[0], ast.Starred | ast.GeneratorExp):
        yield f"{text}: without it", lambda n: n.args[0]
    if name == "clamp" and len(node.args) == 2:
        for at, kept in ((0, "max"), (1, "min")):
            yield (
                f"{text}: {kept} alone",
                lambda n, at=at, kept=kept: _with(n, args=[], keywords=[ast.keyword(kept, n.args[1 - at])]),
            )


def _with(node: Any, **fields: Any) -> Any:
    for field, value in fields.items():
        setattr(node, field, value)
    return node


def _math(node: ast.Call, other: str) -> ast.AST:
    return _with(node, func=ast.Attribute(ast.Name("math", ast.Load()), other, ast.Load()))


def _halves_up(node: ast.Call) -> ast.AST:
    inner = node.args[0] if node.args else node.func.value  # torch.round(x), round(x), x.round()
    half = ast.BinOp(inner, ast.Add(), ast.Constant(0.5))
    is_python = isinstance(node.func, ast.Name)
    floor = ast.Attribute(ast.Name("math" if is_python else "torch", ast.Load()), "floor", ast.Load())
    return ast.Call(floor, [half], [])


class _Replace(ast.NodeTransformer):
    """Puts what `change` makes in the place of the `at`-th node, in the order of ast.walk."""

    def __init__(self, tree: ast.AST, at: int, change: Callable[[Any], Any]):
        self.node, self.change = list(ast.walk(tree))[at], change

    def visit(self, node: ast.AST) -> Any:
        if node is self.node:
            return self.change(node)
        return super().generic_visit(node)


def sources(solution: Callable) -> Iterator[tuple[str, str]]:
    """(what was changed, the source) of each mutant of a function."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(solution)))
    function = tree.body[0]
    assert isinstance(function, ast.FunctionDef)
    function.returns = None
    function.decorator_list = []
    function.body = [n for n in function.body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
    for argument in function.args.args:
        argument.annotation = None
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for at, node in enumerate(ast.walk(tree)):
        within = f" in {ast.unparse(parents[node])}" if isinstance(node, ast.Constant) else ""
        for what, change in _changes(node):
            other = copy.deepcopy(tree)
            yield what + within, ast.unparse(ast.fix_missing_locations(_Replace(other, at, change).visit(other)))
        for part in ("body", "orelse"):
            for line, statement in enumerate(getattr(node, part, ()) if isinstance(node, ast.stmt) else ()):
                if isinstance(statement, ast.Assign | ast.AugAssign | ast.If | ast.Expr):
                    other = copy.deepcopy(tree)
                    twin = list(ast.walk(other))[at]
                    getattr(twin, part)[line] = ast.Pass()
                    yield f"without: {ast.unparse(statement).splitlines()[0]}", ast.unparse(other)


def mutants(solution: Callable) -> Iterator[tuple[str, Callable]]:
    """(what was changed, the function) of each mutant, of the source and of what the function does with its arguments."""
    for what, source in sources(solution):
        names = {**solution.__globals__, "math": __import__("math"), "torch": torch}
        exec(compile(source, "<mutant>", "exec"), names)
        yield what, names[solution.__name__]
    for at, name in enumerate(inspect.signature(solution).parameters):
        yield f"changes {name}", _changing(solution, at)
    yield "gives a float16", _outputting(solution, lambda t: t.half(), floats=True)
    yield "loses the last number", _outputting(solution, lambda t: t[:-1] if t.ndim and len(t) else t)
    yield "a thousandth too much", _outputting(solution, lambda t: t * 1.001, floats=True)
    yield "its last number is another", _outputting(solution, _last_is_another)
    yield "has an axis more", _outputting(solution, lambda t: t[None])


def _changing(solution: Callable, at: int) -> Callable:
    def changing(*arguments):
        found = solution(*arguments)
        found = found.clone() if isinstance(found, Tensor) else found
        given = arguments[at]
        if isinstance(given, Tensor):
            given.add_(1) if given.dtype != torch.bool else given.logical_not_()
        elif isinstance(given, list):
            given.reverse()
            given.append(given[0])
        else:
            raise _SameAnyway  # a number or a tuple cannot be changed
        return found

    return changing


def _outputting(solution: Callable, change: Callable[[Tensor], Tensor], floats: bool = False) -> Callable:
    def outputting(*arguments):
        found = solution(*arguments)
        if not isinstance(found, Tensor) or (floats and not found.is_floating_point()):
            raise _SameAnyway
        return change(found.clone())

    return outputting


def _last_is_another(t: Tensor) -> Tensor:
    flat = t.flatten()
    if len(flat):
        flat[-1] = flat[-1] + 1 if not t.is_floating_point() else flat[-1] * 1.01 + 1e-3 * t.abs().max()
    return flat.reshape(t.shape)


class _SameAnyway(Exception):
    """There is nothing to change."""


def living(exercise: Exercise) -> tuple[list[str], int]:
    """What was changed in the mutants that the exercise accepts, and how many there were."""
    trials = exercise.trials()
    wanted = [exercise.result(exercise.solution, trial.arguments) for trial in trials]
    alive, count = [], 0
    for what, mutant in mutants(exercise.solution):
        try:
            accepted = all(map(lambda t, w, mutant=mutant: _right(exercise, mutant, t.arguments, w), trials, wanted))
        except _SameAnyway:
            continue
        count += 1
        if accepted and exercise.check(mutant).passed:
            alive.append(what)
    return alive, count


def _right(exercise: Exercise, mutant: Callable, arguments: tuple, wanted: Any) -> bool:
    given = copies(arguments)
    try:
        with np.errstate(all="ignore"):
            found = mutant(*given)
            found = exercise.seen(found, arguments) if exercise.seen else found
    except _SameAnyway:
        raise
    except Exception:
        return False
    return same(found, wanted, exercise.rtol) and all(map(unchanged, arguments, given))


if __name__ == "__main__":
    for name in sys.argv[1:] or exercises.ALL:
        if type(exercises.ALL[name]) is Exercise:
            lives, total = living(exercises.ALL[name])
            print(f"{name}: {total} mutants, {len(lives)} live", *(f"\n    {what}" for what in lives))
