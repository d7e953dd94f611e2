"""The Triton kernels under Triton's interpreter, on small shapes: what they compute, not how fast.

In float16 only: the interpreter multiplies bfloat16 numbers as if they were integers, silently. Assembly it cannot run; its plain
twin (`words.plain`) stands in, and `tests/gpu` holds the two equal on a card.
"""

import importlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from grids import ALL_BITS, thinned
from products import KINDS, random, weight
from qkit import FP4, NF4, quantize_tensor
from qkit.backends import torch as plain
from qkit.methods.int8 import int8_rows

pytest.importorskip("triton", reason="Triton is not installed: pip install 'qkit[gpu]'")

import triton
import triton.language as tl

from qkit.backends.triton import integer, integer_tiles, layout, new_enough, tiles
from qkit.backends.triton import linear as adapter
from qkit_kernels.triton import one

HALF = 2.0**-11  # the largest relative error of a number rounded to float16
SHAPES = (
    (24, 256, 128),
    (17, 160, 16),
    (9, 200, None),
    (16, 320, 64),
    (33, 96, 32),
    (16, 192, 48),
    (8, 512, 256),
    (16, 640, 320),
    (8, 816, 272),
)
INTEGERS = ((1, 20, 130), (5, 16, 256), (9, 40, 200), (17, 70, 130), (40, 64, 384))  # tokens, rows, features
CARD = tiles.Card(units=4, shared=227 * 1024, major=8, ptx=False)  # the interpreter speaks no assembly
TABLES = (NF4(), NF4(32, double_quant=False), FP4(), FP4(128))


def bound(x, w, features):
    """What the roundings can make: three of each weight, one of each float32 sum, one of the result."""
    terms = x.double().abs() @ w.abs().T
    return terms * (3 * HALF + features * 2.0**-24) + HALF * (x.double() @ w.T).abs() + 2.0**-14


def poisoned(*shape, dtype=torch.float16):
    return torch.full(shape, torch.nan, dtype=dtype)


