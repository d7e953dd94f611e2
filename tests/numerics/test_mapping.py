import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qkit.numerics.mapping import (
    check_bits,
    check_finite,
    check_group_size,
    choose_offset,
    choose_scale,
    dequantize,
    grouped,
    integer_range,
    quantize,
    round_up,
    value_range,
)

POSITIVE_FLOAT16 = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)  # ascending, without inf
any_bits = st.integers(2, 8)
finite = st.floats(-1e6, 1e6, width=32)


def scalar(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float32)


@pytest.mark.parametrize(
    ("bits", "signed", "narrow", "expected"),
    [
        (2, False, False, (0, 3)),
        (3, False, False, (0, 7)),
        (4, True, False, (-8, 7)),
        (4, True, True, (-7, 7)),
        (8, False, False, (0, 255)),
        (8, True, False, (-128, 127)),
        (8, True, True, (-127, 127)),
    ],
)
def test_integer_range_is_that_of_two_complement(bits, signed, narrow, expected):
    assert integer_range(bits, signed, narrow) == expected


def test_narrow_unsigned_codes_are_refused():
    with pytest.raises(ValueError, match=r"narrow=True .* use signed=True"):
        integer_range(8, signed=False, narrow=True)


@pytest.mark.parametrize("bits", [1, 9, 0, -4, 4.0, "4", True, None])
def test_bits_outside_two_to_eight_are_refused_with_value_rule_and_mend(bits):
    with pytest.raises(ValueError, match=rf"bits={bits!r} is outside 2\.\.8; use a whole number from 2 to 8"):
        check_bits(bits)


def test_nan_and_infinity_are_counted_and_the_tensor_is_named():
    tensor = torch.tensor([1.0, float("nan"), float("inf"), -float("inf"), float("nan"), 0.0])
    with pytest.raises(ValueError, match=r"layer 7 holds 2 NaN and 2 infinite values of 6; .* exclude="):
        check_finite(tensor, "layer 7")


def test_finite_numbers_pass():
    check_finite(torch.tensor([1e38, -1e-45, 0.0]), "w")


@pytest.mark.parametrize("group_size", [0, -1, 2.0, "row", True])
def test_what_is_no_group_size_is_refused(group_size):
    with pytest.raises(
        ValueError, match=rf"group_size={group_size!r} is not a group size; use a positive whole number"
    ):
        check_group_size(group_size)


def test_a_group_size_that_does_not_divide_is_refused_with_divisors():
    with pytest.raises(
        ValueError, match=r"group_size=100 does not divide in_features=384 of q_proj; .*96, 128.* or None"
    ):
        check_group_size(100, 384, "q_proj")


def test_the_size_that_others_like_is_among_the_divisors():
    with pytest.raises(ValueError, match=r"use a divisor \(64, 72, 96, 144, 192\) or None"):
        check_group_size(128, 576)
    with pytest.raises(ValueError, match=r"use a divisor \(100, 125, 200, 250\) or None"):
        check_group_size(128, 1000)


def test_a_prime_row_offers_the_whole_row():
    with pytest.raises(ValueError, match=r"group_size=4 does not divide in_features=7 .* use a divisor \(7\) or None"):
        check_group_size(4, 7)


@pytest.mark.parametrize(
    ("group_size", "shape", "second"),
    [
        (3, (2, 2, 3), [3, 4, 5]),
        (None, (2, 1, 6), [6, 7, 8, 9, 10, 11]),
        ("tensor", (1, 1, 12), None),
        (1, (2, 6, 1), [1]),
    ],
)
def test_grouping_cuts_rows_and_never_columns(group_size, shape, second):
    groups = grouped(torch.arange(12).reshape(2, 6), group_size)
    assert tuple(groups.shape) == shape
    if second is not None:
        assert groups.reshape(-1, shape[-1])[1].tolist() == second


def test_grouping_reads_a_transposed_weight_by_its_logical_rows():
    weight = torch.arange(12).reshape(6, 2).T
    assert grouped(weight, 3)[1, 0].tolist() == [1, 3, 5]


def test_value_range_keeps_the_axis():
    lo, hi = value_range(torch.tensor([[[3.0, -1.0, 2.0]]]))
    assert (lo.tolist(), hi.tolist()) == ([[[-1.0]]], [[[3.0]]])


@given(st.lists(st.floats(2**-14, 65504, width=32), min_size=1, max_size=8))
def test_a_float16_scale_is_the_smallest_that_is_not_below(values):
    scale = np.array(values, np.float32)
    expected = POSITIVE_FLOAT16[np.searchsorted(POSITIVE_FLOAT16, scale, side="left")]
    stored = round_up(torch.from_numpy(scale), torch.float16)
    assert stored.dtype == torch.float16
    np.testing.assert_array_equal(stored.float().numpy(), expected)


@pytest.mark.parametrize("outlier", [2.0**-14 * 0.999, 1e-7, 65504.01, 1e30])
def test_one_scale_outside_float16_keeps_all_in_float32(outlier):
    scale = torch.tensor([1.0, outlier])
    assert round_up(scale, torch.float16).dtype == torch.float32
    assert torch.equal(round_up(scale, torch.float16), scale)


def test_float32_scales_come_back_unchanged():
    scale = torch.tensor([0.1, 3.0])
    assert torch.equal(round_up(scale, torch.float32), scale)


def test_another_scale_dtype_is_refused():
    with pytest.raises(ValueError, match=r"scale_dtype=torch\.bfloat16 is not supported; use torch\.float16"):
        round_up(torch.ones(1), torch.bfloat16)


