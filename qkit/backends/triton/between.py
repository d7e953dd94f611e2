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


def fits(x: Tensor, *others: Tensor) -> bool:
    """Whether the kernels take them: one dtype, on a card whose tensor cores Triton reaches."""
    alike = all(other.dtype == x.dtype for other in others)
    return alike and (x.is_cpu or tiles.card(x.device.index).tensor_cores)


def add_norm(x: Tensor, more: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`qkit.backends.torch.add_norm`."""
    if x.shape[1] > WIDEST or not fits(x, more, weight):
        return plain.add_norm(x, more, weight, eps)
    x, more, weight = x.contiguous(), more.contiguous(), weight.contiguous()
    total, norm = torch.empty_like(x), torch.empty_like(x)
    (tokens, features), width = x.shape, triton.next_power_of_2(x.shape[1])
    with torch.cuda.device_of(x):  # Triton launches on the card that is current
        kernels.add_norm[(tokens,)](
            x, more, weight, total, norm, eps, K=features, WIDTH=width, num_warps=max(1, min(16, width // 256)), **early(x)
        )  # fmt: skip
    return total, norm


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """`qkit.backends.torch.gated`."""
    if not fits(gate, up):
        return plain.gated(gate, up)
    gate, up = (part if part.stride(1) == 1 else part.contiguous() for part in (gate, up))
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    tokens, features = gate.shape
    with torch.cuda.device_of(gate):
        kernels.gated[(tokens, triton.cdiv(features, 1024))](
            gate, up, out, features, gate.stride(0), up.stride(0), BLOCK=1024, num_warps=4, **early(gate)
        )  # fmt: skip
    return out


def attend(query: Tensor, keys: Tensor, values: Tensor, seen: Tensor, scale: float) -> Tensor:
    """`qkit.backends.torch.attend`."""
    (groups, heads, dim), length = query.shape, keys.shape[1]
    blocks = triton.cdiv(length, POSITIONS)
    odd = not 16 <= dim <= 256 or dim & (dim - 1) or values.shape != keys.shape
    if blocks > MOST or odd or not fits(query, keys, values):
        return plain.attend(query, keys, values, seen, scale)
    query, keys, values, seen = query.contiguous(), keys.contiguous(), values.contiguous(), seen.contiguous()
    most, shares = torch.empty(2, groups, blocks, heads, dtype=torch.float32, device=query.device)
    parts = torch.empty(groups, blocks, heads, dim, dtype=torch.float32, device=query.device)
    out, launched = torch.empty_like(query), {"num_warps": 4, **early(query)}
    with torch.cuda.device_of(query):
        kernels.attend[(groups, blocks)](
            query, keys, values, seen, most, shares, parts, scale, length, HEADS=heads,
            ROWS=max(16, triton.next_power_of_2(heads)), DIM=dim, BLOCK=POSITIONS, **launched,
        )  # fmt: skip
        kernels.combine[(groups, heads)](
            most, shares, parts, out, HEADS=heads, BLOCKS=blocks, WIDTH=triton.next_power_of_2(blocks), DIM=dim, **launched
        )  # fmt: skip
    return out
