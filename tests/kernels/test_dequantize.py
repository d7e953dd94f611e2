"""The jit functions alone, on plain arrays, against numpy."""

import numpy as np
import pytest

from qkit_kernels.numba.dequantize import dequantize
from qkit_kernels.numba.packing import unpack_row


def packed_rows(codes: np.ndarray, bits: int) -> np.ndarray:
    stream = (codes[:, :, None] >> np.arange(bits)) & 1
    return np.packbits(stream.reshape(len(codes), -1).astype(np.uint8), axis=1, bitorder="little")


@pytest.mark.parametrize("bits", range(2, 9))
def test_unpacking_a_row_reads_every_tail(bits):
    rng = np.random.default_rng(bits)
    for length in range(1, 34):
        codes = rng.integers(0, 2**bits, (1, length))
        found = np.full(length, 255, np.uint8)
        unpack_row(packed_rows(codes, bits)[0], bits, found)
        np.testing.assert_array_equal(found, codes[0])


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(("rows", "groups", "size"), [(1, 1, 1), (3, 1, 13), (5, 3, 7), (2, 9, 1), (4, 2, 64)])
def test_dequantize_equals_numpy_float32_to_the_last_bit(bits, rows, groups, size):
    rng = np.random.default_rng(bits)
    codes = rng.integers(0, 2**bits, (rows, groups * size))
    scales, offsets = (rng.standard_normal((rows, groups)).astype(np.float32) for _ in range(2))
    zeros = rng.integers(0, 2**bits, (rows, groups)).astype(np.float32)
    out = np.full(codes.shape, np.nan, np.float32)
    dequantize(packed_rows(codes, bits), scales, zeros, offsets, bits, out)
    grouped = codes.reshape(rows, groups, size).astype(np.float32)
    expected = scales[..., None] * (grouped - zeros[..., None]) + offsets[..., None]
    assert expected.dtype == np.float32
    np.testing.assert_array_equal(out, expected.reshape(out.shape))
