"""A better grid than minimum to maximum: shrink each group's range, and keep the range with the least cost.

Clipping the few largest weights makes the steps of all others smaller. What an error costs is the caller's to say: GPTQ
weighs it by the Hessian's diagonal, AWQ by the Hessian of the group.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from qkit import ops
from qkit.numerics.mapping import choose_scale, value_range

SHRINKS = 25  # how many ranges are tried
NARROWEST = 0.4  # the narrowest of them, as a share of the full range


def search_grid(
    groups: Tensor, bits: int, symmetric: bool, scale_dtype: torch.dtype, cost: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Scale and zero point [out, groups, 1] of least cost.

    Args:
        groups: float [out, groups, g].
        cost: from the errors ŵ - w, shaped like `groups`, to what they cost, [out, groups, 1].
    """
    groups = groups.float()
    lo, hi = value_range(groups)

    def tried(share: float) -> tuple[Tensor, Tensor, Tensor]:
        s, z = choose_scale(lo * share, hi * share, bits, symmetric, scale_dtype=scale_dtype)
        s = s.float()
        return s, z, cost(ops.round_trip(groups, s, z, bits) - groups)

    first, *narrower = torch.linspace(1, NARROWEST, SHRINKS, dtype=torch.float32, device="cpu").tolist()
    scale, zero, least = tried(first)
    for share in narrower:
        s, z, now = tried(share)
        better = now < least
        scale, zero, least = (torch.where(better, *pair) for pair in ((s, scale), (z, zero), (now, least)))
    stored = scale.to(scale_dtype)
    return (stored if torch.equal(stored.float(), scale) else scale), zero
