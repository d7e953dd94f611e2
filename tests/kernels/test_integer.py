"""x ŵᵀ with INT8 activations: sums of whole numbers exactly, LLM.int8's outliers and many scales within counted roundings."""

import pytest
import torch

from grids import ALL_BITS
from products import KINDS, exact, off_int8, random, weight, whole_codes
from qkit import QTensor
from qkit.backends.numba import linear as cpu
from qkit.backends.numba import ready
from qkit.methods.int8 import int8_rows
from qkit.ops import int8_linear, outlier_columns, quantize_activations_int8
from qkit_kernels.numba.streams import UNIT
from qkit_kernels.numba.tiles import BAND_ROWS, CODES, FLOATS, PANEL_ROWS, TOKENS

# A block holds 64, 128 or 256 codes, a stretch 2048, and a row ends in any byte: around each of them.
FEATURES = (1, 2, 3, 7, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 256, 257, 513, 777, 2047, 2048, 2049)
TOKEN_COUNTS = (2, 3, 4, 5, 17, 33)
ROW_COUNTS = (1, 3, 7, 17)


def groupings(bits: int) -> list[tuple[int, int]]:
    """(features, group size) of groups that are whole lanes: one lane, usual ones, no powers of two, more than 16."""
    unit = UNIT[bits]
    sizes = [(unit, 5), (3 * unit, 7), (32, 3), (32, 20), (64, 1), (64, 17), (128, 1), (128, 5), (96, 3), (80, 27)]
    return [(size * groups, size) for size, groups in sizes]


def product(x, q, **options):
    assert ready.fits(q)
    found = cpu.integer_linear(x, q, **options)
    assert found.dtype == torch.float32 and found.shape == (len(x), q.shape[0])
    return found


def same(x, q):
    assert torch.equal(product(x, q).double(), exact(x, q)), (len(x), q)


def rounded_twice(x, q, input_scale=None):
    """One scale a row: the whole number, to float32, times the scale of the token, times that of the row."""
    codes, scales = quantize_activations_int8(x, input_scale)
    sums = codes.double() @ (q.codes().double() - 2 ** (q.bits - 1)).T
    assert not sums.numel() or sums.abs().max() < 2**31
    return sums.float() * scales * q.scales.float().T


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", ALL_BITS)
def test_whole_numbers_are_multiplied_exactly_whatever_the_shape(bits, kind):
    for i, features in enumerate(FEATURES):
        q = weight(bits, ROW_COUNTS[i % 4], features, ("tensor", None)[i % 2], kind, seed=i)
        for tokens in (1, TOKEN_COUNTS[i % 6]):
            same(whole_codes(tokens, features, seed=i), q)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", ALL_BITS)
def test_whole_numbers_are_multiplied_exactly_whatever_the_groups(bits, kind):
    for i, (features, size) in enumerate(groupings(bits)):
        q = weight(bits, ROW_COUNTS[i % 4], features, size, kind, seed=i)
        for tokens in (1, TOKEN_COUNTS[i % 6]):
            same(whole_codes(tokens, features, seed=i), q)


@pytest.mark.parametrize("kind", ["symmetric", "zero points"])
@pytest.mark.parametrize("group_size", [None, 32, 96])
def test_more_tokens_and_rows_than_meet_at_once(group_size, kind):
    """Groups of 96 lie across the end of a stretch."""
    features = CODES + 160
    for tokens in (16, 33, TOKENS - 1, TOKENS, TOKENS + 2, 2 * TOKENS + 1):
        for rows in (PANEL_ROWS, PANEL_ROWS + 1, 2 * PANEL_ROWS + 5, BAND_ROWS + 1):
            same(whole_codes(tokens, features, seed=tokens), weight(4, rows, features, group_size, kind))


def test_more_outliers_than_meet_at_once():
    features = FLOATS + 30
    q, x = int8_rows(random(BAND_ROWS + 5, features)), random(TOKENS + 2, features) + 10
    assert outlier_error(product(x, q, outliers=outlier_columns(x, 6.0)), x, q, 6.0) < 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", ALL_BITS)
