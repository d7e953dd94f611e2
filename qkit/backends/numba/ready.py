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

from qkit.backends.numba.few import can_be_added, in_one_call
from qkit.numerics.activations import Activations
from qkit.numerics.stored import StoredWeight
from qkit_kernels.numba import integer, streams, weight_only
from qkit_kernels.numba.vector import LANES, Static

MAX_FEATURES, MAX_GROUPS = 2**16, 2**11  # a row of features, and one of groups, stand on a thread's stack
_NOTHING = np.zeros((0, 0), np.float32)
NO_BYTES = np.zeros(0, np.uint8)
NONE = -1.0  # a limit that finds no outliers
_STATIC = {bits: Static(bits) for bits in range(2, 9)}


@dataclass(slots=True)
class Ready:
    """What kernels are given of a weight.

    Attributes:
        tensors: what it is stored as.
        places: where their memory begins.
        shape: (out, in).
        groups: of a row.
        arrays: (packed, grid, table, block_group, lane_group, bits) as `qkit_kernels.numba.weight_only` takes them.
        integers: whether the kernels can multiply it with INT8 activations.
        together: whether they can take a few tokens together, a lane of which must hold codes of one group.

    A product of this object is the one compiled call of a few tokens, and None where there is more to be done.
    """

    tensors: tuple[Tensor, ...]
    places: list[int]
    shape: tuple[int, int]
    groups: int
    arrays: tuple[Any, ...]
    integers: bool
    together: bool

    def stands(self) -> bool:
        """Whether the tensors are still where they were."""
        return [tensor.data_ptr() for tensor in self.tensors] == self.places

    def with_floats(self, x: Tensor, bias: Tensor | None) -> Tensor | None:
        """x ŵᵀ + bias with float activations: float32 [..., out] of x [..., in]; a bias is one that `can_be_added`."""
        return in_one_call(weight_only.layer, x, self.shape, bias, self.arrays) if self.together else None

    def with_integers(self, x: Tensor, bias: Tensor | None, scale: float = 0.0, limit: float = NONE) -> Tensor | None:
        """The same with INT8 activations, in steps of `scale` or, if that is 0, of each token; columns with an |x| of at least
        `limit` stay floats.
        """
        if not self.together:
            return None
        packed, grid, _, *rest = self.arrays
        return in_one_call(integer.layer, x, self.shape, bias, (scale, limit, packed, grid, *rest))

    def linear(self, x: Tensor, bias: Tensor | None, activations: Activations | str | None) -> Tensor | None:
        """`qkit.ops.linear` where nobody asks for derivatives; nothing else is known of x and bias."""
        if not self.stands():
            return None
        if bias is not None and not (x.dtype == torch.float32 and can_be_added(bias, self.shape[0])):
            return None
        if activations is None:
            y = self.with_floats(x, bias)
        elif self.integers and isinstance(activations, Activations):
            y = self.with_integers(x, bias)
        else:
            return None
        return y if y is None or y.dtype == x.dtype else y.to(x.dtype)

    def int8_linear(
        self, x: Tensor, bias: Tensor | None, input_scale: Tensor | None, threshold: float
    ) -> Tensor | None:
        """`qkit.ops.int8_linear`, likewise, of a weight that it takes."""
        if not self.stands() or not self.integers:
            return None
        if bias is not None and not can_be_added(bias, self.shape[0]):
            return None
        if input_scale is not None and not input_scale.is_cpu:
            return None
        scale = 0.0 if input_scale is None else float(input_scale)
        y = self.with_integers(x, bias, scale, limit_of(threshold, x.dtype))
        return y if y is None or y.dtype == x.dtype else y.to(x.dtype)


@lru_cache
def limit_of(threshold: float, dtype: torch.dtype) -> float:
    """What |x| is compared with, a number of the dtype of x; `NONE` for 0, which finds no outliers."""
    return float(torch.tensor(threshold, dtype=dtype, device="cpu")) if threshold else NONE


def ready(q: StoredWeight) -> Ready | None:
    """What kernels are given of `q`; None where they cannot read it."""
    found: Ready | None = getattr(q, "ready", None)
    if found is not None and found.stands():
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
        tensors=tensors,
        places=[tensor.data_ptr() for tensor in tensors],
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
