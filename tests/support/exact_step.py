"""What stands between the products of a model's step in float64, and how far a kernel may be from it."""

import torch
from torch import Tensor


def normed(total: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The root mean square norm of total [tokens, features]."""
    wide = total.double()
    return wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """SiLU(gate) up."""
    return gate.double() * gate.double().sigmoid() * up.double()


def attended(query: Tensor, keys: Tensor, values: Tensor, seen: Tensor, scale: float) -> Tensor:
    """Attention of query [groups, heads, dim] over what is seen of keys and values [groups, length, dim]."""
    scores = query.double() @ keys.double().transpose(1, 2) * scale
    return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ values.double()


def off(found: Tensor, expected: Tensor) -> float:
    """The largest difference in units of what one rounding of the largest number makes; NaN where anything is."""
    assert found.shape == expected.shape
    return float((found.double() - expected).abs().max() / (expected.abs().max() * torch.finfo(found.dtype).eps))
