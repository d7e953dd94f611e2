"""QLinear and Int8Linear: Linear layers that hold a quantized weight as buffers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from qkit import ops
from qkit.numerics.codebook_qtensor import qtensor_from
from qkit.numerics.qtensor import QTensor


class QLinear(nn.Module):
    """y = x ŵᵀ + bias. Takes the place of `nn.Linear` and of transformers' `Conv1D`.

    The tensors of the weight are buffers (`packed`, `scales`, ...): they follow the module to another device and into its
    state dict, and they keep their dtypes, because `model.half()` speaks of what a layer computes in, not of its codes.

    Args:
        q: the weight.
        bias: [out] or None.
        activations: "int8" rounds each token of the input to INT8 (`qkit.linear`); None: floats.
    """

    def __init__(self, q: QTensor, bias: nn.Parameter | None = None, activations: str | None = None) -> None:
        super().__init__()
        self.activations = activations
        self._qtensor: QTensor | None = None
        self.out_features, self.in_features = q.shape
        self.bits = q.bits
        self.meta = q.meta()
        self.parts = tuple(q.tensors())
        for name, tensor in q.tensors().items():
            self.register_buffer(name, tensor)
        self.register_parameter("bias", bias)

    @property
    def qtensor(self) -> QTensor:
        """The weight as a QTensor (of the kind it was made from); shares memory with the buffers."""
        parts = {name: getattr(self, name) for name in self.parts}
        if self._qtensor is None or any(getattr(self._qtensor, name) is not part for name, part in parts.items()):
            self._qtensor = qtensor_from(parts, self.meta)  # made once: to check it takes longer than a small product
        return self._qtensor

    def settings(self) -> dict[str, Any]:
        """What the layer was made with besides weight and bias, for JSON."""
        return {"activations": self.activations} if self.activations else {}

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], in the dtype of `x`."""
        return ops.linear(x, self.qtensor, self.bias, activations=self.activations)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        exact = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            if (
                getattr(self, name).dtype != buffer.dtype
            ):  # a cast: take the device it chose and the numbers as they were
                setattr(self, name, buffer.to(getattr(self, name).device))
        return self

    def extra_repr(self) -> str:
        activations = f", activations={self.activations}" * (self.activations is not None)
        sizes = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return f"{sizes}, {self.qtensor}{activations}"


class Int8Linear(QLinear):
    """A QLinear whose activations are INT8 too: integers times integers, summed in int32 (`qkit.ops.int8_linear`).

    Args:
        q: 8 bits, symmetric, one scale a row.
        bias: [out] or None.
        activations: "per-token": each token has the scale that its largest value needs; "per-tensor": `input_scale` fits all.
        input_scale: float32 [], positive; with "per-tensor" only. A buffer.
        threshold: above 0, input columns with any |x| >= threshold stay floats (LLM.int8()).
    """

    def __init__(
        self,
        q: QTensor,
        bias: nn.Parameter | None = None,
        activations: str = "per-token",
        input_scale: Tensor | None = None,
        threshold: float = 0.0,
    ) -> None:
        ops.check_int8_weight(q)
        if activations not in ("per-token", "per-tensor"):
            raise ValueError(f'activations={activations!r} is not known; use "per-token" or "per-tensor"')
        if (activations == "per-tensor") != (input_scale is not None):
            raise ValueError(
                f"activations={activations!r} {'lacks its' if input_scale is None else 'takes no'} input_scale; give one "
                f'with "per-tensor", and only there'
            )
        if input_scale is not None and (input_scale.dtype != torch.float32 or input_scale.dim() or not input_scale > 0):
            raise ValueError(
                f"input_scale={input_scale} is no positive float32 scalar; give torch.tensor(absmax / 127)"
            )
        if not 0 <= threshold < float("inf"):
            raise ValueError(f"threshold={threshold!r} is not a size of activations; use 6.0, or 0 for no outliers")
        super().__init__(q, bias, activations)
        self.threshold = threshold
        self.register_buffer("input_scale", input_scale)

    def settings(self) -> dict[str, Any]:
        """What the layer was made with besides weight, bias and input scale, for JSON."""
        return {"activations": self.activations, "threshold": self.threshold}

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], in the dtype of `x`."""
        return ops.int8_linear(x, self.qtensor, self.bias, self.input_scale, self.threshold)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, threshold={self.threshold:g}"


MODULES = {module.__name__: module for module in (QLinear, Int8Linear)}


def is_quantized(module: nn.Module) -> bool:
    """Whether `module` is one of qkit's layers."""
    return isinstance(module, QLinear)


def quantized_layers(model: nn.Module) -> dict[str, QLinear]:
    """Every QLinear, Int8Linear included, of `model` by name; one that the model uses under two names stands under both."""
    modules = model.named_modules(remove_duplicate=False)
    return {name: module for name, module in modules if isinstance(module, QLinear)}
