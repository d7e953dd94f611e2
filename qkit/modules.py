"""QLinear: a Linear layer that holds a quantized weight as buffers."""

from collections.abc import Callable

from torch import Tensor, nn

from qkit import ops
from qkit.qtensor import QTensor


class QLinear(nn.Module):
    """y = x ŵᵀ + bias. Takes the place of `nn.Linear` and of transformers' `Conv1D`.

    The tensors of the weight are buffers (`packed`, `scales`, ...): they follow the module to another device and into its
    state dict, and they keep their dtypes, because `model.half()` speaks of what a layer computes in, not of its codes.
    """

    def __init__(self, q: QTensor, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = q.shape
        self.bits = q.bits
        self.parts = tuple(q.tensors())
        for name, tensor in q.tensors().items():
            self.register_buffer(name, tensor)
        self.register_parameter("bias", bias)

    @property
    def qtensor(self) -> QTensor:
        """The weight as a QTensor; shares memory with the buffers."""
        shape = (self.out_features, self.in_features)
        return QTensor(**{name: getattr(self, name) for name in self.parts}, bits=self.bits, shape=shape)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], in the dtype of `x`."""
        return ops.linear(x, self.qtensor, self.bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        dtypes = {name: getattr(self, name).dtype for name in self.parts}
        exact = {name: getattr(self, name) for name in self.parts}
        super()._apply(fn, recurse)
        for name, dtype in dtypes.items():
            if getattr(self, name).dtype != dtype:  # a cast: take the device it chose and the numbers as they were
                setattr(self, name, exact[name].to(getattr(self, name).device))
        return self

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, {self.qtensor}"


def quantized_layers(model: nn.Module) -> dict[str, QLinear]:
    """Every QLinear of `model` by name; one that the model uses under two names stands under both."""
    modules = model.named_modules(remove_duplicate=False)
    return {name: module for name, module in modules if isinstance(module, QLinear)}
