"""PermutedLinear: a Linear layer whose groups are not neighbours, as act-order leaves them."""

import torch
from torch import Tensor, nn

from qkit.nn.qlinear import QLinear
from qkit.numerics.activations import Activations
from qkit.numerics.stored import StoredWeight


class PermutedLinear(QLinear):
    """A QLinear that takes the columns of its weight in another order, so that those which share a scale are neighbours.

    y = x[..., order] ŵᵀ + bias. GPTQ with act-order rounds the most important columns first and lets those that were rounded
    one after the other share a scale (`g_idx` in its files): anywhere in a row. Sorted by group they are an ordinary weight.

    Args:
        q: the weight with its columns sorted; `qtensor` is this one, `weight` has the columns where the model has them.
        bias: [out] or None.
        activations: as for `QLinear`.
        order: int64 [in], which column of the model's weight each column of `q` is. A buffer.
        dtype: as for `QLinear`.
    """

    order: Tensor

    def __init__(
        self,
        q: StoredWeight,
        bias: nn.Parameter | None = None,
        activations: str | Activations | None = None,
        *,
        order: Tensor,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(q, bias, activations, dtype=dtype)
        everything = torch.arange(self.in_features, device=order.device)
        if order.dtype != torch.int64 or not torch.equal(order.sort().values, everything):
            raise ValueError(
                f"order is no permutation of the {self.in_features} input columns; give each column once, as int64"
            )
        self.register_buffer("order", order)

    @property
    def weight(self) -> Tensor:
        """ŵ [out, in] as floats, its columns in the model's order."""
        return super().weight[:, self.order.argsort()]

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] -> [..., out], in the dtype of `input`."""
        return super().forward(input[..., self.order])
