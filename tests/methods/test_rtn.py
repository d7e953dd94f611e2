"""RTN through `quantize_tensor`, the door that readers use."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qkit import RTN, quantize_tensor, sqnr_db

SHAPES = [(1, 1), (1, 12), (7, 1), (5, 12), (3, 36)]
SCHEMES = [
    RTN(bits, group_size, symmetric, scale_dtype=dtype)
    for bits, group_size, symmetric, dtype in product(
        range(2, 9), (None, "tensor", 4), (False, True), ("float16", "float32")
    )
]


def bound(weight: torch.Tensor, q, scale_of_each: torch.Tensor) -> torch.Tensor:
    """s/2, and what float32 adds to it.

    In units of s: the scale may be short of (hi - lo) / steps by two roundings (2^b 2^-23 over the whole range), the
    zero point and w/s are quotients (2^b 2^-24 each), ŵ is a product (2^b 2^-24): together under 2^(b - 21).
    With an offset, w - offset and ŵ are sums besides: roundings of 2^-24 of the largest numbers in them, under 2^-22.
    """
    slack = scale_of_each * 2.0 ** (q.bits - 21)
    if q.offsets is not None:
        slack = slack + 2.0**-22 * max(weight.abs().max().item(), q.offsets.abs().max().item())
    return scale_of_each / 2 + slack


def spread(values: torch.Tensor, q) -> torch.Tensor:
    """The number of each group, float64, once for each weight of `q`."""
    rows, groups = values.shape
    size = q.shape[0] * q.shape[1] // (rows * groups)
    return values.double().repeat_interleave(size, 1).reshape(q.shape)


def assert_within_half_a_step(weight: torch.Tensor, scheme: RTN) -> None:
    q = quantize_tensor(weight, scheme)
    error = (weight.double() - q.dequantize().double()).abs()
    limit = bound(weight.double(), q, spread(q.scales, q))
    assert (error <= limit).all(), f"{scheme}: {error.max()} where {limit.max()} is allowed"


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: f"{s.name} {s.scale_dtype}")
def test_every_bit_equals_rtn_in_numpy(scheme, reference_rtn):
    for shape in SHAPES:
        if isinstance(scheme.group_size, int) and shape[1] % scheme.group_size:
            continue
        weight = normal(*shape)
        expected = reference_rtn(weight, scheme.bits, scheme.group_size, scheme.symmetric, scheme.scale_dtype)
        np.testing.assert_array_equal(quantize_tensor(weight, scheme).dequantize().numpy(), expected)


@st.composite
def weights(draw):
    """[rows, 4 groups] of any spread and of magnitudes from 1e-30 to 1e30, zeros and ties included."""
    rows, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    magnitude = 10.0 ** draw(st.integers(-30, 30))
    numbers = st.one_of(st.floats(-1, 1, width=32), st.sampled_from([0.0, 0.5, 1.0, -1.0]), st.integers(-8, 7))
    count = rows * groups * 4
    values = draw(st.lists(numbers, min_size=count, max_size=count))
    return (torch.tensor(values, dtype=torch.float64) * magnitude).float().reshape(rows, groups * 4)


schemes = st.one_of(
    st.builds(
        RTN,
        bits=st.integers(2, 8),
        group_size=st.sampled_from([None, "tensor", 4, 2]),
        symmetric=st.booleans(),
        scale_dtype=st.sampled_from(["float16", "float32"]),
    ),
    st.builds(
        RTN,
        bits=st.integers(2, 8),
        group_size=st.sampled_from([None, "tensor", 4, 2]),
        include_zero=st.just(False),
        scale_dtype=st.sampled_from(["float16", "float32"]),
    ),
)


@given(weights(), schemes)
def test_no_weight_moves_by_more_than_half_a_step(weight, scheme):
    assert_within_half_a_step(weight, scheme)


@given(weights(), schemes)
def test_every_weight_goes_to_the_nearest_of_all_codes(weight, scheme):
    q = quantize_tensor(weight, scheme)
    codes = torch.arange(2**q.bits, dtype=torch.float64)
    offsets = torch.zeros_like(q.scales) if q.offsets is None else q.offsets
    grid = spread(q.scales, q)[..., None] * (codes - spread(q.zeros(), q)[..., None]) + spread(offsets, q)[..., None]
    nearest = (weight.double()[..., None] - grid).abs().amin(-1)
    error = (weight.double() - q.dequantize().double()).abs()
    slack = bound(weight.double(), q, spread(q.scales, q)) - spread(q.scales, q) / 2
    assert (error <= nearest + slack).all()


@given(weights(), schemes.filter(lambda scheme: scheme.include_zero))
def test_zero_weights_stay_exactly_zero(weight, scheme):
    weight[0, 0] = 0
    values = quantize_tensor(weight, scheme).dequantize()
    assert (values[weight == 0] == 0).all()


@given(weights(), schemes)
def test_float16_scales_are_never_below_those_a_range_needs(weight, scheme):
    q = quantize_tensor(weight, scheme)
    groups = weight.reshape(q.scales.numel(), -1).double()
    low, high = groups.amin(1), groups.amax(1)
    if scheme.include_zero:
        low, high = low.clamp(max=0), high.clamp(min=0)
    if scheme.symmetric:
        high = torch.maximum(-low, high)
        low = -high
    if q.scales.dtype == torch.float16 and scheme.include_zero:
        # float32 may round the difference and the quotient down, by 2^-24 each, before float16 rounds up.
        assert (q.scales.double().reshape(-1) >= (high - low) / (2**q.bits - 1) * (1 - 2**-23)).all()


def test_the_four_bits_of_a_group_of_128_cost_4_point_15625():
    q = quantize_tensor(normal(8, 256), bits=4, group_size=128, symmetric=False)
    assert q.bits_per_weight == 4 + (16 + 4) / 128


def test_arguments_and_scheme_give_the_same():
    weight = normal(3, 12)
    by_scheme = quantize_tensor(weight, RTN(3, 4, symmetric=True))
    by_arguments = quantize_tensor(weight, bits=3, group_size=4, symmetric=True)
    assert torch.equal(by_scheme.packed, by_arguments.packed)
    assert torch.equal(by_scheme.scales, by_arguments.scales)


@pytest.mark.parametrize("scheme", [RTN(4), RTN(4, symmetric=True), RTN(2, 4), RTN(8, "tensor")], ids=repr)
def test_a_row_of_zeros_comes_back_as_zeros(scheme):
    weight = torch.stack([torch.zeros(8), normal(8)])
    assert quantize_tensor(weight, scheme).dequantize()[0].tolist() == [0] * 8


@pytest.mark.parametrize("scheme", [RTN(4), RTN(4, symmetric=True), RTN(4, include_zero=False)], ids=repr)
def test_a_row_of_zeros_does_not_cost_the_other_rows_their_float16_scales(scheme):
    weight = torch.stack([torch.zeros(8), normal(8)])
    assert quantize_tensor(weight, scheme).scales.dtype == torch.float16


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_weights_far_from_zero_are_better_off_without_it(dtype):
    weight = 10 + normal(6, 32, seed=1) / 10
    with_zero, without = RTN(4, 16, scale_dtype=dtype), RTN(4, 16, include_zero=False, scale_dtype=dtype)
    assert_within_half_a_step(weight, with_zero)
    assert_within_half_a_step(weight, without)
    gain = sqnr_db(weight, quantize_tensor(weight, without).dequantize()) - sqnr_db(
        weight, quantize_tensor(weight, with_zero).dequantize()
    )
    assert gain > 20  # a range of 10.3 against one of 0.4 is 28 dB; the rest pays for the rounding of the offset


@pytest.mark.parametrize("sign", [1, -1])
def test_a_group_of_one_sign_keeps_both_its_ends(sign):
    weight = sign * torch.linspace(3, 4, 17)[None]
    q = quantize_tensor(weight, bits=4)
    assert q.zeros().item() == (0 if sign == 1 else 15)
    assert_within_half_a_step(weight, RTN(4))


def test_one_outlier_spoils_its_own_group_and_no_other():
    weight = normal(2, 64)
    weight[0, 5] = 1000.0
    values = quantize_tensor(weight, bits=4, group_size=16).dequantize()
    assert values[0, :16].nonzero().tolist() == [[5]]
    calm = weight.clone()
    calm[0, 5] = 0.0
    others = torch.ones_like(weight, dtype=torch.bool)
    others[0, :16] = False
    assert torch.equal(values[others], quantize_tensor(calm, bits=4, group_size=16).dequantize()[others])
    assert_within_half_a_step(weight, RTN(4, 16))


@pytest.mark.parametrize("scheme", [RTN(4), RTN(4, symmetric=True), RTN(3, 4), RTN(8, include_zero=False)], ids=repr)
@pytest.mark.parametrize("magnitude", [1e-7, 1e-12])
def test_tiny_weights_keep_their_steps_in_float32_scales(scheme, magnitude):
    weight = normal(4, 64) * magnitude
    q = quantize_tensor(weight, scheme)
    assert q.scales.dtype == torch.float32
    relative = sqnr_db(normal(4, 64), quantize_tensor(normal(4, 64), scheme).dequantize())
    # The magnitude is no power of two, so some ties and ulps fall otherwise, and float16 cost up to 2^-10 of the scale.
    assert sqnr_db(weight, q.dequantize()) == pytest.approx(relative, abs=0.5)


@pytest.mark.parametrize("scheme", SCHEMES[::5], ids=repr)
def test_huge_weights_stay_within_half_a_step(scheme):
    assert_within_half_a_step(normal(3, 36).clamp(-3, 3) / 3 * 8e37, scheme)


@pytest.mark.parametrize("scheme", [RTN(2), RTN(8, symmetric=True), RTN(8, include_zero=False)], ids=repr)
def test_weights_near_the_largest_float32_are_refused(scheme):
    weight = torch.tensor([[-2e38, 2e38, 0.0, 1.0]])
    with pytest.raises(ValueError, match=r"w reaches 2e\+38, float32 arithmetic needs \|w\| <= 8\.5e\+37"):
        quantize_tensor(weight, scheme, name="w")


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("options", [{}, {"symmetric": True}, {"include_zero": False}], ids=str)
def test_the_largest_weights_that_are_accepted_stay_within_half_a_step(bits, options):
    largest = torch.finfo(torch.float32).max / 4
    assert_within_half_a_step(torch.tensor([[-largest, largest, 0.0, 1.0]]), RTN(bits, **options))


def test_float64_weights_beyond_float32_are_refused():
    weight = torch.tensor([[1e300, -1e300, 0.0, 1.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"w.*float32"):
        quantize_tensor(weight, bits=4, name="w")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_dtypes_are_quantized_by_their_float32_numbers(dtype):
    weight = normal(5, 12).to(dtype)
    expected = quantize_tensor(weight.float(), bits=3, group_size=4)
    q = quantize_tensor(weight, bits=3, group_size=4)
    assert torch.equal(q.packed, expected.packed)
    assert torch.equal(q.scales, expected.scales)
    assert_within_half_a_step(weight.float(), RTN(3, 4))


def test_a_transposed_and_a_strided_weight_are_read_as_they_look():
    weight = normal(5, 12)
    expected = quantize_tensor(weight, bits=4, group_size=4).dequantize()
    wide = torch.zeros(5, 24)
    wide[:, ::2] = weight
    for view in (weight.T.contiguous().T, wide[:, ::2]):
        assert not view.is_contiguous()
        assert torch.equal(quantize_tensor(view, bits=4, group_size=4).dequantize(), expected)


def test_the_weight_itself_is_left_alone_and_carries_no_gradient():
    weight = torch.nn.Parameter(normal(5, 12))
    before = weight.detach().clone()
    q = quantize_tensor(weight, RTN(4, include_zero=False))
    assert torch.equal(weight, before)
    assert not any(tensor.requires_grad for tensor in q.tensors().values())


@pytest.mark.parametrize(
    ("weight", "options", "message"),
    [
        (
            torch.ones(2, 12),
            {"bits": 4, "group_size": 5},
            "group_size=5 does not divide in_features=12 of w; use a divisor",
        ),
        (torch.tensor([[1.0, float("nan")]]), {"bits": 4}, "w holds 1 NaN and 0 infinite values of 2"),
        (torch.tensor([[1.0, -float("inf")]]), {"bits": 4}, "w holds 0 NaN and 1 infinite values of 2"),
        (torch.ones(4), {"bits": 4}, r"w is torch.float32 of shape \(4,\); give a float weight \[out, in\]"),
        (torch.ones(2, 2, 2), {"bits": 4}, r"w is torch.float32 of shape \(2, 2, 2\)"),
        (torch.ones(0, 4), {"bits": 4}, r"w is torch.float32 of shape \(0, 4\); .* not empty"),
        (torch.ones(2, 2, dtype=torch.int8), {"bits": 4}, "w is torch.int8 .*; give a float weight"),
        (torch.ones(2, 2), {"bits": 1}, r"bits=1 is outside 2\.\.8"),
        (torch.ones(2, 2), {}, r"nothing says how to quantize; give a scheme, e\.g\. RTN\(bits=4\), or bits=4"),
        (torch.ones(2, 2), {"scheme": RTN(4), "bits": 4}, "both .* are given; put them all in the scheme"),
        (torch.ones(2, 2), {"scheme": RTN(4), "symmetric": True}, "both .* are given; put them all in the scheme"),
    ],
)
def test_a_wrong_call_is_refused_in_one_sentence(weight, options, message):
    with pytest.raises(ValueError, match=message):
        quantize_tensor(weight, **options, name="w")


@pytest.mark.parametrize("scheme", ["int4", 4, RTN])
def test_what_is_no_scheme_is_a_type_error(scheme):
    with pytest.raises(TypeError, match=r"is not a scheme; give one such as qkit\.RTN\(bits=4, group_size=128\)"):
        quantize_tensor(torch.ones(2, 2), scheme)
