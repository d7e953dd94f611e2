"""A model without its weights: shapes and no memory, to be filled from a file."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

_building = threading.Lock()


@contextmanager
def parameters_without_memory() -> Iterator[None]:
    """Inside, the parameters that this thread makes have a shape and no memory; buffers are computed as always.

    A 7B model in float32 is 28 GB: it must not be allocated only to be thrown away for 4 GB of codes.
    """
    me = threading.get_ident()
    with _building:
        register = nn.Module.register_parameter

        def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
            if parameter is not None and threading.get_ident() == me:
                parameter = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
            register(module, name, parameter)

        nn.Module.register_parameter = register_on_meta  # pyright: ignore[reportAttributeAccessIssue]
        try:
            yield
        finally:
            nn.Module.register_parameter = register
