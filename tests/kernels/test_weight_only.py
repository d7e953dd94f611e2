"""x ŵᵀ with float activations: exactly on whole numbers, within counted roundings on real ones."""

import pytest
import torch

from grids import ALL_BITS
from products import KINDS, exact, off, random, values, weight, whole
from qkit import FP4, NF4, RTN, quantize_tensor
from qkit.backends.numba import linear as cpu
from qkit.backends.numba import ready
from qkit.methods.codebook import codebook_quantize
from qkit.numerics.codebook_qtensor import CodebookQTensor
from qkit.numerics.packing import pack
from qkit_kernels.numba.streams import UNIT
from qkit_kernels.numba.tiles import BAND_ROWS, FLOATS, PANEL_ROWS, TOKENS

# A block holds 64, 128 or 256 codes, a stretch 512, and a row ends in any byte: around each of them.
FEATURES = (1, 2, 3, 7, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 513, 777, 2053)
TOKEN_COUNTS = (2, 3, 4, 5, 17, 33)
ROW_COUNTS = (1, 3, 7, 17)
CODEBOOKS = (NF4(), NF4(32, double_quant=False), NF4(128), FP4(), FP4(32, double_quant=False))


def groupings(bits: int) -> list[tuple[int, int]]:
    """(features, group size) of groups that are whole lanes: one lane, usual ones, no powers of two, more than 16."""
    unit = UNIT[bits]
    sizes = [
        (unit, 1),
        (unit, 5),
        (3 * unit, 7),
        (32, 3),
        (32, 20),
        (64, 1),
        (64, 17),
        (128, 1),
        (128, 5),
        (96, 3),
        (80, 33),
    ]
    return [(size * groups, size) for size, groups in sizes]


def product(x, q):
    assert ready.fits(q)
    found = cpu.weight_only_linear(x, q)
    assert found.dtype == torch.float32 and found.shape == (len(x), q.shape[0])
    return found


def same(x, q):
    assert torch.equal(product(x, q).double(), exact(x, q)), (len(x), q)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", ALL_BITS)
def test_whole_numbers_are_multiplied_exactly_whatever_the_shape(bits, kind):
    for i, features in enumerate(FEATURES):
        q = weight(bits, ROW_COUNTS[i % 4], features, ("tensor", None)[i % 2], kind, seed=i)
        for tokens in (1, TOKEN_COUNTS[i % 6]):
            same(whole(tokens, features, seed=i), q)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", ALL_BITS)
def test_whole_numbers_are_multiplied_exactly_whatever_the_groups(bits, kind):
    for i, (features, size) in enumerate(groupings(bits)):
        q = weight(bits, ROW_COUNTS[i % 4], features, size, kind, seed=i)
        for tokens in (1, TOKEN_COUNTS[i % 6]):
            same(whole(tokens, features, seed=i), q)


@pytest.mark.parametrize("bits", [3, 4])
def test_more_tokens_and_rows_than_meet_at_once(bits):
    features = 3 * FLOATS + 32
    for tokens in (16, 33, TOKENS - 1, TOKENS, TOKENS + 2, 2 * TOKENS + 1):
        for rows in (PANEL_ROWS, PANEL_ROWS + 1, 2 * PANEL_ROWS + 5, BAND_ROWS + 1):
            same(whole(tokens, features, seed=tokens), weight(bits, rows, features, 32, "zero points"))


@pytest.mark.parametrize("code", ["smallest", "largest"])
@pytest.mark.parametrize("bits", ALL_BITS)
def test_extreme_codes_and_inputs_of_one_sign_and_size(bits, code):
    """The sums are as large as they can be, and still whole."""
    random_one = weight(bits, 5, 320, 32, "zero points")
    codes = torch.full((5, 320), 0 if code == "smallest" else 2**bits - 1)
    for zero_points in (torch.full_like(random_one.zeros(), 2**bits - 1), torch.zeros_like(random_one.zeros()), None):
        q = type(random_one).from_codes(codes, random_one.scales, bits, zero_points)
        for x in (torch.full((1, 320), 4.0), torch.full((6, 320), -4.0)):
            same(x, q)


ONE_OF_EACH = [weight(4, 19, 160, 32, "zero points", real=True), codebook_quantize(random(19, 128), NF4())]


@pytest.mark.parametrize("q", ONE_OF_EACH, ids=repr)
def test_one_of_each_kernel(q):
    """A few of all these tests, for processes that see another CPU."""
    for tokens in (1, 6):
        x = random(tokens, q.shape[1]).half()
        assert off(product(x, q), x.float(), q) < 1


# ---- real numbers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", ALL_BITS)
def test_real_numbers_are_multiplied_to_rounding(bits, kind):
    for i, (features, size) in enumerate([*groupings(bits), (1, None), (129, None), (2053, None), (257, "tensor")]):
        q = weight(bits, ROW_COUNTS[i % 4], features, size, kind, real=True, seed=i)
        for tokens in (1, TOKEN_COUNTS[i % 6]):
            x = random(tokens, features, seed=i)
            assert off(product(x, q), x, q) < 1, (tokens, q)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [3, 4])
