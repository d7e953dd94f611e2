"""The ways of processors without AVX-512, in processes that see such a one: what is compiled, and that it multiplies exactly."""

import pytest
from llvmlite import binding

from grids import thinned
from processes import run_python

X86 = binding.get_default_triple().startswith("x86_64")
FEATURES = {
    "AVX2": "+avx2,+fma,+f16c,+bmi,+bmi2,+sse4.2",
    "AVX-VNNI": "+avx2,+fma,+f16c,+bmi,+bmi2,+sse4.2,+avxvnni",
}
COMPILED = """
import sys
from numba import njit, types
from qkit_kernels.numba import steps
from qkit_kernels.numba.tiles import dots
from qkit_kernels.numba.vector import dot4_each, dots_by_bytes, dots_in_place, has, load_each, load_i32, load_lanes, \\
    add_each, load_bytes, load_f32, lookup, lookup_low, pairs_together, pointer, store_f32, store_i32, transpose16, zeros_i32

assert not has("avx512f") and has("avx2") and has("avxvnni") == (sys.argv[1] == "AVX-VNNI")

@njit
def integers(codes, x, bits, out):
    xs, zeros = load_each(pointer(x), 0, (None,), zeros_i32()), load_each(pointer(out), 0, (None,), zeros_i32())
    store_i32(pointer(out), 0, dot4_each(load_i32(pointer(codes), 0), xs, zeros, bits)[0])

@njit
def floats(packed, x, bits, out):
    store_f32(pointer(out), 0, dots_in_place(load_lanes(pointer(packed), 0, bits), pointer(x), 0, (None,), bits)[0])

@njit
def codebook(numbers, packed, x, out):
    found = dots_by_bytes(load_i32(pointer(packed), 0), load_f32(pointer(numbers), 0), pointer(x), 0, (None,))
    store_f32(pointer(out), 0, found[0])

@njit
def table(numbers, index, out):
    store_f32(pointer(out), 0, lookup(load_f32(pointer(numbers), 0), load_i32(pointer(index), 0)))

@njit
def low(numbers, index, out):
    store_f32(pointer(out), 0, lookup_low(load_f32(pointer(numbers), 0), load_i32(pointer(index), 0)))

@njit
def cut(packed, bits, out):
    store_i32(pointer(out), 0, load_bytes(pointer(packed), 0, bits))

@njit
def turn(numbers, out):
    transpose16(pointer(numbers), 0, 16, pointer(out), 0, 16)

@njit
def tile(codes, x, bits, out):
    sums = dots(pointer(codes), 128, 0, 128, pointer(x), (None,), bits)
    add_each(pointer(out), 0, 16, sums)

def compiled(function, *kinds):
    function.compile(kinds)
    text = function.inspect_asm(function.signatures[-1])
    assert "zmm" not in text
    return steps.instructions(text)

u8, i8, i32, f32 = types.uint8[::1], types.int8[::1], types.int32[::1], types.float32[::1]
static = lambda bits: types.UniTuple(types.none, bits)
for bits in (4, 8):
    count = compiled(integers, u8, i8, static(bits), i32)
    if has("avxvnni"):
        assert count["vpdpbusd"] == 2 and not count["vpmaddubsw"], count
    else:  # eight bits in two parts, so that no sum of 16 bits saturates
        assert count["vpmaddubsw"] == count["vpmaddwd"] == {4: 2, 8: 4}[bits], count
for bits in (2, 3, 4, 5, 6, 7):
    compiled(tile, u8, i8, static(bits), i32)
    loop = steps.instructions(steps.inner_loop(tile.inspect_asm(tile.signatures[-1]), "vpmaddubsw", "vpdpbusd"))
    if has("avxvnni"):
        assert loop["vpdpbusd"] == 12, loop
    else:  # six rows of two vectors; below seven bits sums of 16 bits are widened between two loops, or once in a few rounds
        rare = (0, loop["vpmaddubsw"] // pairs_together(bits))
        assert loop["vpmaddubsw"] % 12 == 0 and loop["vpmaddwd"] in (rare if bits < 7 else rare[1:]), (bits, loop)
if not has("avxvnni"):  # eight bits by magnitudes and signs: two products fit into 16 bits
    compiled(tile, u8, i8, static(8), i32)
    loop = steps.instructions(steps.inner_loop(tile.inspect_asm(tile.signatures[-1]), "vpmaddubsw"))
    assert loop["vpmaddubsw"] == loop["vpmaddwd"] == loop["vpxor"] == loop["vpaddd"] == 12, loop
for bits in (2, 3, 4, 5, 6, 7):  # 64 codes: four shuffles, shifts and masks for each 16, or of 4 bits one for 32
    count = compiled(cut, u8, static(bits), u8)
    shuffles = sum(n for name, n in count.items() if name.startswith(("vpshufb", "vpunpck", "vpack", "vperm")))
    shifts = sum(n for name, n in count.items() if name.startswith(("vpmul", "vpsrl", "vpsll")))
    assert shuffles <= (3 if bits == 4 else 5) and shifts <= (1 if bits == 4 else 8), (bits, count)
count = compiled(turn, f32, f32)
assert count["vinsertf128"] == 32 and sum(n for name, n in count.items() if name.startswith("vunpck")) == 64, count
assert not sum(n for name, n in count.items() if name.startswith(("vperm", "vshuf", "vblend"))), count
for bits, unit in ((2, 16), (3, 4), (4, 8)):  # a mask or a shift, a conversion, a multiply-add: for eight codes
    count = compiled(floats, u8, f32, static(bits), f32)
    products = sum(number for name, number in count.items() if name.startswith(("vfmadd", "vmulps")))
    assert count["vcvtdq2ps"] == 2 * unit and products <= 2 * unit, count
    masks = sum(number for name, number in count.items() if name.startswith(("vpand", "vandps", "vpsrld", "vpslld")))
    assert masks <= 2 * unit, count
count = compiled(codebook, f32, u8, f32, f32)  # four bytes of 32 floats, and a turn: for half of 128 codes, twice
assert count["vpshufb"] <= 2 * 9 + 8 and sum(n for name, n in count.items() if name.startswith("vpunpck")) == 32, count
assert not count["vblendvps"] and count["vpermd"] + count["vpermps"] <= 8, count  # the table's bytes, once a row
count = compiled(table, f32, i32, f32)
assert count["vpermps"] + count["vpermd"] == 4 and count["vblendvps"] == 2, count
count = compiled(low, f32, i32, f32)
assert count["vpermps"] + count["vpermd"] == 2 and not count["vblendvps"], count
"""


@pytest.mark.skipif(not X86, reason="instructions of x86")
@pytest.mark.parametrize("name", thinned(FEATURES, ["AVX2"]))
def test_the_instructions_of_an_older_cpu_are_those_that_were_meant(name, tmp_path):
    """This process may not have them: compiled and looked at, not run."""
    said = run_python("-c", COMPILED, name, cache=tmp_path, NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES=FEATURES[name])
    assert not said, said


@pytest.mark.skipif(not X86, reason="instructions of x86")
@pytest.mark.parametrize("case", ["quick 4", *(pytest.param(bits, marks=pytest.mark.exhaustive) for bits in "2348")])
def test_products_on_an_older_cpu_are_exact(case, tmp_path):
    if not binding.get_host_cpu_features().get("avx2"):
        pytest.skip("no AVX2 here")
    script = "tests/support/older_cpu.py"
    said = run_python(
        script, *case.split(), cache=tmp_path, NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES=FEATURES["AVX2"]
    )
    assert not said, said
