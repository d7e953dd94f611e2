"""A weight as the CPU's kernels read it: found once, and kept with the weight for the calls that follow.

To look at a weight's tensors, ask for their groups and see them as arrays takes Python 15 microseconds, the product of a small
layer 5. What is kept shares the memory of the tensors, so that numbers written into them count; what the tensors themselves
can do, to be given other memory (`tensor.data = ...`, `share_memory_`), is noticed by their addresses. A weight that has gaps
in memory is copied for each product, and nothing of it is kept.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qkit.numerics.stored import StoredWeight
from qkit_kernels.numba import streams
from qkit_kernels.numba.vector import LANES, Static

MAX_FEATURES, MAX_GROUPS = 2**16, 2**11  # a row of features, and one of groups, stand on a thread's stack
_NOTHING = np.zeros((0, 0), np.float32)
NO_BYTES = np.zeros(0, np.uint8)
_STATIC = {bits: Static(bits) for bits in range(2, 9)}


@dataclass(slots=True)
class Ready:
    """What kernels are given of a weight.

    Attributes:
        places: its tensors, and where their memory begins.
        shape: (out, in).
        groups: of a row.
        arrays: (packed, grid, table, block_group, lane_group, bits) as `qkit_kernels.numba.weight_only` takes them.
        integers: whether the kernels can multiply it with INT8 activations.
        together: whether they can take a few tokens together, a lane of which must hold codes of one group.
    """

    places: tuple[tuple[Tensor, int], ...]
    shape: tuple[int, int]
    groups: int
    arrays: tuple[Any, ...]
    integers: bool
    together: bool


def ready(q: StoredWeight) -> Ready | None:
    """What kernels are given of `q`; None where they cannot read it."""
    found: Ready | None = getattr(q, "ready", None)
    if found is not None:
        for tensor, place in found.places:
            if tensor.data_ptr() != place:
                break
        else:
            return found
    return _found(q) if fits(q) else None


def readied(q: StoredWeight) -> Ready:
    """The same of a weight that `fits`."""
    found = ready(q)
    if found is None:
        raise ValueError(f'{q!r} has groups or rows that the CPU\'s kernels cannot read; use backend="torch"')
    return found


def _found(q: StoredWeight) -> Ready:
    tensors, groups = tuple(q.tensors().values()), q.row_groups
    table = q.table()
    parts = q.packed.contiguous().numpy(), _grid(q), None if table is None else table.numpy()
    found = Ready(
        places=tuple((tensor, tensor.data_ptr()) for tensor in tensors),
        shape=q.shape,
        groups=groups,
        arrays=(*parts, *_geometry(q.bits, q.shape[1], groups), _STATIC[q.bits]),
        integers=fits_integers(q),
        together=_groups_are_multiples_of(streams.UNIT[q.bits], q),
    )
    if all(tensor.is_contiguous() for tensor in tensors):
        object.__setattr__(q, "ready", found)  # nothing of what the weight is
    return found


def fits(q: StoredWeight) -> bool:
    """Whether the kernels can read `q`: groups must not run over the ends of rows."""
    out_features, in_features = q.shape
    return out_features > 0 and 0 < in_features <= MAX_FEATURES and q.row_groups is not None


def fits_integers(q: StoredWeight) -> bool:
    """Whether the kernels can multiply `q` with INT8 activations: whole numbers, in groups of whole fours."""
    return fits(q) and q.table() is None and _groups_are_multiples_of(4, q)


def _groups_are_multiples_of(unit: int, q: StoredWeight) -> bool:
    groups = q.row_groups
    return groups == 1 or (groups is not None and groups <= MAX_GROUPS and q.shape[1] // groups % unit == 0)


@lru_cache(maxsize=256)
def _geometry(bits: int, features: int, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """The group of each block's first lane, and of each lane counted from there ([0, 16] where that is always 0)."""
    codes = LANES * streams.UNIT[bits]
    blocks, size = -(-features // codes), features // groups
    of_lane = np.minimum(np.arange(blocks * LANES) * streams.UNIT[bits] // size, groups - 1).reshape(blocks, LANES)
    of_block = np.ascontiguousarray(of_lane[:, 0], np.int32)
    inside = np.ascontiguousarray(of_lane - of_lane[:, :1], np.int32)
    return of_block, inside if inside.any() else inside[:0]


def floats(tensor: Tensor) -> np.ndarray:
    """A float32, float16 or bfloat16 tensor as the kernels see it, a copy only if it has gaps: see `vector.as_float`."""
    tensor = (tensor.detach() if tensor.requires_grad else tensor).contiguous()
    if tensor.dtype == torch.float16:
        tensor = tensor.view(torch.uint16)
    elif tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.int16)
    return tensor.numpy()


def _grid(q: StoredWeight) -> tuple[np.ndarray, ...]:
    """What the codes of `q` are worth, as `qkit_kernels.numba.grid` reads it."""
    scales, second, third, *offset = q.grid()
    seconds = NO_BYTES if second is None else second.contiguous().numpy()
    thirds = _NOTHING if third is None else floats(third)
    return (floats(scales), seconds, thirds, *(floats(part) for part in offset))
