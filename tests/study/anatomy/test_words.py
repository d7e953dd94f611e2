"""Where a code lies in the laid words is found out, and agrees with the layout's own description and its inverse."""

import inspect

import numpy as np
import pytest
import torch

from qkit.backends.triton.layout import pack_words
from qkit.study.anatomy.words import code_places, operand_order
from qkit_kernels.triton import assembly, few


@pytest.mark.parametrize(("bits", "table"), [*((bits, False) for bits in range(2, 9)), (4, True)])
def test_every_bit_of_every_code_is_where_it_is_said_to_be(bits, table):
    codes = torch.randint(0, 2**bits, (128, 128), generator=torch.Generator().manual_seed(bits), dtype=torch.uint8)
    words = pack_words(codes, bits, table).numpy().view(np.uint32)
    places = code_places(bits, table)
    told = words[:, None] >> np.arange(32, dtype=np.uint32) & 1
    assert np.array_equal(told, codes.numpy()[places.row, places.column] >> places.bit & 1)
    for row, column in ((0, 0), (9, 77), (127, 127)):
        where, at = places.of(row, column)
        assert sum(int(told[w, b]) << i for i, (w, b) in enumerate(zip(where, at, strict=True))) == codes[row, column]


def test_it_is_what_the_kernels_say_of_the_layout():
    """int32 [N/8, K/128, 8 (g), 4 (t), b]: row 8 n + g, columns 32 i + 8 t + 0..7; a code at bit 16 l + b p."""
    places = code_places(4)
    for word in (0, 5, 150, 2047):
        n, g, t, i = np.unravel_index(word, (16, 8, 4, 4))
        assert (places.lane[word], set(places.row[word])) == (4 * g + t, {8 * n + g})
        for bit in range(32):
            pair, left = bit % 16 // 4, bit // 16
            assert places.column[word, bit] == 32 * i + 8 * t + 4 * (pair // 2) + 2 * (pair % 2) + left


def test_planes_follow_each_other():
    places = code_places(3)
    assert (np.diff(places.plane) >= 0).all() and set(places.bit[places.plane == 1].ravel()) == {2}
    assert [int((places.plane == plane).sum()) for plane in (0, 1)] == [128 * 128 * w // 32 for w in assembly.PLANES[3]]


def test_the_operand_has_the_order_that_the_kernel_makes():
    order = operand_order()
    assert "(WARPS, 16, 32))  # b, r g, u t h l" in inspect.getsource(few.few.fn)
    columns = torch.arange(32).view(4, 2, 2, 2)  # t l u h, as `values` has them: column 8 t + 4 h + 2 u + l
    t, left, u, h = torch.meshgrid(*(torch.arange(n) for n in columns.shape), indexing="ij")
    value = 8 * t + 4 * h + 2 * u + left
    assert np.array_equal(order.ravel(), value.permute(2, 0, 3, 1).reshape(-1).numpy())
    for lane in range(4):  # a lane keeps what it loaded
        assert sorted(order[:, lane].ravel()) == list(range(8 * lane, 8 * lane + 8))
