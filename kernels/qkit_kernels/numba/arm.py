"""Instructions of a 64-bit Arm, for what `vector` builds: on one register of 16 bytes, a quarter of a vector.

What a processor need not have is asked for (`processor.has`): `sdot`, which multiplies 16 bytes with signs and adds up four
neighbours, came with Armv8.2 (optional; Apple M1, Cortex-A76, Neoverse N1 have it, Cortex-A72 has not), and `usdot`, whose first
bytes have no sign, with Armv8.6 (Apple M2, Neoverse V1). All sums of products here are exact.

    Arm Architecture Reference Manual for A-profile, DDI 0487, section C7.2: SDOT, USDOT, TBL, SADALP
"""

from llvmlite import ir
from numba.core import cgutils

from qkit_kernels.numba.processor import has

_I8, _I32 = ir.IntType(8), ir.IntType(32)
_V16I8, _V8I16, _V4I32 = ir.VectorType(_I8, 16), ir.VectorType(ir.IntType(16), 8), ir.VectorType(_I32, 4)


def _call(builder, name, kind, *args):
    """Call an instruction by LLVM's name for it."""
    of = ir.FunctionType(kind, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, of, f"llvm.aarch64.neon.{name}"), args)


def dot4(builder, total, a, b, bits):
    """total[i] + sum_{j < 4} a[4i + j] b[4i + j]: a 16 codes of `bits` bits, b 16 bytes with a sign, all seen as 4 int32."""
    a, b = builder.bitcast(a, _V16I8), builder.bitcast(b, _V16I8)
    if has("i8mm"):
        return _call(builder, "usdot.v4i32.v16i8", _V4I32, total, a, b)
    if bits == 8:  # a number with a sign: 128 less, which is given back as twice 64, the most that a byte has
        a = builder.xor(a, _every(_V16I8, 128))
    if not has("dotprod"):
        return _widened(builder, total, a, b, bits)
    total = _call(builder, "sdot.v4i32.v16i8", _V4I32, total, a, b)
    for _ in range(2 if bits == 8 else 0):
        total = _call(builder, "sdot.v4i32.v16i8", _V4I32, total, _every(_V16I8, 64), b)
    return total


def _widened(builder, total, a, b, bits):
    """The same without `sdot`, by products of 16 bits; a has a sign, and with 8 bits it is 128 too small.

    Below 8 bits two products fit into 16 bits, 2 * 127 * 128 < 2^15, and with 8 they do not: 2 * 128 * 128. But 128 (b + b')
    does: -2^15 at the least.
    """
    halves = [
        builder.mul(*(builder.sext(_half(builder, v, first), _V8I16) for v in (a, b))) for first in (0, 8)
    ]  # `smull` and `smull2`
    if bits < 8:
        return builder.add(total, _pairs_added(builder, _call(builder, "addp.v8i16", _V8I16, *halves)))
    total = builder.add(total, _call(builder, "addp.v4i32", _V4I32, *(_pairs_added(builder, v) for v in halves)))
    pairs = builder.shl(_call(builder, "saddlp.v8i16.v16i8", _V8I16, b), _every(_V8I16, 7))
    return builder.add(total, _pairs_added(builder, pairs))


def _half(builder, v, first):
    return builder.shuffle_vector(v, v, ir.Constant(ir.VectorType(_I32, 8), list(range(first, first + 8))))


def _pairs_added(builder, v):
    """Sums of two neighbours of 16 bits, in 32; added to something it is one instruction, `sadalp`."""
    return _call(builder, "saddlp.v4i32.v8i16", _V4I32, v)


def _every(vector, number):
    return ir.Constant(vector, [number] * vector.count)


def bytes_of(builder, plane, places):
    """plane[place] for 16 places 0 .. 15: a table of 16 bytes."""
    return _call(builder, "tbl1.v16i8", _V16I8, plane, places)


def floats_of(builder, table, index):
    """table[index mod 16] for 4 int32: a table of 16 floats is four registers, 64 bytes, and `tbl` looks bytes up in as many."""
    index = builder.and_(index, _every(_V4I32, 15))
    places = builder.add(builder.mul(index, _every(_V4I32, 0x04040404)), _every(_V4I32, 0x03020100))
    quarters = [builder.bitcast(quarter, _V16I8) for quarter in table]
    found = _call(builder, "tbl4.v16i8", _V16I8, *quarters, builder.bitcast(places, _V16I8))
    return builder.bitcast(found, table[0].type)
