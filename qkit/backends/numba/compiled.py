"""How many kernels are compiled, and how many were found compiled on disk, while something runs."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from numba.core.dispatcher import Dispatcher
from numba.core.event import Event, Listener, install_listener


class Count(Listener):
    """Kernels, each once for the types that it is given; what a kernel consists of is not counted beside it.

    Attributes:
        compiled: by this process.
        found: on disk, where Numba keeps what an earlier process has compiled.
    """

    def __init__(self) -> None:
        self.compiled, self.found = 0, -_read()
        self._depth, self._read = 0, 0

    def on_start(self, event: Event) -> None:
        """A function is about to be compiled; those that it calls come before it ends."""
        if self._depth == 0:
            self._read = _read()
        self._depth += 1

    def on_end(self, event: Event) -> None:
        """It is compiled. Numba keeps the kernels, and not the steps of a lesson."""
        self._depth -= 1
        if self._depth == 0:
            self.compiled += event.data["dispatcher"].stats.cache_path is not None
            self.found -= _read() - self._read


@contextmanager
def counting() -> Iterator[Count]:
    """Counts what happens inside; the counts are whole when it is left."""
    count = Count()
    with install_listener("numba:compile", count):
        yield count
    count.found += _read()


def _read() -> int:
    """How many functions of `qkit_kernels.numba` this process has read from Numba's cache."""
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("qkit_kernels.numba.")]
    functions = {
        id(found): found for module in modules for found in vars(module).values() if isinstance(found, Dispatcher)
    }
    return sum(sum(function.stats.cache_hits.values()) for function in functions.values())