def check_products(q):
    laid, w = layout.lay(q, torch.float16), q.dequantize().double()
    rows, features = q.shape
    made = adapter.floats(laid, ptx=False)
    assert bool(((made.double() - w).abs() <= 2 * HALF * w.abs() + 2.0**-14 * laid.rows[:, None]).all())
    for tokens in (1, 11, 27):
        x = random(tokens, features).half()
        few, many = poisoned(tokens, rows), poisoned(tokens, rows)
        adapter.few(adapter.aligned(x), laid, few, tiles.few(laid, CARD), ptx=False)
        adapter.many(adapter.aligned(x), laid, many, tiles.Many(64, 32, 4, 2, programs=3), ptx=False, drain=False)
        for y in (few, many):
            assert bool(((y.double() - x.double() @ w.T).abs() <= bound(x, w, features)).all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", ALL_BITS)
def test_codes_times_floats(bits, kind):
    check_products(weight(bits, *SHAPES[(bits + KINDS.index(kind)) % len(SHAPES)], kind, real=True))


@pytest.mark.parametrize("shape", thinned(SHAPES, SHAPES[1:3] + SHAPES[5:]), ids=str)
def test_groups_and_shapes_that_fill_no_block(shape):
    check_products(weight(4, *shape, "zero points", real=True))


@pytest.mark.parametrize("scheme", thinned(TABLES, TABLES[1:3]), ids=repr)
def test_places_in_a_table_times_floats(scheme):
    check_products(quantize_tensor(random(20, 256), scheme))


def test_scales_that_float16_has_no_room_for():
    for factor in (1e-9, 1e7):
        check = weight(4, 16, 256, 128, "zero points", torch.float32, real=True)
        laid = layout.lay(
            type(check)(check.packed, check.scales * factor, 4, check.shape, check.zero_points), torch.float16
        )
        assert bool(laid.rows.log2().frac().eq(0).all())
        assert bool((laid.grid >> 16).to(torch.int16).view(torch.float16).isfinite().all())


@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize("bits", range(2, 9))
def test_words_turn_back_into_the_codes(bits, table):
    if table and bits != 4:
        pytest.skip("a table has 16 numbers")
    for shape in ((1, 1), (7, 129), (130, 300), (128, 128)):
        codes = torch.randint(0, 2**bits, shape, dtype=torch.uint8)
        words = layout.pack_words(codes, bits, table)
        assert words.numel() * 32 == -(-shape[0] // 128) * 128 * -(-shape[1] // 128) * 128 * bits
        assert torch.equal(layout.unpack_words(words, bits, shape, table), codes)


@pytest.mark.parametrize("threshold", [0.0, 6.0, 1.5])
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("shape", thinned(INTEGERS, INTEGERS[:4]), ids=str)
def test_integers_times_integers(shape, static, threshold):
    tokens, rows, features = shape
    q, scale = int8_rows(random(rows, features)), torch.tensor(0.02) if static else None
    x = random(tokens, features)
    x[:, 3] *= 5
    x[:, 77] *= 8
    x[tokens - 1, 5:] = 0
    for bias in (None, random(rows)):
        y = poisoned(tokens, rows, dtype=torch.float32)
        integer.launch(x.half(), integer.lay(q), scale, threshold, bias, y, CARD)
        expected = plain.int8_linear(x.half(), q, scale, threshold, bias, torch.float32)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("threshold", [0.0, 1.5])
def test_tokens_too_long_for_the_registers_are_read_in_turns(threshold, monkeypatch):
    q, x, bias = int8_rows(random(20, 390)), random(3, 390).half(), random(20)
    x[1, 200], x[2, 389] = torch.nan, torch.inf
    for tokens in (x, x[:1]):
        found = []
        for width in (512, 64):
            monkeypatch.setattr(integer, "WHOLE", width)
            found.append(poisoned(len(tokens), 20, dtype=torch.float32))
            integer.launch(tokens, integer.lay(q), None, threshold, bias, found[-1], CARD)
        # where outliers are looked for, those of tokens that registers hold are bytes, and others are not
        torch.testing.assert_close(
            found[0][0], found[1][0], rtol=1e-5 if threshold else 0, atol=1e-5 if threshold else 0
        )
        assert torch.equal(found[0].isnan(), found[1].isnan())
        assert found[0][0].isfinite().all() and not found[0][1:].isfinite().any()


@pytest.mark.parametrize("held", [integer.HELD, 0], ids=["in registers", "too many for registers"])
@pytest.mark.parametrize("width", [integer.WHOLE, 512])
@pytest.mark.parametrize("tokens", [1, 3, 20])
def test_outliers_keep_their_order_over_many_programs_and_more_of_them_than_are_gathered(
    tokens, width, held, monkeypatch
):
    monkeypatch.setattr(integer, "WHOLE", width)
    monkeypatch.setattr(integer, "HELD", held)
    features, last = 2300, tokens - 1  # which 1024 columns each list
    q, x = int8_rows(random(20, features)), random(tokens, features).clamp(-5, 5)
    for column in (0, 1023, 1024, 2047, 2048, 2299, *range(1100, 1100 + integer.ROOM)):
        x[column % tokens, column] = 7.0 + column / features
    x[last, 1500] = -9.0
    y = poisoned(tokens, 20, dtype=torch.float32)
    integer.launch(x.half(), integer.lay(q), None, 6.0, None, y, CARD)
    expected = plain.int8_linear(x.half(), q, None, 6.0, None, torch.float32)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_on_hopper_the_cheapest_tiles_of_integers_are_taken():
    hopper = tiles.Card(units=132, shared=232448, major=9)
    cuts = {m: integer_tiles.many(m, 14336, 4096, hopper, outliers=False) for m in (16, 64, 1024, 4096)}
    assert [(cut.bm, cut.bn) for cut in cuts.values()] == [(32, 128), (64, 64), (128, 128), (128, 256)]
    for tokens in (1, 17, 100, 300, 1000):
        for rows, features in ((1, 128), (4096, 1024), (5120, 13824)):
            cut = integer_tiles.many(tokens, rows, features, hopper, outliers=True)
            assert cut.stages * (cut.bm + cut.bn) * cut.bk <= hopper.shared - 4096


def test_what_prices_choose_is_nearly_the_best_of_what_was_timed():
    """As `integer_tiles` says: 2.6 % longer in the mean, at 55 products on an H200."""
    timed = json.loads((Path(__file__).parents[2] / "benchmarks/results/gpu-2026-11-29-integers.json").read_text())
    hopper, lost = tiles.Card(units=132, shared=232448, major=9), []
    for shape, rows in timed.items():
        for tokens, times in rows.items():
            cut = integer_tiles.many(int(tokens), *map(int, shape.split("x")), hopper, outliers=False)
            tried = {name: us for name, us in times.items() if name not in ("bf16", "table")}
            if (name := " ".join(map(str, asdict(cut).values()))) in tried:  # tiles far taller than the tokens were not
                lost.append(tried[name] / min(tried.values()))
    assert len(lost) == 51 and sum(lost) / len(lost) == pytest.approx(1.026, abs=5e-4) and max(lost) < 1.17


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_what_no_code_can_say_comes_out_as_nan():
    q, x = int8_rows(random(20, 130)), random(3, 130).half()
    x[0, 1], x[1, 5] = torch.nan, torch.inf
    for threshold in (0.0, 6.0):
        for scale in (None, torch.tensor(0.02)):
            y = poisoned(3, 20, dtype=torch.float32)
            integer.launch(x, integer.lay(q), scale, threshold, None, y, CARD)
            expected = plain.int8_linear(x, q, scale, threshold, None, torch.float32)
            assert torch.equal(y.isnan(), expected.isnan()) and torch.equal(y.isinf(), expected.isinf())


@pytest.mark.parametrize("blocks", [1, 2, 7, 32, 86, 112])
@pytest.mark.parametrize("rows", [1, 1000, 4096, 14336, 128256])
@pytest.mark.parametrize("major", [8, 9])
def test_a_cut_covers_all_columns_and_no_more_than_it_must(rows, blocks, major):
    card = tiles.Card(units=132, shared=227 * 1024, major=major)
    number = torch.zeros(1, 1, 1, 1, dtype=torch.int32)
    for bits, table in ((3, None), (4, None), (8, None), (4, number)):
        laid = layout.Laid(number, number, None, number, table, (rows, 128 * blocks), bits, 1, torch.float16)
        for tokens in (1, 8, 9, 16):
            cut = tiles.few(laid, card, tokens)
            covered = cut.warps * cut.unroll * cut.turns
            assert blocks <= covered < blocks + 8 * cut.warps and cut.warps in (4, 8)


def test_how_many_tokens_are_few():
    number = torch.zeros(1, 1, 1, 1, dtype=torch.int32)
    for shape, major, table, most in (
        ((4096, 4096), 9, None, 32),
        ((4224, 4096), 9, None, 16),
        ((4096, 4096), 8, None, 16),
        ((4096, 4096), 10, None, 16),
        ((4096, 1024), 9, None, 64),
        ((4096, 1024), 9, number, 32),
        ((1024, 4096), 9, number, 64),
        ((256, 512), 9, None, 128),
    ):
        laid = layout.Laid(number, number, None, number, table, shape, 4, 1, torch.float16)
        assert tiles.few_tokens(laid, tiles.Card(units=132, shared=227 * 1024, major=major)) == most
        widths = [tiles.few_width(tokens, laid) for tokens in (1, 8, 9, 16, 17, 32)]
        assert widths == [1, 8, 16, 16, *2 * [16 if laid.shape[0] * laid.shape[1] <= 2**22 else 32]]


@pytest.mark.parametrize("blocks", [1, 3, 8, 32, 112])
@pytest.mark.parametrize("rows", [1, 17, 1000, 4096, 14336, 128256])
def test_stretches_meet_two_tiles_at_most(rows, blocks):
    number = torch.zeros(1, 1, 1, 1, dtype=torch.int32)
    card = tiles.Card(units=132, shared=227 * 1024, major=9)
    for bits, table in ((2, None), (3, None), (4, None), (8, None), (4, number)):
        laid = layout.Laid(number, number, None, number, table, (rows, 128 * blocks), bits, 1, torch.float16)
        for tokens in (1, 8):
            cut = tiles.reading(tokens, laid, card)
            if tokens == 8 and table is None:
                assert (cut is None) == (rows > 264 * 16)
                if cut is None:
                    continue
            tall, least = -(-rows // 16), -(-rows // 16) // cut.programs
            most = -(-tall // cut.programs)
            assert least >= 1 and most <= tiles.ONE_WARPS and cut.depth in (1, 2, 3, 4)
            assert -(-most * blocks // tiles.ONE_WARPS) <= blocks
            assert isinstance(cut, tiles.Eight) or tiles.one_room(laid) <= 48 * 1024
        assert tiles.reading(9, laid, card) is None


def test_two_programs_share_a_multiprocessor_where_both_have_about_the_same_to_do():
    number = torch.zeros(1, 1, 1, 1, dtype=torch.int32)
    card = tiles.Card(units=132, shared=227 * 1024, major=9)
    for rows, features, programs, depth in (
        (4096, 14336, 256, 1),
        (14336, 4096, 264, 1),
        (5120, 13824, 132, 3),  # 320 tiles: some of 264 programs would have two
        (1024, 4096, 64, 2),
    ):
        laid = layout.Laid(number, number, None, number, number, (rows, features), 4, 1, torch.float16)
        assert tiles.eight(1, laid, card) == tiles.Eight(programs, depth)
        assert (tiles.eight(2, laid, card) is None) == (rows == 5120)
        numbers = replace(laid, table=None)
        # `few` is better where a program has several tiles
        assert (tiles.eight(2, numbers, card) is None) == (rows > 4224)


def test_one_token_has_no_kernel_of_its_own_where_that_would_not_fit():
    number, offsets = torch.zeros(1, 1, 1, 1, dtype=torch.int32), torch.zeros(1, 1, 8, 8, dtype=torch.int32)
    card = tiles.Card(units=132, shared=227 * 1024, major=9)
    for shape, bits, grid, table, major in (
        ((64, 128 * 128), 4, number, None, 9),  # digits of 16,384 numbers
        ((64, 1024), 5, number, None, 9),
        ((64, 1024), 4, offsets, None, 9),  # groups of 16
        ((64, 1024), 4, number, number, 9),
        ((64, 1024), 4, number, None, 8),
        ((64, 1024), 4, number, None, 10),
    ):
        laid = layout.Laid(number, grid, None, number, table, shape, bits, 1, torch.float16)
        assert tiles.one(laid, replace(card, major=major)) is None
        reads = major == 9 and bits == 4 and grid is number
        assert isinstance(tiles.reading(1, laid, replace(card, major=major)), tiles.Eight if reads else type(None))
    laid = layout.Laid(number, offsets, None, number, number, (64, 1024), 4, 0, torch.float16)
    assert tiles.reading(1, laid, card) is None  # groups of 16


@triton.jit
def digits_kernel(x_ptr, codes_ptr, step_ptr, N: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, N)).to(tl.float32)
    inverse, step = one.step_of(tl.max(tl.abs(x), 0))
    tl.store(codes_ptr + tl.arange(0, N), one.digits_of(x, inverse))
    tl.store(step_ptr, step)


@pytest.mark.parametrize("largest", [1.0, 65504.0, 3e38, 1e-30, 0.0])
def test_a_token_is_its_three_digits(largest):
    """Exactly, for all that are at least 2^-14 of the largest; the others to half a step, which is at most 2^-21 of it."""
    x = torch.randn(128, generator=torch.Generator().manual_seed(3)).bfloat16().float()
    x = (x / x.abs().max() * largest).bfloat16()
    codes, step = torch.zeros(128, dtype=torch.int32), torch.zeros(1)
    digits_kernel[(1,)](x, codes, step, 128)
    octets = [((codes >> (8 * d)) & 255) - 128 for d in range(3)]
    assert all(digit.min() >= -128 and digit.max() <= 127 for digit in octets)
    whole = (octets[0] + 256 * octets[1] + 65536 * octets[2]).double() * step.double()
    near = x.double().abs() >= 2.0**-14 * largest if largest >= 2.0**-100 else torch.zeros(128, dtype=torch.bool)
    assert torch.equal(whole[near], x.double()[near])
    assert float((whole - x.double()).abs().max()) <= float(step) / 2
    assert float(step) <= max(float(x.double().abs().max()) * 2.0**-21, 2.0**-126)
    assert codes.abs().max() < 2**24


def test_the_step_of_what_is_not_finite_is_none():
    for bad in (torch.nan, torch.inf):
        step = torch.zeros(1)
        digits_kernel[(1,)](torch.full((128,), bad).half(), torch.zeros(128, dtype=torch.int32), step, 128)
        assert step.isnan()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_bytes_of_words_are_the_columns_that_a_tokens_digits_are_put_in_order_for(bits):
    """Column 4 h + 2 u + l of eight; see `one.in_order` and `one.codes`."""
    codes = torch.randint(0, 2**bits, (16, 256), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    words = layout.pack_words(codes, bits).view(bits // 4 or 1, -1, 2, 8, 4, min(bits, 4))
    words = words[:, :2]  # plane, row of eight, block, g, t, word
    columns = codes.view(2, 8, 2, 4, 4, 8).permute(0, 2, 1, 4, 3, 5)  # row of eight, block, g, t, i, column
    found = {
        2: lambda: [(words[0] >> (2 * p)) & 0x03030303 for p in range(4)],
        4: lambda: [words[0] & 0x0F0F0F0F, (words[0] >> 4) & 0x0F0F0F0F],
        8: lambda: list(words),
    }[bits]()
    order = {4: ((0, 4, 1, 5), (2, 6, 3, 7)), 8: ((0, 2, 1, 3), (4, 6, 5, 7))}
    for p, octets in enumerate(found):
        if bits == 2:  # i even and i odd take turns
            pairs = columns.view(2, 2, 8, 4, 2, 2, 8)[..., 2 * p : 2 * p + 2]
            expected = pairs.transpose(-1, -2).flatten(-2)
        else:
            expected = columns[..., order[bits][p]]
        assert torch.equal(octets.contiguous().view(torch.uint8).view(expected.shape), expected)


@pytest.mark.parametrize("shared", [99, 163, 227])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_cut_fits_into_the_card(bits, shared):
    card = tiles.Card(units=84, shared=shared * 1024, major=8)
    for group in (16, 128):
        laid = layout.lay(weight(bits, 256, 512, group, "offsets"), torch.float16)
        for tokens in (17, 64, 128, 200, 500):
            cut = tiles.many(tokens, laid, card)
            x, words = cut.stages * cut.bm * 256, (cut.stages - 1) * cut.bn * 16 * bits
            assert x + words <= card.shared and cut.stages >= 2 and cut.bm >= 32
            integers = integer_tiles.many(tokens, 4096, 4096, card, outliers=False)
            assert integers.stages * (integers.bm + integers.bn) * integers.bk <= card.shared


def test_an_older_triton_is_passed_over_with_a_sentence(monkeypatch):
    monkeypatch.setattr(triton, "__version__", "3.5.1")
    with pytest.raises(ImportError, match=r"3\.5\.1 cannot compile.*triton>=3\.6"):
        importlib.reload(new_enough)
    monkeypatch.setattr(triton, "__version__", "3.10.0+git1234")
    importlib.reload(new_enough)
