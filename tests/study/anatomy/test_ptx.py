"""The kernels' assembly, carried out on the CPU, does what the layout and the stored weight say."""

import numpy as np
import pytest
import torch

from products import weight
from qkit import FP4, NF4, quantize_tensor
from qkit.backends.triton import layout
from qkit.study.anatomy.ptx import execute, halves, lop3, on_the_way, prmt
from qkit.study.anatomy.words import code_places
from qkit_kernels.triton import assembly


def words(*values):
    return np.array(values, np.uint32)


@pytest.mark.parametrize("table", [0xEA, 0xC0, 0x96, 0x00, 0xFF, 0x1B])
def test_any_function_of_three_bits(table):
    a, b, c = (np.random.default_rng(seed).integers(0, 2**32, 50, dtype=np.uint32) for seed in range(3))
    found = lop3(a, b, c, table)
    for bit in range(32):
        rows = (a >> bit & 1) * 4 + (b >> bit & 1) * 2 + (c >> bit & 1)
        assert np.array_equal(found >> bit & 1, table >> rows & 1)


def test_the_table_of_and_or_is_its_formula_on_three_masks():
    assert (0xF0 & 0xCC) | 0xAA == 0xEA
    a, b, c = words(0xF0F0F0F0), words(0xCCCCCCCC), words(0xAAAAAAAA)
    assert lop3(a, b, c, 0xEA) == (a & b | c) == 0xEAEAEAEA


def test_bytes_are_picked():
    a, b = words(0x33221100), words(0x77665544)
    assert prmt(a, b, words(0x3210)) == a and prmt(a, b, words(0x7654)) == b
    assert prmt(a, b, words(0x0246)) == 0x00224466


ORDER = range(8)  # of 8 columns, as outputs come


def places_of(width, table=False):
    """At which bit of a word each of the outputs $0, $1, ... has its code: those of pair p = 2 h + u, left and right."""
    return [4 * k if table else 16 * (k & 1) + width * (k >> 1) for k in ORDER]


def rebuilt(text, operands, table=False):
    """The weight [16, 128] that the text makes of the words of one block."""
    places = code_places(4, table)
    count = int((places.row[:, 0] < 16).sum())
    out, _ = execute(text, operands(places, count))
    found = np.full((16, 128), np.nan, np.float16)
    for value, bit in zip(out, places_of(4, table), strict=True):
        found[places.row[:count, bit], places.column[:count, bit]] = value
    return found


@pytest.mark.parametrize("kind", ["symmetric", "zero points", "offsets"])
def test_words_become_the_weight_in_float16(kind):
    q = weight(4, 16, 128, 128, kind, real=True)
    laid = layout.lay(q, torch.float16)

    def operands(places, count):
        row = places.row[:count, 0]
        grids = [
            None if part is None else part[:2].numpy().view(np.uint32).reshape(16) for part in (laid.grid, laid.off)
        ]
        given = {8: laid.words.numpy().view(np.uint32)[:count], 11: grids[0][row]}
        return given if grids[1] is None else given | {12: grids[1][row]}

    found = rebuilt(assembly.affine(4, "f16", laid.off is not None), operands)
    expected = (q.dequantize() / laid.rows[:16, None]).numpy()
    assert np.all(np.abs(found - expected) <= 2.0**-10 * np.abs(expected) + 2.0**-13)
    if kind != "offsets":  # one rounding of an exact difference
        assert np.array_equal(found, expected.astype(np.float16))


@pytest.mark.parametrize("bits", [2, 3, 5, 6, 7])
def test_planes_are_put_together(bits):
    """A word of each plane whose codes are known: q = the place of the code, cut to the plane's bits."""
    planes = assembly.PLANES[bits]
    codes = np.arange(8) * 37 % 2**bits
    given, lowest = {}, 0
    for number, width in enumerate(planes):
        parts = zip(ORDER, places_of(width), strict=True)
        word = sum(int(codes[k] >> lowest & 2**width - 1) << bit for k, bit in parts)
        given[8 + number], lowest = words(word), lowest + width
    minus, one = np.array([-assembly.bias(bits, "f16"), 1], np.float16).view(np.uint16).astype(np.uint32)
    out, _ = execute(assembly.affine(bits, "f16", False), {**given, 11: words(minus | one << 16)})
    assert [float(value[0]) for value in out] == codes.tolist()


def test_bytes_stay_whole():
    codes = [0, 255, 128, 127, 1, 254, 37, 200]
    given = {8 + h: words(sum(codes[4 * h + c] << 16 * (c & 1) + 8 * (c >> 1) for c in range(4))) for h in (0, 1)}
    minus, one = np.array([-assembly.bias(8, "f16"), 1], np.float16).view(np.uint16).astype(np.uint32)
    out, _ = execute(assembly.affine(8, "f16", False), {**given, 11: words(minus | one << 16)})
    assert [float(value[0]) for value in out] == codes


@pytest.mark.parametrize("scheme", [NF4(128, double_quant=False), FP4(128, double_quant=False)], ids=repr)
def test_places_in_a_table_become_its_numbers(scheme):
    q = quantize_tensor(torch.randn(16, 128, generator=torch.Generator().manual_seed(0)), scheme)
    laid = layout.lay(q, torch.float16)

    def operands(places, count):
        octets = laid.table[:, 0].numpy().view(np.uint32)
        grid = laid.grid[:2].numpy().view(np.uint32).reshape(16)[places.row[:count, 0]]
        return {8: laid.words.numpy().view(np.uint32)[:count], 17: grid, **{9 + i: octets[i] for i in range(8)}}

    found = rebuilt(assembly.table("f16"), operands, table=True)
    expected = (q.dequantize() / laid.rows[:16, None]).numpy()
    assert np.all(np.abs(found - expected) <= 2.0**-10 * np.abs(expected) + 2.0**-14)


def test_the_way_of_one_word_ends_at_its_weights():
    minus, scale = np.array([-1024 - 7, 0.5], np.float16).view(np.uint16).astype(np.uint32)
    _, steps = execute(assembly.affine(4, "f16", False), {8: words(0x000C0050), 11: words(minus | scale << 16)})
    rows = on_the_way(steps, "v1", 0x000C0050)
    assert rows[0] == ("the word", 0x000C0050, "0x000c0050") and rows[1][0].startswith("shr.u32 t")
    assert [meaning for _, _, meaning in rows[2:]] == ["1024 and 1029", "-7 and -2", "-3.5 and -1"]


def test_what_is_unknown_is_refused():
    with pytest.raises(ValueError, match=r"'fma.rn.bf16x2' is none of those that float16 kernels use"):
        execute(assembly.affine(4, "bf16", False), {8: words(0), 11: words(0)})
    with pytest.raises(ValueError, match=r"give operand \$11"):
        execute(assembly.affine(4, "f16", False), {8: words(0)})


def test_halves():
    low, high = halves(words(0x3C00C000))
    assert (low[0], high[0]) == (-2.0, 1.0)
