"""Copies of modules that run by themselves, also where somebody has set functions on the instances.

`copy.deepcopy` makes new modules, binds their methods to them, and leaves functions as they are. But a forward that was set
on an instance, or a hook, may be a function that refers to the module it was made for: the copy of such a module would run
the original, whatever becomes of the copy.
"""

import copy
from collections.abc import Callable
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import nn


def copy_module(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A deep copy; `memo` says by `id` what is not to be copied but to be taken as it is, or in the place of something."""
    copied = copy.deepcopy(module, memo)
    for part in copied.modules():
        for own in (vars(part), part._forward_pre_hooks, part._forward_hooks):
            own.update({key: _rebound(value, memo) for key, value in own.items() if isinstance(value, Callable)})
    return copied


def _rebound(value: Any, memo: dict[int, Any]) -> Any:
    """`value`, with the copies of modules in the place of the modules that a function in it refers to."""
    if id(value) in memo and isinstance(value, nn.Module | FunctionType):
        return memo[id(value)]
    if isinstance(value, MethodType):
        owner = _rebound(value.__self__, memo)
        return value if owner is value.__self__ else MethodType(value.__func__, owner)
    if isinstance(value, partial):
        parts = [value.func, *value.args, *value.keywords.values()]
        new = [_rebound(part, memo) for part in parts]
        if all(a is b for a, b in zip(parts, new, strict=True)):
            return value
        arguments = len(value.args) + 1
        return partial(*new[:arguments], **dict(zip(value.keywords, new[arguments:], strict=True)))
    return _rebound_function(value, memo) if isinstance(value, FunctionType) else value


def _rebound_function(function: FunctionType, memo: dict[int, Any]) -> FunctionType:
    cells, positional, named = function.__closure__ or (), function.__defaults__, function.__kwdefaults__
    held = [*(cell.cell_contents for cell in cells if _filled(cell)), *(positional or ()), *(named or {}).values()]
    memo[id(function)] = function  # while it is looked at: it may refer to itself
    new = {id(value): _rebound(value, memo) for value in held}
    if all(new[id(value)] is value for value in held):
        return function
    closure = tuple(CellType() for _ in cells)
    rebound = FunctionType(function.__code__, function.__globals__, function.__name__, None, closure)
    new[id(function)] = memo[id(function)] = rebound
    for empty, cell in zip(closure, cells, strict=True):
        if _filled(cell):
            empty.cell_contents = new[id(cell.cell_contents)]
    rebound.__defaults__ = positional and tuple(new[id(value)] for value in positional)
    rebound.__kwdefaults__ = named and {key: new[id(value)] for key, value in named.items()}
    rebound.__dict__.update(function.__dict__)
    return rebound


def _filled(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