@pytest.mark.parametrize(
    ("lo", "hi", "bits", "options", "scale", "zero"),
    [
        (-1, 2, 2, {}, 1, 1),
        (-1, 2, 2, {"signed": True}, 1, -1),
        (1, 3, 2, {}, 1, 0),
        (-3, -1, 2, {}, 1, 3),
        (-7.5, 1, 4, {"symmetric": True}, 1, 8),
        (-7.5, 1, 4, {"symmetric": True, "signed": True}, 1, 0),
        (-3, 127, 8, {"symmetric": True, "signed": True, "narrow": True}, 1, 0),
        (-0.5, 2.5, 2, {}, 1, 0),
        (-1.5, 1.5, 2, {}, 1, 2),
        (0, 0, 4, {}, 1, 8),
        (0, 0, 4, {"symmetric": True}, 1, 8),
    ],
)
def test_scale_and_zero_point_are_those_computed_by_hand(lo, hi, bits, options, scale, zero):
    found = choose_scale(scalar(lo), scalar(hi), bits, **options)
    assert (found[0].item(), found[1].item()) == (scale, zero)


def test_a_range_wider_than_float32_does_not_overflow():
    scale, _ = choose_scale(scalar(-3e38), scalar(3e38), 8)
    assert scale.item() == pytest.approx(6e38 / 255, rel=2**-22)  # three roundings of 2^-24 each


@given(st.integers(-(2**20), 2**20))
def test_ties_go_to_the_even_neighbour(k):
    q = quantize(scalar(k + 0.5), scalar(1), scalar(0), -(2**21), 2**21)
    assert q.item() == round(k + 0.5)  # Python's round is half to even, as IEEE 754 is


@pytest.mark.parametrize(("w", "code"), [(-100, 0), (100, 15), (7.4, 15), (-8.4, 0), (0, 8)])
def test_codes_outside_the_range_are_clamped(w, code):
    assert quantize(scalar(w), scalar(1), scalar(8), 0, 15).item() == code


@given(st.lists(finite, min_size=6, max_size=6), st.lists(st.integers(-10, 10), min_size=3, max_size=3), any_bits)
def test_fake_quantization_equals_that_of_torch(values, exponents, bits):
    """With scales that are powers of two, where torch's multiplication by 1 / s is exact as well."""
    weight = torch.tensor(values, dtype=torch.float32).reshape(3, 2)
    scale = torch.tensor([2.0**e for e in exponents])
    zero = torch.tensor([0, 2 ** (bits - 1), 2**bits - 1], dtype=torch.int32)
    expected = torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, 0, 2**bits - 1)
    codes = quantize(weight, scale[:, None], zero[:, None].float(), 0, 2**bits - 1)
    assert torch.equal(dequantize(codes, scale[:, None], zero[:, None]), expected)


@given(finite, finite, any_bits, st.booleans(), st.data())
def test_quantizing_what_was_dequantized_gives_the_same_code(a, b, bits, symmetric, data):
    scale, zero = choose_scale(scalar(min(a, b)), scalar(max(a, b)), bits, symmetric)
    code = scalar(data.draw(st.integers(0, 2**bits - 1)))
    assert torch.equal(quantize(dequantize(code, scale, zero), scale, zero, 0, 2**bits - 1), code)


@given(finite, finite, any_bits, st.booleans(), st.booleans())
def test_zero_stays_exactly_zero(a, b, bits, symmetric, signed):
    scale, zero = choose_scale(scalar(min(a, b)), scalar(max(a, b)), bits, symmetric, signed)
    code = quantize(scalar(0), scale, zero, *integer_range(bits, signed))
    assert dequantize(code, scale, zero).item() == 0


@given(finite, finite, finite, any_bits, st.booleans())
def test_signed_and_unsigned_codes_are_one_grid(a, b, w, bits, symmetric):
    lo, hi = scalar(min(a, b)), scalar(max(a, b))
    unsigned = quantize(scalar(w), *choose_scale(lo, hi, bits, symmetric), *integer_range(bits))
    signed = quantize(scalar(w), *choose_scale(lo, hi, bits, symmetric, signed=True), *integer_range(bits, signed=True))
    assert torch.equal(signed + 2 ** (bits - 1), unsigned)


@given(finite, finite, any_bits)
def test_a_float16_scale_is_never_below_the_float32_one(a, b, bits):
    lo, hi = scalar(min(a, b)), scalar(max(a, b))
    exact, _ = choose_scale(lo, hi, bits)
    stored, _ = choose_scale(lo, hi, bits, scale_dtype=torch.float16)
    assert stored.float() >= exact


@given(st.floats(-60000, 60000, width=32), st.floats(0, 60000, width=32), any_bits, st.booleans())
def test_an_offset_range_holds_both_ends(lo, width, bits, half):
    hi = float(np.float32(lo + width))
    scale, offset = choose_offset(scalar(lo), scalar(hi), bits, torch.float16 if half else torch.float32)
    top = float(offset) + (2**bits - 1) * float(scale)
    assert float(offset) <= lo
    # (hi - offset) / steps is rounded twice in float32, by 2^-24 each.
    assert top >= hi - 2**-23 * (hi - float(offset))


def test_the_offset_of_an_empty_range_is_its_one_number():
    scale, offset = choose_offset(scalar(0.3), scalar(0.3), 4)
    assert (scale.item(), offset.item()) == ((scalar(0.3) / 15).item(), scalar(0.3).item())
