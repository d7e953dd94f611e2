import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qkit.methods.codebook import FP4, NF4, codebook_quantize
from qkit.methods.int8 import int8_rows
from qkit.numerics.codebooks import codebook


def counted(rows, columns):
    """Weights from whole numbers, exact in float16 and the same on every machine."""
    i = torch.arange(rows * columns)
    return ((i * 7919 + i // 11) % 1001 - 500).float().reshape(rows, columns) / 256


def with_a_block_of_zeros():
    weight = counted(9, 75)
    weight.view(-1)[64:96] = 0
    return weight


def digest(tensor):
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]


# What bitsandbytes 0.50.2 makes of `with_a_block_of_zeros()` in blocks of 32 (quantize_4bit, dequantize_4bit on the CPU):
# the sha256 of the codes, of the absmax values, of the weights, and of the weights with double quantization.
GOLDEN = {
    NF4: ("40109aff582e85ae", "28b786a68d964579", "8b02aed08a335f8d", "1f43d8d75ada1d9c"),
    FP4: ("cbf1f021e9cd241e", "28b786a68d964579", "da7e2328e68c0fb2", "d1c4d08042abba39"),
}
NESTED = [182, 180, 0, 172, 176, 175, 177, 171, 179, 182, 182, 169, 179, 177, 174, 174, 176, 179, 163, 181, 182, 55]


@pytest.mark.parametrize("scheme", GOLDEN)
def test_codes_absmax_and_weights_are_those_of_bitsandbytes(scheme):
    plain, double = (codebook_quantize(with_a_block_of_zeros(), scheme(32, double)) for double in (False, True))
    found = (digest(plain.codes()), digest(plain.scales), digest(plain.dequantize()), digest(double.dequantize()))
    assert found == GOLDEN[scheme]
    assert torch.equal(double.packed, plain.packed)
    assert double.scales.tolist() == [NESTED]
    assert double.scale_offset.item() == double.nested_scales.item() == 1.813032627105713


def test_8_bit_codes_of_absmax_values_are_looked_up_as_bitsandbytes_does():
    """Rows of 33 sizes, the middle one the mean: its grid of 65536 places has no zero there, which would be the nearest."""
    weight = counted(528, 64)
    weight[:, 0] = 2
    q = codebook_quantize(weight * (1 + torch.arange(528) % 33)[:, None], NF4())
    assert q.scale_offset.item() == 34
    assert q.scales[0, 16] == 131  # 127 is zero
    assert (digest(q.scales), digest(q.dequantize())) == ("df44e3218baa1c16", "26eaa6f47b9ddf19")


def test_int8_codes_are_those_of_bitsandbytes():
    q = int8_rows(counted(9, 75).half())
    assert digest((q.codes().int() - 128).to(torch.int8)) == "591db42b5dbb033e"
    assert (q.scales[:, 0] * 127).tolist() == pytest.approx(
        [1.953125, 1.9296875, 1.92578125, 1.9375, 1.94921875, 1.9375, 1.921875, 1.93359375, 1.953125], rel=2**-23
    )


def test_double_quantization_costs_an_eighth_of_a_bit_and_little_accuracy():
    weight = torch.randn(256, 1024, generator=torch.Generator().manual_seed(0))
    plain, double = (codebook_quantize(weight, NF4(double_quant=double)) for double in (False, True))
    assert plain.bits_per_weight == 4.5
    assert double.bits_per_weight == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=2e-4)
    errors = [(q.dequantize() - weight).square().mean() for q in (plain, double)]
    assert errors[0] < errors[1] < 1.01 * errors[0]


def test_nf4_beats_fp4_and_an_even_grid_on_normal_weights():
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    errors = [(codebook_quantize(weight, scheme).dequantize() - weight).square().mean() for scheme in (NF4(), FP4())]
    blocks = weight.reshape(-1, 64)
    step = blocks.abs().amax(1, keepdim=True) / 7
    assert errors[0] < (torch.round(blocks / step) * step - blocks).square().mean() < errors[1]


matrices = st.tuples(st.integers(1, 5), st.integers(1, 70), st.integers(-30, 30), st.integers(0, 2**20)).map(
    lambda t: torch.randn(t[0], t[1], generator=torch.Generator().manual_seed(t[3])) * 10.0 ** t[2]
)
schemes = st.builds(
    lambda kind, block, double: kind(block, double),
    st.sampled_from([NF4, FP4]),
    st.sampled_from([32, 64, 4096]),
    st.booleans(),
)


@given(matrices, schemes)
def test_every_weight_is_within_half_the_widest_gap_of_its_table(weight, scheme):
    q = codebook_quantize(weight, scheme)
    gap = codebook(q.codebook).sort().values.diff().max()
    exact = codebook_quantize(weight, type(scheme)(scheme.block_size, double_quant=False))
    error = (q.dequantize() - weight).abs().reshape(-1)
    absmax, stored = (a.absmax().repeat_interleave(scheme.block_size)[: len(error)] for a in (exact, q))
    assert (error <= absmax * gap / 2 * (1 + 1e-5) + (stored - absmax).abs()).all()


@given(matrices, schemes)
def test_zeros_stay_zero(weight, scheme):
    weight[0] = 0
    assert (codebook_quantize(weight, scheme).dequantize()[0] == 0).all()


@pytest.mark.parametrize("scheme", [NF4(), FP4(), NF4(32, double_quant=False)], ids=repr)
@pytest.mark.parametrize("shape", [(1, 1), (1, 64), (3, 50), (128, 128)])
def test_a_weight_of_zeros_comes_back_as_zeros(scheme, shape):
    assert (codebook_quantize(torch.zeros(shape), scheme).dequantize() == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_widened_first(dtype):
    weight = counted(3, 50).to(dtype)
    for quantize in (lambda w: codebook_quantize(w, NF4()), int8_rows):
        assert torch.equal(quantize(weight).packed, quantize(weight.float()).packed)


@given(matrices)
def test_int8_rows_are_within_half_a_step_and_reach_127(weight):
    q = int8_rows(weight)
    assert (q.bits, q.group_size, q.symmetric, q.scales.dtype) == (8, None, True, torch.float32)
    codes = q.codes().int() - 128
    assert (codes.abs().amax(1) == 127).all()
    error = (q.dequantize().double() - weight.double()).abs()
    # round(w 127 / absmax): two roundings of at most 2^-24 of 127, and the scale has a third
    assert (error <= q.scales.double() * (0.5 + 127 * 3 * 2.0**-24)).all()


def test_int8_rows_of_zeros_and_of_denormals():
    weight = torch.stack([torch.zeros(4), torch.full((4,), 1e-40), torch.tensor([1e-37, -5e-38, 0, 0])])
    q = int8_rows(weight)
    assert q.scales[0] == 1 and q.scales.isfinite().all() and (q.scales > 0).all()
    assert (q.dequantize()[0] == 0).all()
    assert ((q.dequantize() - weight).abs() <= q.scales / 2).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("quantize", [lambda w: codebook_quantize(w, NF4(), "w"), lambda w: int8_rows(w, "w")])
def test_weights_that_are_not_finite_are_refused(bad, quantize):
    weight = counted(2, 5)
    weight[1, 1] = bad
    with pytest.raises(ValueError, match=r"w holds . NaN and . infinite values of 10"):
        quantize(weight)


def test_a_weight_that_float16_cannot_hold_is_refused_after_the_cast():
    with pytest.raises(ValueError, match="1 infinite"):
        int8_rows(torch.tensor([[1e5, 1.0]]).half())