def test_real_numbers_are_multiplied_to_rounding(bits, kind):
    for i, (features, size) in enumerate([*groupings(bits), (1, None), (129, None), (2051, None), (257, "tensor")]):
        q = weight(bits, ROW_COUNTS[i % 4], features, size, kind, real=True, seed=i)
        for tokens in (1, TOKEN_COUNTS[i % 6]):
            x = random(tokens, features, seed=i)
            assert off_int8(product(x, q), x, q) < 1, (tokens, q)


@pytest.mark.parametrize("kind", KINDS)
def test_scales_and_offsets_in_float32_are_read_as_they_are(kind):
    for features, size in [(257, None), (320, 32), (257, "tensor")]:
        q, x = weight(4, 5, features, size, kind, torch.float32, real=True), random(3, features)
        for tokens in (1, 3):
            assert off_int8(product(x[:tokens], q), x[:tokens], q) < 1


@pytest.mark.parametrize("code", ["smallest", "largest"])
@pytest.mark.parametrize("bits", ALL_BITS)
def test_extreme_codes_and_saturated_inputs(bits, code):
    """All inputs of a token alike are all 127; the zero point at the other end makes the sums as large as they can be."""
    codes, scales = torch.full((5, 320), 0 if code == "smallest" else 2**bits - 1), torch.ones(5, 10)
    for zero_points in (torch.full((5, 10), 2**bits - 1), torch.zeros(5, 10), None):
        q = QTensor.from_codes(codes, scales.half(), bits, zero_points)
        for x in (torch.full((1, 320), 127.0), torch.full((6, 320), -127.0)):
            assert torch.equal(product(x, q).double(), x.double() @ (codes - q.zeros().double()[0, 0]).T)


# ---- one scale a row: whole numbers to the last line


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("group_size", [None, "tensor"])
def test_with_one_scale_a_row_nothing_is_rounded_before_the_scales(bits, group_size):
    for i, features in enumerate(FEATURES):
        q = weight(bits, ROW_COUNTS[i % 4], features, group_size, real=True, seed=i)
        for tokens in (1, TOKEN_COUNTS[i % 6]):
            x = random(tokens, features, seed=i)
            assert torch.equal(product(x, q), rounded_twice(x, q)), (tokens, q)


