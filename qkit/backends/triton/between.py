"""What stands between the products of a model's step, on a GPU: allocates, launches."""

import torch
from torch import Tensor

from qkit.backends import torch as plain
from qkit.backends.triton import tiles
from qkit.backends.triton.arguments import begins
from qkit.backends.triton.new_enough import triton
from qkit_kernels.triton import between as kernels

POSITIONS = 32  # that a program attends over
MOST = 32  # blocks that are made one
WIDEST = 2**14  # numbers of a token that it holds


def early(x: Tensor) -> dict[str, bool]:
    """Whether and how a kernel begins while the one before it runs."""
    can = not x.is_cpu and tiles.card(x.device.index).early
    return {"EARLY": can, **begins(can)}


def add_norm(x: Tensor, more: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`qkit.backends.torch.add_norm`."""
    if x.shape[1] > WIDEST:
        return plain.add_norm(x, more, weight, eps)
    x, more = x.contiguous(), more.contiguous()
    total, norm = torch.empty_like(x), torch.empty_like(x)
    tokens, features = x.shape
    width = triton.next_power_of_2(features)
    kernels.add_norm[(tokens,)](
        x, more, weight, total, norm, eps, K=features, WIDTH=width, num_warps=max(1, min(16, width // 256)), **early(x)
    )
    return total, norm


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """`qkit.backends.torch.gated`."""
    gate, up = (part if part.stride(1) == 1 else part.contiguous() for part in (gate, up))
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    tokens, features = gate.shape
    kernels.gated[(tokens, triton.cdiv(features, 1024))](
        gate, up, out, features, gate.stride(0), up.stride(0), BLOCK=1024, num_warps=4, **early(gate)
    )
    return out


def attend(query: Tensor, keys: Tensor, values: Tensor, seen: Tensor, scale: float) -> Tensor:
    """`qkit.backends.torch.attend`."""
    (groups, heads, dim), length = query.shape, keys.shape[1]
    blocks = triton.cdiv(length, POSITIONS)
    if blocks > MOST or not 16 <= dim <= 256 or dim & (dim - 1):
        return plain.attend(query, keys, values, seen, scale)
    query, keys, values = query.contiguous(), keys.contiguous(), values.contiguous()
    most, shares = torch.empty(2, groups, blocks, heads, dtype=torch.float32, device=query.device)
    parts = torch.empty(groups, blocks, heads, dim, dtype=torch.float32, device=query.device)
    out, launched = torch.empty_like(query), {"num_warps": 4, **early(query)}
    kernels.attend[(groups, blocks)](
        query, keys, values, seen, most, shares, parts, scale, length, HEADS=heads,
        ROWS=max(16, triton.next_power_of_2(heads)), DIM=dim, BLOCK=POSITIONS, **launched,
    )  # fmt: skip
    kernels.combine[(groups, heads)](
        most, shares, parts, out, HEADS=heads, BLOCKS=blocks, WIDTH=triton.next_power_of_2(blocks), DIM=dim, **launched
    )  # fmt: skip
    return out
