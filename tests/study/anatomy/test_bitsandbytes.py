"""The levels and the errors of 4-bit formats are those of the library."""

import pytest
import torch

import qkit
from qkit.study.anatomy.bitsandbytes import e2m1, four_bit_levels, four_bit_sqnr, level_use, within_blocks


@pytest.fixture
def weight():
    return torch.randn(16, 128, generator=torch.Generator().manual_seed(0)) * 0.1


def test_the_levels_are_those_that_a_block_with_absmax_one_can_hold():
    sweep = torch.linspace(-1, 1, 4096).reshape(1, -1)
    schemes = {"NF4": qkit.NF4(4096, False), "FP4": qkit.FP4(4096, False)}
    schemes["INT4"] = qkit.RTN(4, symmetric=True, scale_dtype="float32")
    levels_of = four_bit_levels()
    assert torch.equal(levels_of.pop("E2M1"), e2m1().unique())  # no scheme stores it
    for name, levels in levels_of.items():
        held = qkit.quantize_tensor(sweep, schemes[name]).dequantize().unique()
        assert len(held) >= 15  # of two levels half a step away the end of INT4's range falls on one
        assert (held[:, None] - levels).abs().amin(1).max() < 1e-6


def test_sqnr_is_that_of_the_library_and_blocks_run_over_rows(weight):
    sqnr = four_bit_sqnr(weight, 256)
    expected = qkit.quantize_tensor(weight, qkit.NF4(256, double_quant=False)).dequantize()
    assert sqnr["NF4"] == pytest.approx(qkit.sqnr_db(weight, expected))
    assert sqnr["NF4"] > max(sqnr["INT4"], sqnr["E2M1"]) and sqnr["FP4"] < min(sqnr["INT4"], sqnr["E2M1"])
    blocks = within_blocks(weight, 256)
    on_table = e2m1()[(blocks[..., None] - e2m1()).abs().argmin(-1)]
    absmax = weight.reshape(-1, 256).abs().amax(1, keepdim=True)
    by_hand = on_table.reshape(-1, 256) * absmax
    assert sqnr["E2M1"] == pytest.approx(qkit.sqnr_db(weight.reshape(-1, 256), by_hand), abs=1e-4)
    with pytest.raises(ValueError, match="block_size=4096 does not divide 2048 weights"):
        four_bit_sqnr(weight, 4096)


def test_a_block_size_that_leaves_a_rest_is_refused_by_all(weight):
    with pytest.raises(ValueError, match="block_size=4096 does not divide 2048 weights"):
        within_blocks(weight, 4096)
    assert within_blocks(weight, 64).abs().reshape(-1, 64).amax(1).eq(1).all()


def test_e2m1_is_the_float_of_its_bits_and_differs_from_fp4_in_one_level_of_either_sign():
    for pattern, value in enumerate(e2m1().tolist()):
        sign, exponent, mantissa = pattern >> 3, pattern >> 1 & 3, pattern & 1
        magnitude = (1 + mantissa / 2) * 2 ** (exponent - 1) if exponent else mantissa / 2
        assert value == pytest.approx((-1) ** sign * magnitude / 6)
    levels = four_bit_levels()
    differ = (levels["E2M1"] - levels["FP4"]).abs() > 1e-6
    assert levels["E2M1"][differ].tolist() == pytest.approx([-1 / 12, 1 / 12])


def test_the_use_of_levels_counts_every_weight_at_its_nearest(weight):
    use = level_use(weight, 64)
    codes = qkit.quantize_tensor(weight, qkit.NF4(64, double_quant=False)).codes()
    assert torch.equal(use, codes.flatten().long().bincount(minlength=16).double() / weight.numel())
    assert level_use(weight, 64, torch.tensor([-1.0, 0.0, 1.0])).sum() == 1
    assert level_use(torch.zeros(1, 64), 64)[7] == 1