@pytest.mark.parametrize("options", [{}, {"input_scale": torch.tensor(0.02)}], ids=["dynamic", "static"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_w8a8_is_that_of_the_torch_backend_to_the_last_bit(dtype, options):
    for i, features in enumerate((*FEATURES, 4096, 4100)):
        q = int8_rows(random(ROW_COUNTS[i % 4], features, seed=i))
        for tokens in (0, 1, TOKEN_COUNTS[i % 6], *([TOKENS + 2] if i == 9 else [])):
            x = random(tokens, features, seed=i + 1).to(dtype)
            torch_one, numba_one = (int8_linear(x, q, backend=backend, **options) for backend in ("torch", "numba"))
            assert numba_one.dtype == dtype and torch.equal(torch_one, numba_one), (tokens, features)


@pytest.mark.parametrize("tokens", [1, 2])
@pytest.mark.parametrize("code", [0, 1, 128, 255])
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_sums_do_not_wrap_around(tokens, code, sign):
    """K = 2^16 products of 255 and 127 are two parts in a hundred below 2^31."""
    features = ready.MAX_FEATURES
    q = QTensor.from_codes(torch.full((3, features), code), torch.ones(3, 1), 8)
    x = torch.full((tokens, features), 127.0 * sign)
    expected = 127.0 * sign * features * (code - 128)
    assert (product(x, q).double() == torch.tensor(expected).float().double()).all()
    assert torch.equal(int8_linear(x, q, backend="torch"), product(x, q))


def test_int8_linear_with_more_features_than_the_kernel_holds_takes_the_other_way():
    features = ready.MAX_FEATURES + 1
    q, x = int8_rows(random(2, features)), random(2, features, seed=1)
    assert not ready.fits(q)
    assert torch.equal(int8_linear(x, q, backend="numba"), int8_linear(x, q, backend="torch"))


# ---- outliers


def outlier_error(found, x, q, threshold):
    """INT8 for the calm columns, floats for the others; the largest error as a share of what rounding makes.

    The first part passes 3 roundings and one for each outlier that is added; an outlier's product passes 3 and the same.
    """
    outliers = outlier_columns(x, threshold)
    codes, scales = quantize_activations_int8(x.masked_fill(outliers, 0))
    weights = (q.codes().double() - 128) * q.scales.double()
    wild = torch.where(outliers, x.double(), 0.0)
    calm = codes.double() * scales.double()
    roundings, limit = 4 + int(outliers.sum()), calm.abs() @ weights.abs().T + wild.abs() @ weights.abs().T
    calm_terms = (calm @ weights.T).abs() + wild.abs() @ weights.abs().T
    assert (limit >= calm_terms).all()
    return float(
        ((found.double() - (calm + wild) @ weights.T).abs() / (roundings * 2.0**-24 * calm_terms + 1e-30)).max()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("columns", [[5], [0, 64, 300], [299, 300], list(range(0, 301, 3)), list(range(301))], ids=len)
def test_outliers_stay_floats(columns, dtype):
    """One column; several, the first and the last among them; all."""
    q = int8_rows(random(17, 301))
    for tokens in (1, 2, 5, TOKENS + 2):
        x = random(tokens, 301, seed=tokens).clamp(-3, 3)
        x[torch.arange(len(columns)) % tokens, columns] = 20 + torch.arange(len(columns)) / 7
        x = x.to(dtype)
        outliers = outlier_columns(x, 6.0)
        assert outliers.nonzero().flatten().tolist() == columns
        found = product(x, q, outliers=outliers)
        assert outlier_error(found, x.float(), q, 6.0) < 1
        assert torch.equal(int8_linear(x, q, threshold=6.0, backend="numba"), found.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("threshold", [6.0, 2.7, 0.1, 1e-9])
def test_outliers_are_found_as_outlier_columns_finds_them(threshold, dtype):
    """Also by a threshold that 16 bits do not hold; infinity is one, and NaN is not."""
    q = int8_rows(random(9, 129))
    for tokens in (0, 1, 2, 3, 5, 40):
        calm = random(tokens, 129, seed=tokens).to(dtype)
        wild = calm.clone()
        if tokens:
            wild[tokens // 2, 3], wild[0, 128], wild[-1, 11] = 9.0, -6.0, threshold
            wild[0, 5], wild[-1, 7] = torch.nan, torch.inf
        for x in (calm, wild):
            outliers = outlier_columns(x, threshold)
            expected = product(x, q, outliers=outliers if outliers.any() else None).to(dtype)
            found = int8_linear(x, q, threshold=threshold, backend="numba")
            torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_one_huge_outlier_leaves_the_calm_columns_their_precision():
    q = int8_rows(random(7, 301))
    for tokens in (1, 3):
        x = random(tokens, 301, seed=1)
        x[0, 300] = 6e4
        assert outlier_error(product(x, q, outliers=outlier_columns(x, 6.0)), x, q, 6.0) < 1


def test_one_of_each_kernel():
    """A few of all these tests, for processes that see another CPU."""
    groups, row = weight(8, 19, 160, 32, "zero points", real=True), weight(8, 19, 301, real=True)
    for tokens in (1, 6):
        x = random(tokens, 301).half()
        assert off_int8(product(x[:, :160], groups), x[:, :160].float(), groups) < 1
        assert torch.equal(product(x, row), rounded_twice(x, row))
        x[-1, 300] = 50
        assert outlier_error(product(x, row, outliers=outlier_columns(x, 6.0)), x.float(), row, 6.0) < 1


# ---- activations


@pytest.mark.parametrize("size", [1e-42, 1e-38, 1e-30, 1.0, 1e30, 3e38])
def test_tokens_of_any_size_are_quantized_as_by_torch(size):
    """Down to denormal numbers; each token has its own scale, and a token of zeros comes out as zeros."""
    q = weight(8, 7, 129, dtype=torch.float32)
    for tokens in (1, 6):
        x = random(tokens, 129).clamp(-1, 1) * size
        x[-1] = 0 if tokens > 1 else x[-1]
        assert torch.equal(product(x, q), rounded_twice(x, q))
        assert tokens == 1 or (product(x, q)[-1] == 0).all()


def test_ties_are_rounded_to_even_codes():
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5]])
    q = QTensor.from_codes(torch.eye(8) + 128, torch.ones(8, 1), 8)
    assert product(x, q).tolist() == [[127.0, 0.0, 2.0, 2.0, 0.0, -2.0, -2.0, 126.0]]


def test_one_huge_input_takes_all_the_precision_of_its_own_token():
    q = weight(8, 7, 129)
    x = random(4, 129)
    x[2, 100] = 1e30
    assert torch.equal(product(x, q), rounded_twice(x, q))


def test_a_fixed_scale_clamps_what_is_larger():
    q = weight(8, 7, 129)
    for tokens in (1, 3):
        x = random(tokens, 129) * 10
        x[0, 3], x[0, 4] = float("inf"), -float("inf")
        found = product(x, q, input_scale=torch.tensor(0.05))
        assert found.isfinite().all() and torch.equal(found, rounded_twice(x, q, torch.tensor(0.05)))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "q", [weight(4, 7, 192, 32, "zero points"), weight(3, 7, 129), weight(8, 7, 129, kind="offsets")], ids=repr
)
def test_what_is_not_finite_makes_its_own_token_nan_and_no_other(q, number):
    for tokens in (1, 2, 5, 6):
        for place in range(tokens):
            x = random(tokens, q.shape[1])
            calm = product(x, q)
            x[place, 128] = number
            found = product(x, q)
            others = [t for t in range(tokens) if t != place]
            assert torch.equal(found[others], calm[others])
            assert found[place].isnan().all()


@pytest.mark.parametrize("tokens", [1, 3])
def test_nan_in_an_outlier_column_stays_in_its_own_token(tokens):
    q, x = int8_rows(random(7, 100)), random(tokens, 100).clamp(-3, 3)
    x[:, 50] = 10
    calm = product(x, q, outliers=outlier_columns(x, 6.0))
    for number in (float("nan"), float("inf")):
        x[-1, 50] = number
        found = product(x, q, outliers=torch.arange(100) == 50)
        assert not found[-1].isfinite().any() and torch.equal(found[:-1], calm[:-1])


def test_groups_and_rows_of_zeros_add_nothing():
    for kind in KINDS:
        q = weight(4, 3, 96, 32, kind)
        zeros = q.zeros()[:, 1:2].expand(3, 32) if kind != "offsets" else torch.zeros(3, 32)
        codes = q.codes()
        codes[:, 32:64] = zeros
        offsets = None if q.offsets is None else q.offsets.clone().index_fill_(1, torch.tensor([1]), 0.0)
        q = QTensor.from_codes(codes, q.scales, 4, q.zeros() if kind == "zero points" else None, offsets)
        for tokens in (1, 3):
            x = torch.zeros(tokens, 96)
            x[:, 32:64] = random(tokens, 32)
            assert (product(x, q) == 0).all()


def test_no_tokens_make_no_products():
    assert product(torch.zeros(0, 64), weight(4, 3, 64)).shape == (0, 3)
    assert product(torch.zeros(0, 64), weight(4, 3, 64, 32, "zero points")).shape == (0, 3)
