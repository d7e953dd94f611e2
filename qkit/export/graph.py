"""An ONNX graph that grows."""

from typing import Any

import numpy as np
from torch import Tensor

CONTRIBUTED = "com.microsoft"  # the domain of onnxruntime's own operations


class Graph:
    """Nodes and constants: each operation names its output, and so the next can ask for it."""

    def __init__(self) -> None:
        from onnx import helper

        self._helper = helper
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.used: set[str] = set()  # of the model's tensors
        self._names: set[str] = set()

    def __contains__(self, name: str) -> bool:
        """Whether there is an operation or a constant of this name."""
        return name in self._names

    def tensor(self, name: str, array: np.ndarray) -> str:
        """A constant."""
        from onnx import numpy_helper

        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        self._names.add(name)
        return name

    def scalar(self, number: np.generic) -> str:
        """A constant without axes, called by its dtype and value: there is one of each."""
        name = f"{number.dtype}.{number}"
        return name if name in self else self.tensor(name, np.asarray(number))

    def op(
        self, kind: str, inputs: list[str], name: str, domain: str = "", more: tuple[str, ...] = (), **attributes: Any
    ) -> str:
        """An operation; its first output is called as it is, and `more` names those after it."""
        self.nodes.append(self._helper.make_node(kind, inputs, [name, *more], name=name, domain=domain, **attributes))
        self._names.add(name)
        return name


def floats(tensor: Tensor) -> np.ndarray:
    """A tensor as float32."""
    return tensor.detach().float().cpu().numpy()
