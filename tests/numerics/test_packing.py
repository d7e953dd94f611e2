import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qkit.numerics.packing import pack, pack_plain, packed_length, unpack, unpack_plain


def numpy_pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """One stream of bits a row, lowest first, cut by numpy."""
    stream = (codes[:, :, None] >> np.arange(bits)) & 1
    return np.packbits(stream.reshape(len(codes), -1), axis=1, bitorder="little")


@st.composite
def rows_of_codes(draw):
    bits, rows, length = draw(st.integers(2, 8)), draw(st.integers(1, 3)), draw(st.integers(1, 70))
    flat = draw(st.binary(min_size=rows * length, max_size=rows * length))
    return bits, np.frombuffer(flat, np.uint8).reshape(rows, length).astype(np.int64) % 2**bits


@given(rows_of_codes())
def test_packing_lays_the_bits_as_numpy_does(case):
    bits, codes = case
    np.testing.assert_array_equal(pack(torch.from_numpy(codes), bits).numpy(), numpy_pack(codes, bits))


@given(rows_of_codes())
def test_unpacking_reads_what_numpy_packed(case):
    bits, codes = case
    packed = torch.from_numpy(numpy_pack(codes, bits))
    np.testing.assert_array_equal(unpack(packed, bits, codes.shape[1]).numpy(), codes)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("length", range(1, 18))
def test_every_tail_survives_the_round_trip(bits, length):
    codes = torch.arange(2 * length).reshape(2, length) * 37 % 2**bits
    packed = pack(codes, bits)
    assert packed.shape == (2, packed_length(length, bits))
    assert torch.equal(unpack(packed, bits, length).long(), codes)


@pytest.mark.parametrize(
    ("bits", "codes", "octets"),
    [
        (4, [0x1, 0x2, 0xF], [0x21, 0x0F]),
        (2, [3, 2, 1, 0, 1], [0b00_01_10_11, 0b01]),
        (3, [1, 2, 3, 4, 5, 6, 7, 0], [0xD1, 0x58, 0x1F]),  # 0o07654321 = 0x1F58D1
        (8, [0, 255, 128], [0, 255, 128]),
    ],
)
def test_the_order_is_low_bits_first(bits, codes, octets):
    assert pack(torch.tensor([codes]), bits).tolist() == [octets]


def test_32_codes_of_3_bits_take_3_words():
    assert packed_length(32, 3) == 12


@pytest.mark.parametrize(
    ("length", "bits", "octets"), [(1, 2, 1), (5, 2, 2), (3, 3, 2), (7, 5, 5), (9, 7, 8), (1, 8, 1)]
)
def test_the_length_is_rounded_up_to_a_whole_byte(length, bits, octets):
    assert packed_length(length, bits) == octets


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.float32])
def test_whole_numbers_of_any_dtype_are_packed(dtype):
    assert pack(torch.tensor([[3, 0, 2]], dtype=dtype), 2).tolist() == [[0b10_00_11]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float16, torch.float64])
def test_all_256_codes_of_8_bits_are_packed_from_any_dtype_that_holds_them(dtype):
    codes = torch.arange(256).reshape(2, 128)
    assert torch.equal(pack(codes.to(dtype), 8).long(), codes)


def test_packed_bytes_are_contiguous_uint8_that_own_nothing_else():
    packed = pack(torch.zeros(3, 5, dtype=torch.long), 3)
    assert packed.dtype == torch.uint8
    assert packed.is_contiguous()
    assert packed.untyped_storage().nbytes() == packed.nbytes


@pytest.mark.parametrize("code", [-1, 8])
def test_a_code_that_does_not_fit_is_refused(code):
    with pytest.raises(ValueError, match=r"codes run from .* to .*, 3 bits hold 0\.\.7; clamp them"):
        pack(torch.tensor([[0, code]]), 3)


def test_a_wrong_length_is_refused():
    with pytest.raises(ValueError, match="4 bytes a row do not hold 9 codes of 4 bits, which take 5; give the length"):
        unpack(torch.zeros(2, 4, dtype=torch.uint8), 4, 9)


@pytest.mark.parametrize("bits", [1, 9])
def test_bits_outside_the_range_are_refused(bits):
    with pytest.raises(ValueError, match=rf"bits={bits} is outside 2\.\.8"):
        pack(torch.zeros(1, 1), bits)
    with pytest.raises(ValueError, match=rf"bits={bits} is outside 2\.\.8"):
        unpack(torch.zeros(1, 1, dtype=torch.uint8), bits, 1)


@pytest.mark.parametrize("value", [1.5, float("nan"), float("inf")])
def test_what_is_no_whole_number_is_refused(value):
    with pytest.raises(ValueError, match=r"codes are whole numbers|codes run from"):
        pack(torch.tensor([[0.0, value]]), 4)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 8), (2, 33), (300, 257)])  # the last for two threads
def test_the_kernel_and_torch_agree_on_every_byte(bits, shape):
    codes = torch.randint(0, 2**bits, shape, generator=torch.Generator().manual_seed(bits))
    packed = pack(codes, bits)
    assert torch.equal(packed, pack_plain(codes, bits))
    assert torch.equal(unpack(packed, bits, shape[1]), unpack_plain(packed, bits, shape[1]))
