"""Int8Linear: a Linear layer that multiplies integers with integers."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from qkit import ops
from qkit.nn.qlinear import QLinear
from qkit.numerics.activations import STATIC_INT8, Activations, activations_from
from qkit.numerics.integers import check_int8_weight
from qkit.numerics.qtensor import QTensor


class Int8Linear(QLinear):
    """A QLinear whose activations are INT8 too: integers times integers, summed in int32 (`qkit.ops.int8_linear`).

    Args:
        q: 8 bits, symmetric, one scale a row.
        bias: [out] or None.
        activations: "per-token": each token has the scale that its largest value needs; "per-tensor": `input_scale` fits all.
        input_scale: float32 [], positive; with "per-tensor" only. A buffer.
        threshold: above 0, input columns with any |x| >= threshold stay floats (LLM.int8()).
        dtype: as for `QLinear`.
    """

    inputs = ("per-token", "per-tensor")

    def __init__(
        self,
        q: QTensor,
        bias: nn.Parameter | None = None,
        activations: str | Activations = "per-token",
        input_scale: Tensor | None = None,
        threshold: float = 0.0,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        check_int8_weight(q)
        rounding = activations
        if not isinstance(rounding, Activations):
            rounding = activations_from(rounding, self.inputs, optional=False)
        if (rounding == STATIC_INT8) != (input_scale is not None):
            raise ValueError(
                f"activations={rounding.granularity!r} {'lacks its' if input_scale is None else 'takes no'} input_scale; "
                f'give one with "per-tensor", and only there'
            )
        if input_scale is not None and (input_scale.dtype != torch.float32 or input_scale.dim() or not input_scale > 0):
            raise ValueError(
                f"input_scale={input_scale} is no positive float32 scalar; give torch.tensor(absmax / 127)"
            )
        if not 0 <= threshold < float("inf"):
            raise ValueError(f"threshold={threshold!r} is not a size of activations; use 6.0, or 0 for no outliers")
        super().__init__(q, bias, rounding, dtype=dtype)
        self.threshold = threshold
        self.register_buffer("input_scale", input_scale)

    def settings(self) -> dict[str, Any]:
        """What the layer was made with besides weight, bias and input scale, for JSON."""
        return {"activations": cast(Activations, self.activations).granularity, "threshold": self.threshold}

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] -> [..., out], in the dtype of `input`."""
        if self.fused is not None and (y := self.fused_part(input)) is not None:
            return y
        scale = cast(Tensor | None, self._buffers["input_scale"])
        if torch.compiler.is_compiling() and self.is_operation(input):
            return self.operation(input, "integers", scale, self.threshold)
        return ops.int8_linear(input, cast(QTensor, self.qtensor), self.offset(), scale, self.threshold)
