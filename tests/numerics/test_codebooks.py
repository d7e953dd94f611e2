import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qkit.numerics.codebooks import codebook, dynamic_map, fp4, nearest, nf4, quantize_blocks

TABLES = {"nf4": nf4(), "fp4": fp4(), "dynamic": dynamic_map()}

# The first 16 digits of the sha256 of bitsandbytes 0.50.2's float32 tables
DIGESTS = {"nf4": "8501941daa1b8a90", "fp4": "b830bcf8857895e5", "dynamic": "e732639a65f497b4"}


@pytest.mark.parametrize("name", TABLES)
def test_every_bit_of_the_table_is_that_of_bitsandbytes(name):
    table = TABLES[name]
    assert table.dtype == torch.float32
    assert hashlib.sha256(table.numpy().tobytes()).hexdigest()[:16] == DIGESTS[name]


def test_nf4_has_zero_one_more_level_above_than_below_and_both_ends():
    table = nf4()
    assert (table.diff() > 0).all()
    assert table[0] == -1 and table[7] == 0 and table[15] == 1
    assert table[1].item() == -0.6961928009986877  # QLoRA, appendix E


def test_normal_weights_use_the_codes_of_nf4_more_evenly_than_those_of_an_even_grid():
    x = torch.randn(2000 * 64, generator=torch.Generator().manual_seed(0))
    even = torch.linspace(-1, 1, 16)
    nf4_share, even_share = (
        torch.bincount(quantize_blocks(x, table, 64)[0].long(), minlength=16) / len(x) for table in (nf4(), even)
    )
    assert nf4_share.std() < even_share.std() / 1.5
    assert nf4_share.max() < 1.5 / 16 < even_share.max()


def test_fp4_reads_as_twelfths_in_the_order_of_the_bits():
    assert (fp4() * 12).tolist() == pytest.approx(
        [0, 1 / 16, 8, 12, 4, 6, 2, 3, 0, -1 / 16, -8, -12, -4, -6, -2, -3], abs=1e-6
    )


def test_the_dynamic_map_is_finest_next_to_zero():
    table = dynamic_map()
    assert (len(table), table[127], table[255]) == (256, 0, 1)
    assert (table.diff() > 0).all()
    assert table[128].item() == pytest.approx(5.5e-7, rel=1e-6)
    assert torch.equal(table[128:255], -table[:127].flip(0))


def test_a_table_of_another_name_is_refused():
    with pytest.raises(ValueError, match=r"codebook='int4' is not one of \"nf4\", \"fp4\""):
        codebook("int4")


@pytest.mark.parametrize("name", TABLES)
def test_every_number_of_a_table_is_its_own_nearest(name):
    table = TABLES[name]
    assert torch.equal(table[nearest(table, table).long()], table)


@pytest.mark.parametrize("name", TABLES)
@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=50))
def test_no_other_number_of_the_table_is_nearer(name, values):
    table, x = TABLES[name], torch.tensor(values)
    chosen = (table[nearest(x, table).long()].double() - x).abs()
    best = np.abs(table.double().numpy() - x.double().numpy()[:, None]).min(1)
    # The middle of two neighbours is rounded to float32: at worst 2^-25 from where it should be, on both sides
    assert (chosen.numpy() <= best + 2.0**-24).all()


def test_half_way_goes_down_and_the_two_zeros_of_fp4_meet_at_zero():
    table = fp4()
    half = (table[6] + table[7]) / 2
    assert nearest(torch.stack([half, -half]), table).tolist() == [6, 15]
    assert nearest(torch.tensor([0.0, -0.0, 1e-6, -1e-6]), table).tolist() == [0, 0, 8, 0]


@pytest.mark.parametrize("shape", [(), (0,), (2, 3), (1, 1, 5)])
def test_codes_keep_the_shape(shape):
    codes = nearest(torch.zeros(shape), nf4())
    assert codes.shape == shape and codes.dtype == torch.uint8


@pytest.mark.parametrize(("length", "size"), [(1, 64), (63, 64), (64, 64), (65, 64), (200, 32), (7, 1)])
def test_blocks_are_divided_by_their_own_absmax(length, size):
    x = torch.randn(length, generator=torch.Generator().manual_seed(length))
    codes, absmax = quantize_blocks(x, nf4(), size)
    for block in range(-(-length // size)):
        part = slice(block * size, (block + 1) * size)
        assert absmax[block] == x[part].abs().max()
        largest = x[part].abs().argmax()
        assert nf4()[codes[part].long()][largest].abs() == (1 if x[part][largest] > 0 or x[part].min() < 0 else 0)


def test_blocks_of_zeros_come_back_as_zeros():
    codes, absmax = quantize_blocks(torch.zeros(70), nf4(), 32)
    assert codes.unique().tolist() == [7]
    assert absmax.tolist() == [0, 0, pytest.approx(1e-38)]
