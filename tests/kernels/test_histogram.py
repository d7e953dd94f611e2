"""The histogram of |x| by the bits of floats: the kernel counts what torch counts, whatever the shape and the numbers."""

import pytest
import torch

from products import random
from qkit.ops import count_magnitudes

BINS, SHIFT, LOWEST = 3072, 17, 103 * 64  # as calibration asks: 64 bins an octave, from 2^-24 to 2^24


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (7, 129), (5, 20000), (1001, 96)], ids=str)
def test_the_kernel_counts_what_torch_counts(shape):
    x = random(*shape) * 10 ** random(shape[0], 1, seed=1)
    found = count_magnitudes(x, BINS, SHIFT, LOWEST, "numba")
    assert torch.equal(found, count_magnitudes(x, BINS, SHIFT, LOWEST, "torch")) and int(found.sum()) == x.numel()


def test_what_lies_outside_counts_in_the_first_or_the_last_bin():
    x = torch.tensor([[0.0, -0.0, 1e-30, -1e-30, 2.0**-24, 1.0, -1.0, 2.0**24, -1e30, float("inf"), float("nan")]])
    found = count_magnitudes(x, BINS, SHIFT, LOWEST, "numba")
    assert found[0] == 5 and found[24 * 64] == 2 and found[-1] == 4


def test_views_are_counted_as_they_are_seen():
    x = random(64, 40)
    for view in (x.T, x[::2, ::3], x[3:4]):
        assert torch.equal(*(count_magnitudes(view, BINS, SHIFT, LOWEST, name) for name in ("numba", "torch")))
