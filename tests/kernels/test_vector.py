"""Each vector operation against numpy; every kernel again in processes that see an older CPU."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llvmlite import binding
from numba import njit

from grids import ALL_BITS
from processes import run_python
from qkit.numerics.codebooks import codebook
from qkit.numerics.packing import pack, unpack
from qkit_kernels.numba.streams import UNIT
from qkit_kernels.numba.vector import (
    Static,
    add_each,
    add_numbers_each,
    add_outer,
    add_outer_pairs,
    add_outer_signed,
    add_scaled_each,
    as_float,
    ask,
    dot4,
    dot4_each,
    dot4_signed_each,
    dots_by_bytes,
    fma,
    fma_each,
    has,
    load_bytes,
    load_codes,
    load_each,
    load_f32,
    load_i32,
    lookup,
    lookup_low,
    magnitudes,
    nth_bytes,
    nth_code,
    nth_signed,
    pairs_together,
    pointer,
    prefetch,
    scale_each,
    signed,
    signs_of,
    splat,
    store_f32,
    store_i32,
    store_sums,
    sum_f32,
    sum_i32,
    table_of,
    tile_rows,
    to_f32,
    value,
    widen,
    widen_each,
    zeros_each,
    zeros_f32,
    zeros_i32,
    zeros_tile,
)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def integers(low, high, *shape, dtype=np.int32, seed=0):
    return np.random.default_rng(seed).integers(low, high, shape, dtype)


# ---- codes


@njit
def bytes_of(packed, first, bits, out):
    store_i32(pointer(out), 0, nth_bytes(load_bytes(pointer(packed), first, bits), 0, bits))


@njit
def codes_as_bytes(packed, bits, out):
    codes = load_codes(pointer(packed), 0, bits)
    for j in range(out.shape[0]):
        store_i32(pointer(out), 64 * j, nth_bytes(codes, j, bits))


@njit
def codes_as_numbers(packed, bits, out):
    codes = signed(load_codes(pointer(packed), 0, bits), bits)
    for j in range(out.shape[0]):
        store_i32(pointer(out), 16 * j, nth_signed(codes, j, bits))


@njit
def codes_looked_up(packed, table, step, bits, out):
    codes = load_codes(pointer(packed), 0, bits)
    for j in range(out.shape[0]):
        store_f32(pointer(out), 16 * j, lookup(table_of(pointer(table), bits), codes >> step * j))


@st.composite
def packed_rows(draw):
    bits, length = draw(st.integers(2, 8)), draw(st.integers(1, 300))
    seed = draw(st.integers(0, 2**32 - 1))
    return bits, torch.from_numpy(integers(0, 2**bits, 1, length, dtype=np.int64, seed=seed))


@settings(deadline=None)
@given(packed_rows())
def test_64_codes_at_a_time_are_those_that_were_packed(case):
    """In blocks of 8 b bytes, from any place; what stands behind a row does not matter."""
    bits, codes = case
    length, packed = codes.shape[1], pack(codes, bits)
    room = torch.full((3 + packed.numel() + 8 * bits,), 255, dtype=torch.uint8)
    room[3 : 3 + packed.numel()] = packed[0]
    found = np.zeros((-(-length // 64), 64), np.uint8)
    for block, out in enumerate(found):
        bytes_of(room.numpy(), 3 + 8 * bits * block, Static(bits), out)
    assert torch.equal(torch.from_numpy(found).flatten()[:length], unpack(packed, bits, length)[0])


@pytest.mark.parametrize("bits", ALL_BITS)
def test_a_block_is_cut_in_the_order_of_the_streams(bits):
    """Lane l holds codes l unit .. l unit + unit - 1; byte i those of i unit / 4 on."""
    unit = UNIT[bits]
    codes = integers(0, 2**bits, 16 * unit, dtype=np.int64, seed=bits)
    packed = pack(torch.from_numpy(codes)[None], bits)[0].numpy()
    as_bytes, as_numbers = np.zeros((unit // 4, 64), np.uint8), np.zeros((unit, 16), np.int32)
    codes_as_bytes(packed, Static(bits), as_bytes)
    codes_as_numbers(packed, Static(bits), as_numbers)
    np.testing.assert_array_equal(as_bytes, codes.reshape(64, -1).T)
    np.testing.assert_array_equal(as_numbers, codes.reshape(16, -1).T - 2 ** (bits - 1))


@pytest.mark.parametrize(("bits", "name"), [(2, None), (4, None), (4, "nf4"), (4, "fp4")])
def test_codes_are_looked_up_in_a_table_of_sixteen(bits, name):
    codes = integers(0, 2**bits, 16 * UNIT[bits], dtype=np.int64)
    table = np.arange(2**bits, dtype=np.float32) - 2 ** (bits - 1) if name is None else codebook(name).numpy()
    found = np.zeros((UNIT[bits], 16), np.float32)
    packed = pack(torch.from_numpy(codes)[None], bits)[0].numpy()
    codes_looked_up(packed, None if name is None else table, bits, Static(bits), found)
    np.testing.assert_array_equal(found, table[codes.reshape(16, -1).T])


@njit
def stream(packed, bits, out):
    for i in range(out.size):
        out[i] = nth_code(pointer(packed), packed.size, i, bits)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_one_code_is_read_from_anywhere_in_a_stream(bits):
    for length in range(1, 20):
        codes = torch.from_numpy(integers(0, 2**bits, 1, length, dtype=np.int64, seed=length))
        found = np.zeros(length, np.float32)
        stream(pack(codes, bits)[0].numpy(), Static(bits), found)
        assert found.tolist() == codes[0].tolist()


# ---- arithmetic

ONE = Static(1)


@njit
def dot(total, a, b, out):
    store_i32(pointer(out), 0, dot4(load_i32(pointer(total), 0), load_i32(pointer(a), 0), load_i32(pointer(b), 0)))


@njit
def dot_of_codes(total, a, b, bits, out):
    totals, xs = load_each(pointer(total), 0, ONE, zeros_i32()), load_each(pointer(b), 0, ONE, zeros_i32())
    store_i32(pointer(out), 0, dot4_each(load_i32(pointer(a), 0), xs, totals, bits)[0])


@pytest.mark.parametrize(("a", "b"), [(255, -128), (255, 127), (0, -128), (1, -1), (128, 127), (127, -128)])
def test_four_products_of_extreme_bytes_are_added_without_saturation(a, b):
    found, total = np.zeros(16, np.int32), integers(-(2**30), 2**30, 16)
    dot(total, np.full(64, a, np.uint8), np.full(64, b, np.int8), found)
    np.testing.assert_array_equal(found, total + 4 * a * b)
    for bits in (8, 7, 4, 2):
        code = a >> (8 - bits)
        dot_of_codes(total, np.full(64, code, np.uint8), np.full(64, b, np.int8), Static(bits), found)
        np.testing.assert_array_equal(found, total + 4 * code * b)


def test_each_lane_gets_the_products_of_its_own_four_bytes():
    for seed in range(20):
        bits = (8, 7, 4)[seed % 3]
        a, b = (
            integers(0, 2**bits, 64, dtype=np.uint8, seed=seed),
            integers(-128, 128, 64, dtype=np.int8, seed=seed + 1),
        )
        total, found = integers(-(2**20), 2**20, 16, seed=seed), np.zeros(16, np.int32)
        dot_of_codes(total, a, b, Static(bits), found)
        np.testing.assert_array_equal(found, total + (a.astype(np.int32) * b).reshape(16, 4).sum(1))


def test_the_sum_of_integers_wraps_around():
    found = np.zeros(16, np.int32)
    dot(np.full(16, 2**31 - 1, np.int32), np.ones(64, np.uint8), np.ones(64, np.int8), found)
    assert found.tolist() == [-(2**31) + 3] * 16


@njit
def of_floats(x, y, z, out):
    x, y, z = load_f32(pointer(x), 0), load_f32(pointer(y), 0), load_f32(pointer(z), 0)
    store_f32(pointer(out), 0, fma(x, y, z))
    store_f32(pointer(out), 16, x + y)
    store_f32(pointer(out), 32, x * y)
    store_f32(pointer(out), 48, splat(sum_f32(x)))


def test_floats_are_added_multiplied_and_summed():
    x, y, z = numbers(3, 16)
    found = np.zeros((4, 16), np.float32)
    of_floats(x, y, z, found)
    exact = x.astype(np.float64) * y + z
    assert (abs(found[0] - exact) <= 2**-24 * (abs(x * y) + abs(exact))).all()  # one rounding, or two
    np.testing.assert_array_equal(found[1:3], [x + y, x * y])
    assert (
        abs(found[3] - x.sum(dtype=np.float64)).max() <= 4 * 2**-24 * abs(x).sum()
    )  # halves of halves: four roundings


@njit
def of_integers(x, y, shift, mask, out, floats):
    x, y = load_i32(pointer(x), 0), load_i32(pointer(y), 0)
    store_i32(pointer(out), 0, x + y)
    store_i32(pointer(out), 16, x >> shift)
    store_i32(pointer(out), 32, x & mask)
    store_f32(pointer(floats), 0, to_f32(x))
    return sum_i32(x)


def test_integers_are_added_shifted_masked_and_summed():
    x, y = integers(-(2**31), 2**31 - 1, 2, 16)
    found, floats = np.zeros((3, 16), np.int32), np.zeros(16, np.float32)
    total = of_integers(x, y, 5, 0x7F0F, found, floats)
    np.testing.assert_array_equal(found, [x + y, (x.view(np.uint32) >> 5).view(np.int32), x & 0x7F0F])
    np.testing.assert_array_equal(floats, x.astype(np.float32))
    assert np.int32(total) == x.sum(dtype=np.int32)


@njit
def pick(table, index, out):
    store_f32(pointer(out), 0, lookup(load_f32(pointer(table), 0), load_i32(pointer(index), 0)))


def test_a_lookup_counts_modulo_16():
    table, found = numbers(16), np.zeros(16, np.float32)
    for seed in range(20):
        index = integers(-(2**31), 2**31 - 1, 16, seed=seed)
        pick(table, index, found)
        np.testing.assert_array_equal(found, table[index % 16])


# ---- a few tokens


@njit
def floats_of_a_few(w, x, scales, sums, count, out):
    totals = zeros_each(zeros_f32(), count)
    totals = fma_each(load_f32(pointer(w), 0), load_each(pointer(x), 3, count, zeros_f32()), totals)
    store_sums(pointer(out), 1, 2, totals)
    whole = load_each(pointer(sums), 0, count, zeros_i32())
    store_sums(pointer(out), 10, 1, scale_each(load_f32(pointer(scales), 0), whole, totals))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_few_tokens_are_multiplied_and_summed_each_for_itself(count):
    """Small whole numbers: exact. What stands around the results stays."""
    w, x, scales = integers(-9, 9, 16), integers(-9, 9, 3 + 16 * count, seed=1), integers(-9, 9, 16, seed=2)
    sums, found = integers(-9, 9, count, 16, seed=3), np.arange(15, dtype=np.float32)
    floats_of_a_few(w.astype(np.float32), x.astype(np.float32), scales.astype(np.float32), sums, Static(count), found)
    products, expected = x[3:].reshape(count, 16) @ w, np.arange(15)
    expected[1 : 1 + 2 * count : 2] = products
    expected[10 : 10 + count] = products + sums @ scales
    assert found.tolist() == expected.tolist()


@njit
def bytes_of_a_few(w, x, count, bits, out):
    xs = load_each(pointer(x), 0, count, zeros_i32())
    store_sums(pointer(out), 1, 2, dot4_each(load_i32(pointer(w), 0), xs, zeros_each(zeros_i32(), count), bits))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_few_tokens_of_bytes_are_multiplied_and_summed_each_for_itself(count):
    w, x = integers(0, 256, 64, dtype=np.uint8), integers(-128, 128, count, 64, dtype=np.int8)
    found, expected = np.arange(9, dtype=np.int32), np.arange(9)
    bytes_of_a_few(w, x, Static(count), Static(8), found)
    expected[1 : 1 + 2 * count : 2] = x.astype(np.int64) @ w
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("bits", [4, 7, 8])
def test_codes_and_bytes_at_an_end_are_multiplied_exactly(bits):
    """Sums of a few products are then as large as they can be, and each four of a lane has signs of its own."""
    signs = np.array([(1, 1, 1, 1), (-1, -1, -1, -1), (1, 1, -1, -1), (-1, 1, 1, -1)] * 4)
    found = np.zeros(2, np.int32)
    for code in (0, 1, 2 ** (bits - 1), 2**bits - 1):
        for size in (127, 128):
            x, w = np.clip(size * signs, -128, 127).reshape(1, 64), np.full(64, code, np.uint8)
            for one in (x, x - signs.reshape(1, 64), x[:, ::-1], np.full_like(x, size - 1), np.full_like(x, -size)):
                bytes_of_a_few(w, np.ascontiguousarray(one, np.int8), ONE, Static(bits), found)
                assert found[1] == one[0].sum() * code, (code, size)


needs_avx2 = pytest.mark.skipif(not has("avx2"), reason="an instruction of AVX2")
LESS_128 = [-128, -127, -126, -64, -1, 0, 1, 64, 126, 127]


@njit
def signed_bytes_of_a_few(w, x, count, out):
    xs = load_each(pointer(x), 0, count, zeros_i32())
    store_sums(pointer(out), 0, 1, dot4_signed_each(load_i32(pointer(w), 0), xs, zeros_each(zeros_i32(), count)))


def ends():
    """w -128 .. 127 and x -127 .. 127, 64 of each: as large as they can be, of equal signs and of others; and any."""
    signs = np.array([(1, 1, 1, 1), (-1, -1, -1, -1), (1, 1, -1, -1), (-1, 1, 1, -1)] * 4).ravel()
    for number in LESS_128:
        for size in (127, 126, 1, 0):
            for x in (size * signs, -size * signs, np.full(64, size), np.full(64, -size)):
                yield np.full(64, number), x
    yield integers(-128, 128, 64), integers(-127, 128, 64, seed=1)


@needs_avx2
def test_codes_less_128_are_multiplied_exactly():
    found = np.zeros(2, np.int32)
    for w, x in ends():
        two = np.stack([x, -x]).astype(np.int8)
        signed_bytes_of_a_few((w + 128).astype(np.uint8), two, Static(2), found)
        assert found.tolist() == [(w * x).sum(), -(w * x).sum()], (w, x)


@njit
def by_bytes(codes, table, x, count, out):
    totals = dots_by_bytes(load_i32(pointer(codes), 0), load_f32(pointer(table), 0), pointer(x), 3, count)
    for token in range(value(count)):
        store_f32(pointer(out), 16 * token, totals[token])


@pytest.mark.skipif(not (has("avx2") or has("neon")), reason="instructions of AVX2 and Arm")
@pytest.mark.parametrize("count", [1, 2, 4])
def test_numbers_of_a_table_are_found_by_their_bytes(count):
    """All but one of the eight x of a lane are 0, so that the sum is an entry of the table, to the last bit."""
    for seed, table in enumerate(
        [codebook("nf4").numpy(), codebook("fp4").numpy(), numbers(16) * 1e30, -numbers(16) / 1e30]
    ):
        codes = integers(0, 256, 64, dtype=np.uint8, seed=seed)
        lanes = np.stack([codes & 15, codes >> 4], 1).reshape(16, 8)
        for j in range(8):
            x, found = np.zeros((8, count, 16), np.float32), np.zeros((count, 16), np.float32)
            x[j] = 2.0 ** np.arange(count)[:, None]  # each token its own
            by_bytes(codes, table, np.concatenate([np.full(3, 7, np.float32), x.ravel()]), Static(count), found)
            np.testing.assert_array_equal(found, table[lanes[:, j]] * x[j])


@pytest.mark.skipif(not (has("avx2") or has("neon")), reason="instructions of AVX2 and Arm")
def test_products_with_numbers_of_a_table_are_added_up():
    """Small whole numbers: exact."""
    table, codes, found = (
        np.arange(-8, 8, dtype=np.float32),
        integers(0, 256, 64, dtype=np.uint8),
        np.zeros(16, np.float32),
    )
    x = integers(-9, 9, 8, 16).astype(np.float32)
    by_bytes(codes, table, np.concatenate([np.zeros(3, np.float32), x.ravel()]), ONE, found)
    lanes = np.stack([codes & 15, codes >> 4], 1).reshape(16, 8)
    np.testing.assert_array_equal(found, (table[lanes] * x.T).sum(1))


# ---- a tile of rows and tokens


@njit
def tile_of_floats(w, stride, x, vectors, at, room, sums):
    totals = zeros_tile(zeros_f32(), vectors)
    for k in range(x.shape[0]):
        xs = load_each(pointer(x), k * x.shape[1], vectors, zeros_f32())
        totals = add_outer(totals, pointer(w), k, stride, xs, None)
    add_each(pointer(sums), at, room, totals)


@njit
def tile_of_bytes(w, stride, x, vectors, bits, at, room, sums, scales, group, groups, scaled):
    totals = zeros_tile(zeros_i32(), vectors)
    for four in range(x.shape[0]):
        xs = load_each(pointer(x), four * x.shape[1] * 4, vectors, zeros_i32())
        totals = add_outer(totals, pointer(w), 4 * four, stride, xs, bits)
    add_each(pointer(sums), at, room, totals)
    add_scaled_each(pointer(scaled), at, room, totals, pointer(scales), group, groups)


@njit
def tile_of_pairs(w, stride, x, vectors, together, room, sums):
    totals = zeros_tile(zeros_i32(), vectors)
    for first in range(0, x.shape[0], together):
        pairs = zeros_tile(zeros_i32(), vectors)
        for four in range(first, min(first + together, x.shape[0])):
            xs = load_each(pointer(x), four * x.shape[1] * x.shape[2], vectors, zeros_i32())
            pairs = add_outer_pairs(pairs, pointer(w), 4 * four, stride, xs)
        totals = widen_each(pairs, totals)
    add_each(pointer(sums), 0, room, totals)


def products_of_pairs(w, x, together, vectors=1):
    """w [rows of a tile, 4 n] with x [n, lanes, 4] by the kernel, and exactly."""
    rows, lanes = w.shape[0], x.shape[1]
    found = np.zeros((rows, lanes), np.int32)
    tile_of_pairs(w.ravel(), w.shape[1], x, Static(vectors), together, lanes, found)
    return found, w.astype(np.int64) @ x.transpose(0, 2, 1).reshape(-1, lanes)


@njit
def signs_and_sizes(codes, panel):
    for k in range(0, codes.size, 64):
        found = load_i32(pointer(codes), k)
        store_i32(pointer(panel), k, magnitudes(found))
        store_i32(pointer(panel), codes.size + k, signs_of(found))


@njit
def tile_by_signs(w, stride, away, x, missing, apart, vectors, sums):
    totals = zeros_tile(zeros_i32(), vectors)
    for four in range(x.shape[0]):
        xs = load_each(pointer(x), four * x.shape[1] * 4, vectors, zeros_i32())
        totals = add_outer_signed(totals, pointer(w), 4 * four, stride, away, xs)
    add_each(pointer(sums), 0, sums.shape[1], add_numbers_each(totals, pointer(missing), 1, apart))


def products_by_signs(w, x):
    """w [rows of a tile, 64] less 128, x [16, lanes, 4]: by the kernel, and exactly."""
    panel, rows, lanes = np.zeros(2 * w.size, np.uint8), len(w), x.shape[1]
    signs_and_sizes((w + 128).astype(np.uint8).ravel(), panel)
    np.testing.assert_array_equal(panel[: w.size], abs(w).ravel())
    np.testing.assert_array_equal(panel[w.size :].view(np.int8), -(w < 0).astype(np.int8).ravel())
    missing, found = np.full((rows, 3), 99, np.int32), np.zeros((rows, lanes), np.int32)
    missing[:, 1] = np.where(w < 0, -w, 0).sum(1)
    tile_by_signs(panel, w.shape[1], w.size, x.astype(np.int8), missing.ravel(), 3, Static(lanes // 16), found)
    return found, w.astype(np.int64) @ x.transpose(0, 2, 1).reshape(-1, lanes)


@needs_avx2
def test_a_tile_of_codes_less_128_is_multiplied_exactly():
    for w, x in ends():
        rows, lanes = np.tile(w, (tile_rows(), 1)), np.tile(x.reshape(16, 1, 4), (1, 16, 1))
        np.testing.assert_array_equal(*products_by_signs(rows, lanes))
    for vectors in (1, 2):
        w, x = integers(-128, 128, tile_rows(), 64), integers(-127, 128, 16, 16 * vectors, 4, seed=1)
        np.testing.assert_array_equal(*products_by_signs(w, x))


def around(sums, at, room, added):
    """What `sums` become when rows `room` numbers apart get `added`; what stands between them stays."""
    for r, row in enumerate(added):
        sums[at + r * room : at + r * room + len(row)] += row
    return sums


def test_as_many_pairs_are_added_in_16_bits_as_these_hold_and_no_more():
    assert [pairs_together(bits) for bits in range(2, 9)] == [8, 8, 8, 4, 2, 1, 0]
    for bits in range(2, 9):
        ends = [2 * (2**bits - 1) * byte for byte in (-128, 127)]  # of one result
        fits = [n for n in range(100) if n * ends[0] >= -(2**15) and n * ends[1] < 2**15]
        assert pairs_together(bits) == min(8, max(fits))
    assert 8 * 2 * 15 * 127 == 30_480 < 2**15


@needs_avx2
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7])
def test_extreme_codes_and_bytes_fill_16_bits_and_are_exact(bits):
    """All codes at an end, all bytes at an end, and each lane of 16 bits at an end of its own; the last round is not full."""
    together, rows = pairs_together(bits), tile_rows()
    for fours in (together, 5 * together + 1):
        for code in (0, 1, 2**bits - 1):
            for signs in ((1, 1, 1, 1), (-1, -1, -1, -1), (1, 1, -1, -1), (-1, 1, 1, -1)):
                for size in (127, 128):
                    w = np.full((rows, 4 * fours), code, np.uint8)
                    four = [max(min(sign * size, 127), -128) for sign in signs]
                    x = np.tile(np.array(four, np.int8), (fours, 16, 1))
                    found, expected = products_of_pairs(w, x, together)
                    np.testing.assert_array_equal(found, expected)


@needs_avx2
def test_one_pair_more_would_saturate():
    """What the bound keeps away, so that the tests above would see it."""
    x, w = np.full((9, 16, 4), 127, np.int8), np.full((tile_rows(), 36), 15, np.uint8)
    found, expected = products_of_pairs(w, x, 9)
    assert (found != expected).all()


@needs_avx2
@pytest.mark.parametrize("vectors", [1, 2])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
def test_a_tile_of_pairs_is_multiplied_each_row_and_lane_for_itself(bits, vectors):
    w = integers(0, 2**bits, tile_rows(), 4 * 19, dtype=np.uint8)
    x = integers(-128, 128, 19, 16 * vectors, 4, dtype=np.int8, seed=1)
    found, expected = products_of_pairs(w, x, pairs_together(bits), vectors)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("vectors", [1, 2])
def test_a_tile_of_floats_is_multiplied_and_added_where_it_belongs(vectors):
    """Small whole numbers: exact."""
    rows, lanes, stride, room = tile_rows(), 16 * vectors, 21, 16 * vectors + 3
    w, x = integers(-9, 9, rows * stride), integers(-9, 9, 7, lanes, seed=1)
    sums = np.arange(5 + rows * room).astype(np.float32)
    expected = around(sums.copy(), 5, room, w.reshape(rows, stride)[:, :7] @ x)
    tile_of_floats(w.astype(np.float32), stride, x.astype(np.float32), Static(vectors), 5, room, sums)
    np.testing.assert_array_equal(sums, expected)


@pytest.mark.parametrize("vectors", [1, 2])
def test_a_tile_of_bytes_is_multiplied_added_and_scaled_where_it_belongs(vectors):
    rows, lanes, stride, room = tile_rows(), 16 * vectors, 13, 16 * vectors + 3
    w = integers(0, 256, rows * stride, dtype=np.uint8)  # the fours begin anywhere
    x, scales = integers(-128, 128, 3, lanes, 4, dtype=np.int8, seed=1), integers(-9, 9, 2 * rows, seed=2)
    products = w.reshape(rows, stride)[:, :12].astype(np.int64) @ x.transpose(0, 2, 1).reshape(12, lanes)
    sums, scaled = np.arange(5 + rows * room, dtype=np.int32), np.arange(5 + rows * room).astype(np.float32)
    expected = around(sums.copy(), 5, room, products)
    expected_scaled = around(scaled.copy(), 5, room, products * scales[1::2, None])
    args = (w, stride, x, Static(vectors), Static(8), 5, room, sums, scales.astype(np.float32), 1, 2, scaled)
    tile_of_bytes(*args)
    np.testing.assert_array_equal(sums, expected)
    np.testing.assert_array_equal(scaled, expected_scaled)


@njit
def widened(codes, out):
    for i, part in enumerate(widen(load_i32(pointer(codes), 0))):
        store_i32(pointer(out), 16 * i, part)


def test_64_bytes_are_widened_in_their_order():
    codes, out = integers(0, 256, 64, dtype=np.uint8), np.zeros(64, np.int32)
    widened(codes, out)
    np.testing.assert_array_equal(out, codes)


@njit
def asked_for(x, place):
    prefetch(pointer(x), place)
    ask(pointer(x), place)


def test_anything_may_be_asked_for():
    """An address that nobody has is no error."""
    for place in (0, -1, 2**20, 2**46):
        asked_for(np.zeros(3, np.uint8), place)


# ---- 16-bit floats


@njit
def looked_up_low(table, index, out):
    store_f32(pointer(out), 0, lookup_low(load_f32(pointer(table), 0), load_i32(pointer(index), 0)))


def test_a_low_lookup_finds_the_first_eight():
    table, index, found = numbers(16), integers(0, 8, 16), np.zeros(16, np.float32)
    looked_up_low(table, index, found)
    np.testing.assert_array_equal(found, table[index])


@njit
def floats_of(x, out):
    for i in range(x.size):
        out[i] = as_float(x[i])


def test_every_float16_and_bfloat16_is_read_to_the_last_bit():
    """All 65536 of each: denormal ones, infinities, and NaN as NaN."""
    codes, found = np.arange(2**16).astype(np.uint16), np.zeros(2**16, np.float32)
    for seen, dtype in ((np.uint16, torch.float16), (np.int16, torch.bfloat16)):
        floats_of(codes.view(seen), found)
        expected = torch.from_numpy(codes.view(np.int16)).view(dtype).float().numpy()
        np.testing.assert_array_equal(found, expected)  # NaN where NaN is expected
        np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))


# ---- CPUs


def test_the_instruction_for_64_bytes_is_used_where_the_cpu_has_it():
    if any(name in os.environ for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_ENABLE_AVX")):
        assert not has("avx512vnni") and not has("avx512f")
        return
    there = bool(binding.get_host_cpu_features().get("avx512vnni"))
    assert has("avx512vnni") == there
    dot(
        *(np.zeros(16, np.int32) for _ in range(1)),
        np.zeros(64, np.uint8),
        np.zeros(64, np.int8),
        np.zeros(16, np.int32),
    )
    assert any("vpdpbusd" in code for code in dot.inspect_asm().values()) == there


OLDER = {
    "generic": {"NUMBA_CPU_NAME": "generic"},
    "AVX2 and FMA": {"NUMBA_CPU_FEATURES": "+avx2,+fma,+sse4.2"},
    "haswell": {"NUMBA_CPU_NAME": "haswell"},
    "haswell, no features": {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": ""},
    "no AVX": {"NUMBA_ENABLE_AVX": "0"},
}


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    """One test of each kernel, on the first two also all that stands above; two CPUs at a time."""
    kernels = [f"tests/kernels/test_{name}.py::test_one_of_each_kernel" for name in ("weight_only", "integer")]

    folders = {name: tmp_path_factory.mktemp("cache") for name in OLDER}  # here: two threads may not ask pytest at once

    def check(name):
        above = "not older" if name in list(OLDER)[:2] else "one_of_each or 64_bytes"
        command = ("-m", "pytest", "-q", "--noconftest", "-m", "", "-k", above, __file__, *kernels)
        return run_python(*command, cache=folders[name], **OLDER[name])

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(OLDER, pool.map(check, OLDER), strict=True))


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", OLDER)
def test_every_kernel_is_right_on_an_older_cpu(name, verdicts):
    assert not verdicts[name], verdicts[name]


VEX = """
from numba import njit, types
from qkit_kernels.numba.vector import dot4, has, load_i32, pointer, store_i32

@njit
def older(a, out):
    store_i32(pointer(out), 0, dot4(load_i32(pointer(out), 0), load_i32(pointer(a), 0), load_i32(pointer(a), 64)))

assert has("avxvnni") and not has("avx512vnni")
older.compile((types.uint8[::1], types.int32[::1]))
assert any(code.count("vpdpbusd") == 2 and "zmm" not in code for code in older.inspect_asm().values())
"""


@pytest.mark.skipif(not binding.get_default_triple().startswith("x86_64"), reason="AVX-VNNI is an instruction of x86")
def test_an_older_instruction_for_32_bytes_is_compiled_without_an_abort(tmp_path):
    """AVX-VNNI without AVX-512 (Alder Lake). This process may not have it: compiled and looked at, not run."""
    features = "+avx2,+fma,+f16c,+avxvnni"
    said = run_python("-c", VEX, cache=tmp_path, NUMBA_CPU_NAME="alderlake", NUMBA_CPU_FEATURES=features)
    assert not said, said
