"""A quantized weight taken apart: its groups, the levels that each can hold, and the errors between them.

A group is what shares a scale: weights of a row, a whole row, the whole tensor; or a block of a codebook, which runs over the
ends of rows. In all of them the members are neighbours in the flattened weight, so that a group is a place in it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qkit import ops
from qkit.numerics.mapping import check_finite
from qkit.numerics.stored import StoredWeight

BINS = 200


def levels(q: StoredWeight, row: int, group: int) -> np.ndarray:
    """The real numbers that one group of `q` can hold, float64, ascending, each once: 2^bits of them, or those of a table."""
    return np.unique(q.levels(row, group).double().cpu().numpy())


def is_even(grid: np.ndarray) -> bool:
    """Whether neighbouring levels are all one step apart."""
    gaps = np.diff(grid)
    return len(gaps) > 0 and np.allclose(
        gaps, gaps[0], rtol=0.01, atol=0
    )  # levels are float32, far from zero coarse ones


def group_by_scale(q: StoredWeight, quantile: float) -> tuple[int, int]:
    """(row, group) of the scale at `quantile` among all: 1 is the widest group, 0.5 the median one."""
    stretch = q.stretch()
    index = int(stretch.flatten().argsort()[round(quantile * (stretch.numel() - 1))])
    return divmod(index, stretch.shape[1])


def members(values: Tensor, q: StoredWeight, row: int, group: int) -> Tensor:
    """Those of `values` [out, in] that belong to one group of `q`; the last block of a codebook may be short."""
    stretch = q.stretch()
    shared = q.shape[1] if q.group_size is None else q.group_size
    size = values.numel() if shared == "tensor" else shared
    start = (row * stretch.shape[1] + group) * size
    return values.reshape(-1)[start : start + size]


def plain_weight(weight: Tensor, q: StoredWeight, name: str) -> Tensor:
    """`weight` as float32 on the CPU, to be looked at beside `q`.

    Raises:
        ValueError: it is not finite, or of another shape than `q`.
    """
    if tuple(weight.shape) != tuple(q.shape):
        raise ValueError(
            f"{name} is {tuple(weight.shape)} and its quantized form {tuple(q.shape)}; give the weight it was made from"
        )
    check_finite(weight, name)
    return weight.detach().float().cpu()


@dataclass(frozen=True, eq=False)
class HistogramCounts:
    """How many weights fall into each bin, before and after.

    Attributes:
        edges: float64 [bins + 1].
        before, after: float32 [bins].
    """

    edges: np.ndarray
    before: np.ndarray
    after: np.ndarray


def histogram(weight: Tensor, q: StoredWeight) -> HistogramCounts:
    """Count `weight` [out, in] and what `q` made of it, in even bins over both."""
    approximation = ops.dequantize(q).cpu()
    lo, hi = (float(f(f(weight), f(approximation))) for f in (torch.min, torch.max))
    margin = 0.03 * (hi - lo) or 1.0
    edges = np.linspace(lo - margin, hi + margin, BINS + 1)
    return HistogramCounts(edges, _counts(weight, edges), _counts(approximation, edges))


def _counts(values: Tensor, edges: np.ndarray) -> np.ndarray:
    return torch.histc(values.flatten(), bins=len(edges) - 1, min=float(edges[0]), max=float(edges[-1])).numpy()


@dataclass(frozen=True, eq=False)
class GroupErrors:
    """The errors of the weights of one group, and of any weight in its range.

    Attributes:
        levels: what the group can hold, ascending.
        gaps: between neighbours; empty where there is one level.
        sweep, tooth: both ends of the interval of each level, and the error there: a sawtooth.
        weights, errors: float32, the group's own; an error is ŵ - w.
    """

    levels: np.ndarray
    gaps: np.ndarray
    sweep: np.ndarray
    tooth: np.ndarray
    weights: np.ndarray
    errors: np.ndarray

    @property
    def bound(self) -> float:
        """The largest error inside the range: half the widest gap, which on an even grid is half a step."""
        if not len(self.gaps):
            return 0.0
        return float(self.gaps.mean() if self.even else self.gaps.max()) / 2

    @property
    def rms(self) -> float:
        """The root of the mean squared error."""
        return float(np.sqrt(np.mean(np.square(self.errors, dtype=np.float64))))

    @property
    def even(self) -> bool:
        """Whether all gaps are one step."""
        return is_even(self.levels)


def group_errors(weight: Tensor, q: StoredWeight, row: int, group: int) -> GroupErrors:
    """The errors of one group of `q`, made from `weight` [out, in]."""
    grid = levels(q, row, group)
    gaps = np.diff(grid)
    around = np.pad(gaps, 1, "edge") if len(gaps) else np.zeros(2)  # beyond its ends a grid errs as beside them
    sides = np.stack([-around[:-1], around[1:]], 1) / 2
    own = members(weight, q, row, group)
    errors = (members(ops.dequantize(q).cpu(), q, row, group) - own).numpy()
    return GroupErrors(grid, gaps, (grid[:, None] + sides).ravel(), -sides.ravel(), own.numpy(), errors)
