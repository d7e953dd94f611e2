"""Parameters that a model has in more than one place: what changes one of them changes what the others compute.

It may be one module under two names (blocks that share an MLP), one parameter in two modules (a tied embedding), or two
parameters on the same memory.
"""

from collections import defaultdict

from torch import Tensor, nn


def shared_modules(model: nn.Module) -> dict[str, str]:
    """For each module that holds a parameter which is elsewhere too, by full name: the name of one such other place."""
    places: dict[int, list[tuple[int, int, str]]] = defaultdict(list)  # by memory: first and last byte, and the module
    for name, module in model.named_modules(remove_duplicate=False):
        for parameter in module.parameters(recurse=False):
            memory, first, last = _span(parameter)
            places[memory].append((first, last, name))
    shared: dict[str, str] = {}
    for spans in places.values():
        reach, owner = -1, ""  # of all spans so far, the end that is farthest
        for first, last, name in sorted(spans):
            if first <= reach and name != owner:
                shared.setdefault(name, owner)
                shared.setdefault(owner, name)
            if last > reach:
                reach, owner = last, name
    return shared


def _span(parameter: Tensor) -> tuple[int, int, int]:
    """Which memory a parameter lies in, and its first and last byte there. Without data each is for itself."""
    memory = 0 if parameter.is_meta else parameter.untyped_storage().data_ptr()
    if not memory:
        return id(parameter), 0, 0
    steps = zip(parameter.shape, parameter.stride(), strict=True)
    elements = parameter.storage_offset(), 1 + sum((size - 1) * stride for size, stride in steps)
    first = elements[0] * parameter.element_size()
    return memory, first, first + elements[1] * parameter.element_size() - 1
