"""Which layers of a model are quantized."""

from torch import nn

from qkit.nn.int8_linear import Int8Linear
from qkit.nn.permuted_linear import PermutedLinear
from qkit.nn.qlinear import QLinear

# As saved records call them
LAYERS: dict[str, type[QLinear]] = {cls.__name__: cls for cls in (QLinear, Int8Linear, PermutedLinear)}


def is_quantized(module: nn.Module) -> bool:
    """Whether `module` is one of qkit's layers."""
    return isinstance(module, QLinear)


def quantized_layers(model: nn.Module) -> dict[str, QLinear]:
    """Every QLinear, Int8Linear included, of `model` by name; one that the model uses under two names stands under both."""
    modules = model.named_modules(remove_duplicate=False)
    return {name: module for name, module in modules if isinstance(module, QLinear)}
