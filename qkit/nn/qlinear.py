"""QLinear: a Linear layer that holds a quantized weight as buffers."""

import json
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from qkit import ops
from qkit.numerics.activations import Activations, activations_from
from qkit.numerics.kinds import stored_from
from qkit.numerics.stored import StoredWeight


class QLinear(nn.Module):
    """y = x ŵᵀ + bias. Takes the place of `nn.Linear` and of transformers' `Conv1D`.

    The tensors of the weight are buffers (`packed`, `scales`, ...): they follow the module to another device and into its
    state dict, and they keep their dtypes, because `model.half()` speaks of what a layer computes in, not of its codes.

    Args:
        q: the weight.
        bias: [out] or None.
        activations: "int8" rounds each token of the input to INT8 (`qkit.linear`); None: floats.
        dtype: of the float weight that was quantized; `weight` is given out in it.
    """

    inputs: tuple[str, ...] = ("int8",)  # the words that `activations` may be
    fused: Any = None  # with whom it computes, and the how manyth it is; see `qkit.nn.fused`

    def __init__(
        self,
        q: StoredWeight,
        bias: nn.Parameter | None = None,
        activations: str | Activations | None = None,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        known = isinstance(activations, Activations)
        self.activations = activations if known else activations_from(activations, self.inputs)
        self._qtensor = q
        self.out_features, self.in_features = q.shape
        self.bits = q.bits
        self.meta = {"kind": q.kind, **q.meta()}
        self.parts = tuple(q.tensors())
        self.record = json.dumps({**self.meta, "parts": self.parts})
        self.dtype = dtype
        for name, tensor in q.tensors().items():
            self.register_buffer(name, tensor)
        self.register_parameter("bias", bias)

    @property
    def qtensor(self) -> StoredWeight:
        """The weight as it is stored (of the kind it was made from); shares memory with the buffers."""
        known, buffers = self._qtensor, self._buffers  # getattr of a module's buffer takes ten times as long
        for name in self.parts:
            if buffers.get(name) is not getattr(known, name):  # moved, or loaded
                parts = {name: getattr(self, name) for name in self.parts}
                if any(getattr(known, name) is not part for name, part in parts.items()):
                    self._qtensor = stored_from(parts, self.meta)  # made once: to check it takes longer than a product
                break
        return self._qtensor

    @property
    def weight(self) -> Tensor:
        """ŵ [out, in] as floats, for whoever reads the weight of a Linear (T5 asks for its dtype, nn.TransformerEncoder
        multiplies with it itself). Made anew each time; writing into it changes nothing, and it has no gradient.
        """
        return ops.dequantize(self.qtensor).to(self.dtype)

    def settings(self) -> dict[str, Any]:
        """What the layer was made with besides weight and bias, for JSON."""
        return {"activations": "int8"} if self.activations else {}

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] -> [..., out], in the dtype of `input`, which is called as in nn.Linear."""
        if self.fused is not None and (y := self.fused_part(input)) is not None:
            return y
        if torch.compiler.is_compiling() and self.is_operation(input):
            return self.operation(input, "int8" if self.activations else None)
        return ops.linear(input, self.qtensor, self.offset(), None, self.activations)

    def offset(self) -> Tensor | None:
        """The bias, wherever it is kept now."""
        parameters = self._parameters  # as in `qtensor`
        bias = parameters["bias"] if "bias" in parameters else self.bias  # noqa: SIM401 (self.bias is what takes long)
        return cast(Tensor | None, bias)

    def fused_part(self, x: Tensor) -> Tensor | None:
        """What `qkit.nn.fused` has for this layer; nothing any more once its weight has been replaced."""
        fused, number = self.fused
        if not torch.compiler.is_compiling() and self.qtensor is not fused.weights[number]:
            self.fused = None
            return None
        return fused.part(number, x, self.bias)

    def is_operation(self, x: Tensor) -> bool:
        """Whether it is one operation of the graph where torch.compile is looking: on a GPU and with nothing to learn."""
        if ops.exporting() or not self.packed.is_cuda:
            return False
        return not torch.is_grad_enabled() or not (
            x.requires_grad or (self.bias is not None and self.bias.requires_grad)
        )

    def operation(
        self, x: Tensor, activations: str | None, scale: Tensor | None = None, threshold: float = 0.0
    ) -> Tensor:
        """`qkit.ops.layer` with the parts of this one."""
        parts = [getattr(self, name) for name in self.parts]
        return ops.layer(x, parts, self.record, self.bias, activations, scale, threshold)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        exact = dict(self.named_buffers(recurse=False))
        self.fused = None
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            moved = getattr(self, name)
            if moved.dtype != buffer.dtype:  # a cast: take the device it chose and the numbers as they were
                setattr(self, name, buffer.to(moved.device))
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device="cpu")).dtype
        return self

    def extra_repr(self) -> str:
        """Shape, stored weight and settings, for `print(model)`."""
        settings = {name: f"{v:g}" if isinstance(v, float) else v for name, v in self.settings().items()}
        words = "".join(f", {name}={value}" for name, value in settings.items())
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"{self.qtensor}{words}"
        )
