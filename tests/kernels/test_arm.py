"""What is compiled for a 64-bit Arm. No such machine is at hand: LLVM compiles for it here, and the machine code is read.

That it multiplies exactly is shown in an emulator: `make test-arm`.
"""

import pytest

from grids import thinned
from processes import run_python

MULTIPLY = {"cortex-a72": "smull", "cortex-a76": "sdot", "apple-m1": "sdot", "apple-m2": "usdot"}
HEAD = """
import re
import sys

sys.path.insert(0, "tests/support")
import cross
from numba import njit, types
from qkit_kernels.numba import integer, steps, streams, weight_only
from qkit_kernels.numba.tiles import dots
from qkit_kernels.numba.vector import add_each, as_float, dot4_each, dots_by_bytes, dots_in_place, has, load_each, load_f32, \\
    load_i32, load_lanes, lookup, pointer, store_f32, store_i32, zeros_i32

multiplies = sys.argv[1]
assert has("neon") and not has("avx2") and not has("f16c")
assert (has("dotprod"), has("i8mm")) == {"smull": (False, False), "sdot": (True, False), "usdot": (True, True)}[multiplies]

def text(function, *kinds):
    fresh = njit(nogil=True)(function)
    fresh.compile(kinds)
    return fresh.inspect_asm(fresh.signatures[0])

def code(function, *kinds):
    return steps.instructions(text(function, *kinds))

def densest(text, name):
    "The stretch without label or jump in which `name` stands most often; it takes no lane out of a vector, and calls nothing."
    blocks = re.split(r"^\\.?L\\w+:|^\\s+(?:b|b\\.\\w+|cbn?z|tbn?z)\\s.*", text, flags=re.MULTILINE)
    block = max(blocks, key=lambda block: steps.instructions(block)[name])
    assert not re.search(r"\\s[us]?mov\\s+[wx]\\d+, v|\\sbl\\s", block), block
    return steps.instructions(block)

def array(kind, dimensions=1):
    return types.Array(kind, dimensions, "C")

def static(number):
    return types.UniTuple(types.none, number)

u8, i8, i32, f32, u16, intp = types.uint8, types.int8, types.int32, types.float32, types.uint16, types.intp
"""

PARTS = (
    HEAD
    + """
def integers(codes, x, bits, out):
    xs, zeros = load_each(pointer(x), 0, (None,), zeros_i32()), load_each(pointer(out), 0, (None,), zeros_i32())
    store_i32(pointer(out), 0, dot4_each(load_i32(pointer(codes), 0), xs, zeros, bits)[0])

def floats(packed, x, bits, out):
    store_f32(pointer(out), 0, dots_in_place(load_lanes(pointer(packed), 0, bits), pointer(x), 0, (None,), bits)[0])

def codebook(numbers, packed, x, out):
    found = dots_by_bytes(load_i32(pointer(packed), 0), load_f32(pointer(numbers), 0), pointer(x), 0, (None,))
    store_f32(pointer(out), 0, found[0])

def table(numbers, index, out):
    store_f32(pointer(out), 0, lookup(load_f32(pointer(numbers), 0), load_i32(pointer(index), 0)))

def half(x, out):
    out[0] = as_float(x[0])

def tile(codes, x, bits, out):
    add_each(pointer(out), 0, 16, dots(pointer(codes), 128, 0, 128, pointer(x), (None,), bits))

for bits in (4, 8):
    count = code(integers, array(u8), array(i8), static(bits), array(i32))
    products = {name: count[name] for name in ("smull", "smull2", "sdot", "usdot") if count[name]}
    if multiplies == "sdot":
        assert products == {"sdot": {4: 4, 8: 12}[bits]}, count
    else:
        assert products == ({"usdot": 4} if multiplies == "usdot" else {"smull": 4, "smull2": 4}), count
    loop = densest(text(tile, array(u8), array(i8), static(bits), array(i32)), multiplies)
    if multiplies != "smull":  # six rows of four registers; no sum is written to memory in between
        assert loop[multiplies] % 24 == 0 and not loop["str"] and not loop["stp"], loop
for bits, unit in ((2, 16), (3, 4), (4, 8)):  # a mask or a shift, a conversion, a multiply-add: for four codes
    count = code(floats, array(u8), array(f32), static(bits), array(f32))
    assert count["ucvtf"] + count["scvtf"] == 4 * unit, count
    assert count["fmla"] + count["fmul"] == 4 * unit and count["and"] + count["ushr"] <= 4 * unit, count
count = code(codebook, array(f32), array(u8), array(f32), array(f32))  # 16 codes are four `tbl` and eight `zip`; and a turn
assert count["tbl"] <= 8 * 4 + 4 + 4 and count["zip1"] + count["zip2"] == 8 * 8, count
assert count["fmla"] + count["fmul"] == 32, count
assert code(table, array(f32), array(i32), array(f32))["tbl"] == 4
assert code(half, array(u16), array(f32))["fcvt"] == 1
"""
)