def test_scales_and_offsets_in_float32_are_read_as_they_are(bits, kind):
    for features, size in [(257, None), (320, 32), (257, "tensor")]:
        q = weight(bits, 5, features, size, kind, torch.float32, real=True)
        for tokens in (1, 3):
            same(whole(tokens, features), weight(bits, 5, features, size, kind, torch.float32))
            x = random(tokens, features)
            assert off(product(x, q), x, q) < 1


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("tokens", [1, 4])
def test_a_float16_scale_of_any_size_is_read_as_it_is(tokens, symmetric):
    """Down to the smallest denormal: the rows of a weight, one scale each."""
    scales = torch.tensor([2.0**-24, 3 * 2.0**-24, 1023 * 2.0**-24, 2.0**-14, 1.0, 1.0 + 2**-10, 65504.0]).half()[
        :, None
    ]
    codes = torch.randint(0, 16, (7, 65), generator=torch.Generator().manual_seed(0))
    q = type(weight(4, 1, 1)).from_codes(codes, scales, 4, None if symmetric else torch.full((7, 1), 3))
    x = random(tokens, 65)
    assert off(product(x, q), x, q) < 1


def test_one_huge_input_does_not_spoil_what_the_others_are_multiplied_with():
    q = weight(4, 7, 320, 32, "zero points", real=True)
    for tokens in (1, 4):
        x = random(tokens, 320)
        x[0, 33] = 1e30
        assert off(product(x, q), x, q) < 1
        if tokens > 1:
            assert off(product(x, q)[1:], x[1:], q) < 1


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_inputs_near_the_ends_of_float32(size):
    q = weight(3, 7, 100, 20, "zero points", real=True)
    for tokens in (1, 4):
        x = random(tokens, 100) * size
        assert off(product(x, q), x, q) < 1


@pytest.mark.parametrize("scheme", [RTN(4, 32), RTN(3, 32, symmetric=True), RTN(8, 32, include_zero=False)], ids=repr)
def test_groups_and_rows_of_zeros_add_nothing(scheme):
    w = random(5, 96)
    w[1], w[3, 32:64] = 0, 0
    q, x = quantize_tensor(w, scheme), random(6, 96)
    assert (product(x, q)[:, 1] == 0).all()
    inside = torch.zeros(6, 96)
    inside[:, 32:64] = x[:, 32:64]
    assert (product(inside, q)[:, 3] == 0).all()
    for tokens in (1, 3, 6):  # a few: zero points come in at the end of a row, and cancel to rounding
        assert off(product(x[:tokens], q), x[:tokens], q) < 1


# ---- tables


@pytest.mark.parametrize("scheme", CODEBOOKS, ids=repr)
def test_the_product_with_the_identity_is_the_weight_of_a_codebook_to_the_last_bit(scheme):
    """One number of the table times one absmax: rounded once in both. More than 256 absmax values have two nested scales."""
    features = 3 * max(scheme.block_size, 64)
    q = codebook_quantize(random(2 * 256 * 64 // features + 1, features), scheme)
    assert torch.equal(product(torch.eye(features), q), q.dequantize().T)
    for k in (0, features // 2 + 1, features - 1):
        assert torch.equal(product(torch.eye(features)[k : k + 1], q)[0], q.dequantize()[:, k])


@pytest.mark.parametrize("scheme", CODEBOOKS, ids=repr)
def test_a_codebook_weight_is_multiplied_to_rounding(scheme):
    size = scheme.block_size
    for i, blocks in enumerate((1, 2, 3, 9, 17)):
        q = codebook_quantize(random(ROW_COUNTS[i % 4], blocks * size, seed=i), scheme)
        for tokens in (1, TOKEN_COUNTS[i]):
            x = random(tokens, blocks * size, seed=i)
            assert off(product(x, q), x, q) < 1


@pytest.mark.parametrize("code", range(16))
def test_every_number_of_a_table_is_found(code):
    q = CodebookQTensor(pack(torch.full((3, 64), code), 4), torch.tensor([[1.0, 2.0, 4.0]]), 4, (3, 64))
    for tokens in (1, 2):
        x = whole(tokens, 64)
        assert off(product(x, q), x, q) < 1


@pytest.mark.parametrize("bits", ALL_BITS)
def test_the_product_with_the_identity_is_a_symmetric_weight_to_the_last_bit(bits):
    q = weight(bits, 5, 96, 32, real=True)
    assert torch.equal(product(torch.eye(96), q), values(q)[0].float().T)


# ---- what is not finite


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "q", [weight(4, 7, 129, kind="zero points"), weight(3, 7, 129), codebook_quantize(random(7, 128), NF4())], ids=repr
)
def test_what_is_not_finite_stays_in_its_own_token(q, number):
    for tokens in (1, 2, 5, 6):
        for place in range(tokens):
            x = random(tokens, q.shape[1])
            calm = product(x, q)
            x[place, 128 % q.shape[1]] = number
            found = product(x, q)
            others = [t for t in range(tokens) if t != place]
            assert torch.equal(found[others], calm[others])
            assert not found[place].isfinite().any()


def test_no_tokens_make_no_products():
    for q in (weight(4, 3, 64), weight(3, 3, 64, kind="offsets"), codebook_quantize(random(3, 64), NF4())):
        assert product(torch.zeros(0, 64), q).shape == (0, 3)
