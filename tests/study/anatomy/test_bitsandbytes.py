"""The levels and the errors of 4-bit formats are those of the library."""

import pytest
import torch

import qkit
from qkit.study.anatomy.bitsandbytes import four_bit_levels, four_bit_sqnr, within_blocks


@pytest.fixture
def weight():
    return torch.randn(16, 128, generator=torch.Generator().manual_seed(0)) * 0.1


def test_the_levels_are_those_that_a_block_with_absmax_one_can_hold():
    sweep = torch.linspace(-1, 1, 4096).reshape(1, -1)
    schemes = {"NF4": qkit.NF4(4096, False), "FP4": qkit.FP4(4096, False)}
    schemes["INT4"] = qkit.RTN(4, symmetric=True, scale_dtype="float32")
    for name, levels in four_bit_levels().items():
        held = qkit.quantize_tensor(sweep, schemes[name]).dequantize().unique()
        assert len(held) >= 15  # of two levels half a step away the end of INT4's range falls on one
        assert (held[:, None] - levels).abs().amin(1).max() < 1e-6


def test_sqnr_is_that_of_the_library_and_blocks_run_over_rows(weight):
    sqnr = four_bit_sqnr(weight, 256)
    expected = qkit.quantize_tensor(weight, qkit.NF4(256, double_quant=False)).dequantize()
    assert sqnr["NF4"] == pytest.approx(qkit.sqnr_db(weight, expected))
    assert sqnr["NF4"] > sqnr["INT4"] > sqnr["FP4"]
    with pytest.raises(ValueError, match="block_size=4096 does not divide 2048 weights"):
        four_bit_sqnr(weight, 4096)


def test_a_block_size_that_leaves_a_rest_is_refused_by_all(weight):
    with pytest.raises(ValueError, match="block_size=4096 does not divide 2048 weights"):
        within_blocks(weight, 4096)
    assert within_blocks(weight, 64).abs().reshape(-1, 64).amax(1).eq(1).all()