KERNELS = (
    HEAD
    + """
grid = types.Tuple([array(u16, 2), array(u8), array(u16, 2)])
few = array(u8, 2), grid
outliers = types.Tuple([array(types.int64), array(f32, 3)])
lanes = array(i32), array(i32, 2)
one, share, rest = static(1), types.UniTuple(intp, 2), (array(f32, 2), intp, intp)

def weight_only_gemv(bits, table):
    return text(weight_only.gemv_rows.py_func, array(f32, 4), array(f32, 3), *few, table, *lanes, static(bits), one, *rest)

def integer_gemv(bits):
    kinds = (array(i8, 4), array(f32), array(f32, 3), outliers, *few, *lanes, static(bits), one, *rest)
    return text(integer.gemv_rows.py_func, *kinds)

def weight_only_gemm(bits):
    return text(weight_only.gemm_rows.py_func, array(f32, 3), *few, types.none, static(bits), one, share, *rest)

def integer_gemm(bits):
    kinds = (array(i8, 4), array(f32), array(f32, 3), outliers, *few, static(bits), one, share, *rest)
    return text(integer.gemm_rows.py_func, *kinds)

loop = densest(integer_gemv(4), "sdot")  # 128 codes
assert loop["sdot"] == 8 and loop["and"] == 8 and loop["ushr"] == 4 and sum(loop.values()) < 40, loop
loop = densest(weight_only_gemv(4, types.none), "fmla")  # the same as floats, and 16 lanes times their scales
assert loop["ucvtf"] == 32 and loop["fmla"] == 36, loop
loop = densest(weight_only_gemm(4), "fmla")  # six rows of four registers
assert loop["fmla"] == 24 and not loop["str"] and not loop["stp"] and sum(loop.values()) < 40, loop
if sys.argv[2:] == ["all"]:
    loop = densest(integer_gemv(8), "sdot")
    assert loop["sdot"] == 12, loop
    loop = densest(integer_gemm(4), "sdot")
    assert loop["sdot"] == 24 and not loop["str"] and not loop["stp"], loop
    loop = densest(weight_only_gemv(8, types.none), "fmla")
    assert loop["scvtf"] == 16 and loop["fmla"] == 20, loop
    loop = densest(weight_only_gemv(4, array(f32)), "tbl")
    assert loop["tbl"] == 36 and loop["zip1"] + loop["zip2"] == 64 and loop["fmla"] == 36, loop
"""
)

WIDE = (
    HEAD
    + """
made = text(streams.quantize.py_func, array(f32, 2), array(u8), f32, intp, array(f32), array(i8, 4), array(f32, 3))
assert re.search(r"\\bz\\d+\\.", made)  # LLVM does use SVE
assert not re.search(r"\\s[su]unpk(lo|hi)\\s", made)
"""
)


@pytest.mark.parametrize("name", thinned(MULTIPLY, ["cortex-a76"]))
def test_the_instructions_for_an_arm_are_those_that_were_meant(name, tmp_path):
    """By the processor's name alone: LLVM does not list what it has to multiply bytes."""
    said = run_python("-c", PARTS, MULTIPLY[name], cache=tmp_path, NUMBA_CPU_NAME=name, NUMBA_CPU_FEATURES="+neon")
    assert not said, said


@pytest.mark.exhaustive
def test_what_a_processor_has_can_also_be_listed(tmp_path):
    said = run_python(
        "-c", PARTS, "usdot", cache=tmp_path, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="+neon,+dotprod,+i8mm"
    )
    assert not said, said


@pytest.mark.parametrize("case", ["some", pytest.param("all", marks=pytest.mark.exhaustive)])
def test_the_inner_loops_of_whole_kernels_are_those_instructions(case, tmp_path):
    said = run_python(
        "-c", KERNELS, "sdot", case, cache=tmp_path, NUMBA_CPU_NAME="cortex-a76", NUMBA_CPU_FEATURES="+neon"
    )
    assert not said, said


def test_sums_of_bytes_are_right_where_sve_is_wider_than_128_bits(tmp_path):
    """LLVM 22 adds bytes up in 64 bits by halves of a register that it takes to have 128: Neoverse V1 has 256."""
    said = run_python("-c", WIDE, "usdot", cache=tmp_path, NUMBA_CPU_NAME="neoverse-v1", NUMBA_CPU_FEATURES="+neon")
    assert not said, said
