"""One way to compute y = x ŵᵀ: what takes part in the benchmark."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor


class BuiltLayer(NamedTuple):
    """A weight of its own in memory, and what multiplies by it."""

    call: Callable[[Any], Any]  # x as the library likes it -> y
    nbytes: int  # of the weight, scales included


def as_it_is(x: Tensor) -> Tensor:
    """float32 [tokens, in], for a library that takes just that."""
    return x


@dataclass(frozen=True)
class Contender:
    """A library's layer in one format.

    Attributes:
        library, name: how tables call it.
        make: takes a weight, float32 [out, in], and quantizes it once; what it returns makes a layer of it, with memory of
            its own, each time it is called.
        native: the activations, float32 [tokens, in], as the library likes them: made before the clock starts.
    """

    library: str
    name: str
    make: Callable[[Tensor], Callable[[], BuiltLayer]]
    native: Callable[[Tensor], Any] = as_it_is

    @property
    def label(self) -> str:
        """Library and name."""
        return f"{self.library} {self.name}"
