"""Tiles of y that programs share: whoever takes which stretch of blocks, the sum is the same."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grids import thinned
from products import exact, weight, whole

pytest.importorskip("triton", reason="Triton is not installed: pip install 'qkit[gpu]'")

from qkit.backends.triton import layout, tiles
from qkit.backends.triton import linear as adapter

Q = weight(4, 130, 896, 128, "zero points")  # three tiles of 64 rows, seven blocks
X = whole(40, 896).half()  # two tiles of 32 tokens
X[:, torch.arange(896) % 16 > 0] = 0  # so that sums are what float16 holds


@pytest.mark.parametrize("programs", thinned([0, 1, 4, 5, 12, 41, 100], [0, 4, 41]))  # six tiles of seven blocks
def test_however_tiles_are_dealt_out(programs):
    y = torch.full((40, 130), torch.nan, dtype=torch.float16)
    cut = tiles.Many(64, 32, 4, 2, programs)
    adapter.many(adapter.aligned(X), layout.lay(Q, torch.float16), y, cut, ptx=False, drain=False)
    assert torch.equal(y, exact(X, Q).half())


def stretches(programs, work, blocks, split):
    """`qkit_kernels.triton.pieces.stretch`, for all programs."""
    every = work * blocks if split else work
    unit = 1 if split else blocks
    return [(p * every // programs * unit, (p + 1) * every // programs * unit) for p in range(programs)]


@given(
    st.integers(1, 20000), st.integers(1, 1300), st.integers(1, 300), st.sampled_from([64, 128]), st.integers(1, 300)
)
def test_what_a_way_of_dealing_out_is_said_to_cost(rows, tokens, blocks, bm, places):
    work = -(-rows // 128) * -(-tokens // bm)
    for most, programs, parts in tiles.dealt(rows, 128, tokens, bm, blocks, places):
        assert 1 <= programs <= max(places, 1)
        took = stretches(programs, work, blocks, parts > 0)
        assert took[0][0] == 0 and took[-1][1] == work * blocks
        assert all(end == begin for (_, end), (begin, _) in pairwise(took))
        assert all(begin < end for begin, end in took)
        assert max(end - begin for begin, end in took) == most
        whole_tiles = all(begin % blocks == 0 == end % blocks for begin, end in took)
        within_one = all(begin // blocks == (end - 1) // blocks for begin, end in took)
        assert whole_tiles if parts == 0 else within_one if parts != tiles.STRETCHES else True
