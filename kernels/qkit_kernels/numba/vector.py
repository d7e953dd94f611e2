"""Sixteen numbers at a time: the vector instructions that the kernels are written in, for @njit functions.

Numba turns loops into vector code by itself, but not always into the code one wants: it never finds the instruction that
multiplies 64 bytes at once. So these are Numba types, `F32` (16 float32), `I32` (16 int32, also seen as 64 bytes) and `F64`
(8 float64), and the few operations that the kernels need. Most become one instruction where the CPU has it:

    AVX-512              what stands in an inner loop is one or two instructions on a 512-bit register
    other (AVX2, Arm)    the same operations in LLVM's portable vectors, which it cuts into what the CPU has; by name only
                         what it does not find (products of bytes, look-ups), on parts of a vector

What the CPU has, `processor.has` says; Arm's own instructions are in `arm`.
"""

import operator
from functools import partial

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from qkit_kernels.numba import arm
from qkit_kernels.numba.processor import has

LANES = 16
BYTES = CODES_AT_ONCE = 64  # of one vector; that are unpacked together
_I8, _I16, _I32, _F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()
_V16I32, _V16F32, _V64I8 = ir.VectorType(_I32, 16), ir.VectorType(_F32, 16), ir.VectorType(_I8, 64)
_V8F64 = ir.VectorType(ir.DoubleType(), 8)
_ZERO = ir.Constant(ir.IntType(types.intp.bitwidth), 0)


# ---- types


class Vector(types.Type):
    """Numbers that fill one vector of 64 bytes."""


F32 = Vector("F32")
I32 = Vector("I32")
F64 = Vector("F64")  # eight float64


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, {F32: _V16F32, I32: _V16I32, F64: _V8F64}[kind])


def Static(number: int) -> tuple[None, ...]:
    """A whole number from 1 on that a kernel knows when it is compiled: a tuple of so many Nones, whose type says it all.

    (A type of its own would read better, and Numba would ask Python about it in every call.)
    """
    return (None,) * number


def known(kind: types.Type, number: float, *given: types.Type):
    """What an intrinsic makes that only names a number, which it knows by the types that it is given."""
    return kind(*given), lambda context, *_: context.get_constant(kind, number)


@intrinsic
def value(_context, static):
    """The number of a `Static`, inside a kernel."""
    return known(types.intp, static.count, static)


# ---- memory: through plain pointers, because Numba counts the references of every array that it hands on


@intrinsic
def pointer(_context, array):
    """Where the numbers of a contiguous array begin; p[i] reads one. The array must outlive its pointers. None stays None."""
    if array is types.none:
        return types.none(array), lambda context, *_: context.get_dummy_value()
    _check_contiguous(array)

    def codegen(context, builder, signature, args):
        return context.make_array(signature.args[0])(context, builder, args[0]).data

    return types.CPointer(array.dtype)(array), codegen


def _check_contiguous(array) -> None:
    """A pointer knows nothing of strides."""
    if array.layout != "C":
        raise TypingError(f"{array} has gaps between its numbers; give the kernel a contiguous array")


@intrinsic
def pointers(_context, arrays):
    """The `pointer` of each array of a tuple."""
    for array in arrays.types:
        _check_contiguous(array)

    def codegen(context, builder, signature, args):
        parts = zip(arrays.types, cgutils.unpack_tuple(builder, args[0]), strict=True)
        data = [context.make_array(kind)(context, builder, part).data for kind, part in parts]
        return context.make_tuple(builder, signature.return_type, data)

    return types.Tuple([types.CPointer(array.dtype) for array in arrays.types])(arrays), codegen


def _room(kind, bits):
    @intrinsic
    def room(_context, count):
        """So many zeros on the stack, from the beginning of a cache line; gone when the function returns."""

        def codegen(context, builder, _signature, args):
            size = builder.mul(args[0], ir.Constant(args[0].type, bits // 8))
            memory = builder.alloca(_I8, size=size)
            memory.align = BYTES
            cgutils.memset(builder, memory, size, 0)
            return builder.bitcast(memory, context.get_value_type(types.CPointer(kind)))

        return types.CPointer(kind)(types.intp), codegen

    return room


room_f32, room_u8, room_i8 = _room(types.float32, 32), _room(types.uint8, 8), _room(types.int8, 8)


def _cast(kind):
    @intrinsic
    def cast(_context, p):
        """The same memory, seen as other numbers."""

        def codegen(context, builder, _signature, args):
            return builder.bitcast(args[0], context.get_value_type(types.CPointer(kind)))

        return types.CPointer(kind)(p), codegen

    return cast


as_i32, as_i64 = _cast(types.int32), _cast(types.int64)


def _address(kind):
    @intrinsic
    def at(_context, address):
        """The pointer to what lies at an address, a whole number: as Python code hands memory to a kernel at the least price."""

        def codegen(context, builder, _signature, args):
            return builder.inttoptr(args[0], context.get_value_type(types.CPointer(kind)))

        return types.CPointer(kind)(types.intp), codegen

    return at


f32_at, f16_at, bf16_at = _address(types.float32), _address(types.uint16), _address(types.int16)  # see `as_float`


@intrinsic
def offset(_context, p, i):
    """The pointer to p[i]."""
    return p(p, types.intp), lambda _context, builder, _signature, args: builder.gep(*args[:1], [args[1]])


def _load(builder, start, index, vector):
    address = builder.bitcast(builder.gep(start, [index]), vector.as_pointer())
    loaded = builder.load(address)
    loaded.align = 1
    return loaded


@intrinsic
def load_f32(_context, p, i):
    """Sixteen float32 from p[i] on."""
    return F32(p, types.intp), lambda _context, builder, _signature, args: _load(builder, *args[:2], _V16F32)


@intrinsic
def load_i32(_context, p, i):
    """64 bytes from p[i] on, whatever p points to."""
    return I32(p, types.intp), lambda _context, builder, _signature, args: _load(builder, *args[:2], _V16I32)


@intrinsic
def load_f64(_context, p, i):
    """Eight float64 from p[i] on."""
    return F64(p, types.intp), lambda _context, builder, _signature, args: _load(builder, *args[:2], _V8F64)


@intrinsic
def prefetch(_context, p, i):
    """Ask for the 64 bytes around p[i], to have them in the nearest cache later; any address will do, read is nothing."""

    def codegen(context, builder, _signature, args):
        place = builder.bitcast(builder.gep(*args[:1], [args[1]]), _I8.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [_I8.as_pointer(), _I32, _I32, _I32])
        fn = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(fn, [place, *(ir.Constant(_I32, number) for number in (0, 3, 1))])  # to read, near, data
        return context.get_dummy_value()

    return types.void(p, types.intp), codegen


@intrinsic
def ask(_context, p, i):
    """`prefetch` in a loop over codes that are multiplied as bytes.

    Not on AMD's Zen 4, where with AVX-512 it only takes the place of what the processor asks for by itself: a few instructions a
    line, so that it sees far ahead. Zen 5, which has AVX-VNNI too, gains by it.
    """
    if has("clzero", "avx512f") and not has("avxvnni"):  # the first is AMD's alone
        return types.void(p, types.intp), lambda context, *_: context.get_dummy_value()
    return prefetch._defn(_context, p, i)


def _storer(kind, vector):
    @intrinsic
    def store(_context, p, i, v):
        """Sixteen numbers to p[i] and after it."""

        def codegen(_context, builder, _signature, args):
            start, index, v = args
            builder.store(v, builder.bitcast(builder.gep(start, [index]), vector.as_pointer())).align = 1
            return _context.get_dummy_value()

        return types.void(p, types.intp, kind), codegen

    return store


store_f32, store_i32, store_f64 = _storer(F32, _V16F32), _storer(I32, _V16I32), _storer(F64, _V8F64)


@intrinsic
def zeros_f32(_context):
    """Sixteen 0.0."""
    return F32(), lambda *_: ir.Constant(_V16F32, [0.0] * LANES)


@intrinsic
def zeros_i32(_context):
    """Sixteen 0."""
    return I32(), lambda *_: ir.Constant(_V16I32, [0] * LANES)


def _splat(builder, number, vector):
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), number, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(_I32, vector.count), [0] * vector.count))


@intrinsic
def splat(_context, number):
    """A float32 sixteen times."""
    return F32(types.float32), lambda _context, builder, _signature, args: _splat(builder, args[0], _V16F32)


# ---- arithmetic


def _binary(symbol, kinds, build):
    @infer_global(symbol)
    class _Typing(ConcreteTemplate):
        cases = (signature(*kinds),)

    lower_builtin(symbol, *kinds[1:])(lambda _context, builder, _signature, args: build(builder, *args))


def _with_number(operation):
    return lambda b, v, n: getattr(b, operation)(v, _splat(b, b.trunc(n, _I32), _V16I32))


_binary(operator.add, (F32, F32, F32), lambda b, x, y: b.fadd(x, y))
_binary(operator.mul, (F32, F32, F32), lambda b, x, y: b.fmul(x, y))
_binary(operator.add, (I32, I32, I32), lambda b, x, y: b.add(x, y))
_binary(operator.rshift, (I32, I32, types.intp), _with_number("lshr"))
_binary(operator.and_, (I32, I32, types.intp), _with_number("and_"))


@intrinsic
def fma(_context, x, y, total):
    """x y + total, rounded once where the CPU can."""
    return F32(F32, F32, F32), lambda _context, builder, _signature, args: _fma(builder, *args)


@intrinsic
def less_product(_context, total, number, v):
    """total - number v in float64, rounded twice: as a loop that fuses nothing."""

    def codegen(_context, builder, _signature, args):
        total, number, v = args
        return builder.fsub(total, builder.fmul(_splat(builder, number, _V8F64), v))

    return F64(F64, types.float64, F64), codegen


@intrinsic
def to_f32(_context, v):
    """int32 to float32."""
    return F32(I32), lambda _context, builder, _signature, args: builder.sitofp(args[0], _V16F32)


def _sum(builder, v, kind):
    """Halves added to halves until one number is left: log2(16) additions."""
    count = LANES
    while count > 1:
        count //= 2
        low, high = (
            builder.shuffle_vector(v, v, ir.Constant(ir.VectorType(_I32, count), list(range(at, at + count))))
            for at in (0, count)
        )
        v = builder.fadd(low, high) if kind is F32 else builder.add(low, high)
    return builder.extract_element(v, ir.Constant(_I32, 0))


@intrinsic
def sum_f32(_context, v):
    """The sum of the sixteen, float32."""
    return types.float32(F32), lambda _context, builder, _signature, args: _sum(builder, args[0], F32)


@intrinsic
def sum_i32(_context, v):
    """The sum of the sixteen, int32 (it wraps around, as int32 does)."""
    return types.int32(I32), lambda _context, builder, _signature, args: _sum(builder, args[0], I32)


def _shuffle(builder, v, places):
    return builder.shuffle_vector(v, v, ir.Constant(ir.VectorType(_I32, len(places)), list(places)))


@intrinsic
def lookup(_context, table, index):
    """table[index mod 16], lane by lane: a table of 16 numbers fits into one register. AVX-512: one instruction."""

    def codegen(_context, builder, _signature, args):
        table, index = args
        if has("avx512f"):
            name, kind = "llvm.x86.avx512.permvar.sf.512", ir.FunctionType(_V16F32, [_V16F32, _V16I32])
            return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [table, index])
        if has("avx2"):
            return _lookup_avx2(builder, table, index)
        if has("neon"):
            quarters = [_shuffle(builder, table, range(first, first + 4)) for first in range(0, LANES, 4)]
            return _by_parts(builder, 4, lambda b, places: arm.floats_of(b, quarters, places), index)
        memory = builder.bitcast(cgutils.alloca_once_value(builder, table), _F32.as_pointer())
        index = builder.and_(index, ir.Constant(_V16I32, [15] * LANES))
        found = ir.Constant(_V16F32, ir.Undefined)
        for lane in range(LANES):
            place = builder.extract_element(index, ir.Constant(_I32, lane))
            entry = builder.gep(memory, [place])
            found = builder.insert_element(found, builder.load(entry), ir.Constant(_I32, lane))
        return found

    return F32(F32, I32), codegen


@intrinsic
def lookup_low(_context, table, index):
    """table[index], lane by lane, index 0 .. 7: where this is no faster, it is `lookup`."""
    if not _permutes_eight():
        return lookup._defn(_context, table, index)

    def codegen(_context, builder, _signature, args):
        lower = _shuffle(builder, args[0], range(8))
        return _by_parts(builder, 2, lambda b, places: _x86(b, "avx2.permps", lower.type, lower, places), args[1])

    return F32(F32, I32), codegen


def _permutes_eight() -> bool:
    """Whether eight floats are looked up at a time."""
    return has("avx2") and not has("avx512f")


def _lookup_avx2(builder, table, index):
    """Eight lanes at a time: look in the lower and in the upper half of the table; bit 3, shifted to where the sign of a float
    stands, chooses.
    """
    lower, upper = _shuffle(builder, table, range(8)), _shuffle(builder, table, range(8, 16))
    halves = []
    for first in (0, 8):
        places = _shuffle(builder, index, range(first, first + 8))
        sign = builder.bitcast(builder.shl(places, ir.Constant(places.type, [28] * 8)), lower.type)
        found = [_x86(builder, "avx2.permps", half.type, half, places) for half in (lower, upper)]
        halves.append(_x86(builder, "avx.blendv.ps.256", lower.type, *found, sign))
    return _joined(builder, halves)


# ---- several vectors: tokens, and a tile of rows and tokens


def tile_rows() -> int:
    """Rows of a tile: as many as leave registers for x and w beside two vectors of sums a row (AVX-512), or one.

    Arm's are 32 of 16 bytes: 24 for the sums, four for x, and four.
    """
    return 12 if has("avx512f") else 6 if has("avx2") or has("neon") else 4


def _each(build):
    """An operation that makes a tuple of vectors, one by one."""

    def codegen(context, builder, signature, args):
        return context.make_tuple(builder, signature.return_type, build(builder, args))

    return codegen


def _zeros(kind, size):
    return types.UniTuple(kind, size), _each(lambda _builder, args: [ir.Constant(args[0].type, None)] * size)


@intrinsic
def zeros_each(_context, kind, count):
    """`count` (a `Static`) vectors of zeros; kind: any `F32` or `I32`, says which."""
    made, codegen = _zeros(kind, count.count)
    return made(kind, count), codegen


@intrinsic
def zeros_tile(_context, kind, count):
    """Zeros for all rows of a tile of `count` (a `Static`) vectors of tokens; kind: any `F32` or `I32`, says which."""
    made, codegen = _zeros(kind, tile_rows() * count.count)
    return made(kind, count), codegen


@intrinsic
def load_each(_context, p, first, count, kind):
    """`count` (a `Static`) vectors that lie together, from p[first] on; kind: any `F32` or `I32`, says which."""
    vector = _V16F32 if kind is F32 else _V16I32
    step = BYTES * 8 // p.dtype.bitwidth

    def build(builder, args):
        p, first = args[:2]
        places = [builder.add(first, ir.Constant(first.type, step * v)) for v in range(count.count)]
        return [_load(builder, p, place, vector) for place in places]

    return types.UniTuple(kind, count.count)(p, types.intp, count, kind), _each(build)


def _pairwise(build):
    """An operation on a vector and two tuples of vectors, one pair of them after the other."""

    def codegen(builder, args):
        one, *packs = args
        pairs = zip(*(cgutils.unpack_tuple(builder, pack) for pack in packs), strict=True)
        return [build(builder, one, *pair) for pair in pairs]

    return _each(codegen)


@intrinsic
def fma_each(_context, w, xs, totals):
    """(w x + total) for each x and total."""
    return totals(F32, xs, totals), _pairwise(_fma)


@intrinsic
def dot4_each(_context, w, xs, totals, bits):
    """dot4(total, w, x) for each x and total, w codes of b bits (a `Static`): fewer than 8 are faster where there is no VNNI."""

    def codegen(context, builder, signature, args):
        each = _pairwise(lambda builder, w, x, total: _dot4(builder, total, w, x, bits.count))
        return each(context, builder, signature, args[:3])

    return totals(I32, xs, totals, bits), codegen


@intrinsic
def dot4_signed_each(_context, codes, xs, totals):
    """dot4(total, codes - 128, x) for each x and total: 64 codes of 8 bits, x is -127 .. 127. AVX2.

    Two products |w| (x with the sign of w) stay within 16 bits.
    """

    def build(builder, args):
        numbers = builder.bitcast(_numbers_and_signs(builder, args[0])[0], _V16I32)
        xs, totals = (cgutils.unpack_tuple(builder, pack) for pack in args[1:])
        return [_by_parts(builder, 2, _dot4_sign, total, numbers, x) for x, total in zip(xs, totals, strict=True)]

    return totals(I32, xs, totals), _each(build)


@intrinsic
def scale_each(_context, scales, sums, totals):
    """(float(sum) scales + total) for each sum and total."""

    def build(builder, scales, number, total):
        return _fma(builder, builder.sitofp(number, _V16F32), scales, total)

    return totals(F32, sums, totals), _pairwise(build)


@intrinsic
def store_sums(_context, p, first, stride, totals):
    """p[first + n stride] = the sum of vector n."""
    kind = totals.dtype

    def codegen(context, builder, _signature, args):
        p, first, stride, totals = args
        vectors = cgutils.unpack_tuple(builder, totals)
        for vector, place in zip(vectors, _rows_of(builder, first, stride, len(vectors)), strict=True):
            builder.store(_sum(builder, vector, kind), builder.gep(p, [place]))
        return context.get_dummy_value()

    return types.void(p, types.intp, types.intp, totals), codegen


def _rows_of(builder, first, stride, count):
    """first + r stride for each row r."""
    for _ in range(count):
        yield first
        first = builder.add(first, stride)


@intrinsic
def add_outer(_context, totals, w, first, stride, xs, bits):
    """totals[r, v] + w_r xs[v], w_r read at w[first + r stride]: a float32, bits is None; or four codes of b bits."""
    if xs.dtype is F32:
        return totals(totals, w, types.intp, types.intp, xs, bits), _outer(xs, _fma)

    def product(builder, spread, x, total):
        return _dot4(builder, total, spread, x, bits.count)

    return totals(totals, w, types.intp, types.intp, xs, bits), _outer(xs, product)


def _outer(xs, product):
    """product(builder, w_r everywhere, xs[v], totals[r, v]) for each r and v."""
    vectors, kind = len(xs), xs.dtype
    number, vector = (_F32, _V16F32) if kind is F32 else (_I32, _V16I32)

    def build(builder, args):
        totals, w, first, stride, xs = args[:5]
        totals, xs = (cgutils.unpack_tuple(builder, pack) for pack in (totals, xs))
        made = []
        for r, place in enumerate(_rows_of(builder, first, stride, len(totals) // vectors)):
            spread = _spread(builder, w, place, number, vector)
            made += [product(builder, spread, x, totals[r * vectors + v]) for v, x in enumerate(xs)]
        return made

    return _each(build)


def _spread(builder, p, place, number, vector):
    """What lies at p[place], everywhere."""
    found = builder.load(builder.bitcast(builder.gep(p, [place]), number.as_pointer()))
    found.align = 4 if number is _F32 else 1
    return _splat(builder, found, vector)


def widens() -> bool:
    """Whether bytes are multiplied by `vpmaddubsw`, into 16 bits: AVX2 without VNNI."""
    return has("avx2") and not has("avxvnni") and not has("avx512vnni")


def pairs_together(bits: int) -> int:
    """How many results of `vpmaddubsw` are added in 16 bits before `widen_each`: at most 8; 0 where not even one would fit.

    A result is two products of a code of b bits, 0 .. 2^b - 1, and a byte, -128 .. 127. If n (2^b - 1) <= 128, the sum of n
    results lies between -2 n (2^b - 1) 128 >= -2^15 and 2 n (2^b - 1) 127 < 2^15: eight of 4 bits (and bytes -127 .. 127 make
    no more than 30,480), four of 5, two of 6, one of 7. Of 2 and 3 bits there could be 42 and 18; after eight, little is left
    to save.
    """
    return min(8, 128 // (2**bits - 1))


@intrinsic
def add_outer_pairs(_context, pairs, w, first, stride, xs):
    """`add_outer` of four codes into sums of 16 bits, two in a lane of int32: `pairs_together` times. AVX2."""
    return pairs(pairs, w, types.intp, types.intp, xs), _outer(xs, _add_pairs)


@intrinsic
def add_outer_signed(_context, totals, w, first, stride, away, xs):
    """`add_outer` of four whole numbers -128 .. 127, magnitudes at w, `signs_of` them `away` behind; x is -127 .. 127. AVX2.

    Two products |w| (x or ~x) stay within 16 bits, and ~x = -x - 1: for each w below 0, |w| is missing from the sum.
    """

    def build(builder, args):
        totals, w, first, stride, away, xs = args
        totals, xs = (cgutils.unpack_tuple(builder, pack) for pack in (totals, xs))
        vectors, made, signs = len(xs), [], builder.gep(w, [away])
        for r, place in enumerate(_rows_of(builder, first, stride, len(totals) // vectors)):
            spread = [_spread(builder, start, place, _I32, _V16I32) for start in (w, signs)]
            made += [_by_parts(builder, 2, _dot4_signed, totals[r * vectors + v], *spread, x) for v, x in enumerate(xs)]
        return made

    return totals(totals, w, types.intp, types.intp, types.intp, xs), _each(build)


@intrinsic
def add_numbers_each(_context, totals, p, first, stride):
    """(totals[r, v] + p[first + r stride]), int32."""
    rows = tile_rows()

    def build(builder, args):
        totals, p, first, stride = args
        totals, made = cgutils.unpack_tuple(builder, totals), []
        vectors = len(totals) // rows
        for r, place in enumerate(_rows_of(builder, first, stride, rows)):
            number = _spread(builder, p, place, _I32, _V16I32)
            made += [builder.add(total, number) for total in totals[r * vectors : (r + 1) * vectors]]
        return made

    return totals(totals, p, types.intp, types.intp), _each(build)


@intrinsic
def widen_each(_context, pairs, totals):
    """(total + the two sums of 16 bits in each lane) for each of pairs and totals. AVX2."""

    def build(builder, args):
        both = zip(*(cgutils.unpack_tuple(builder, pack) for pack in args), strict=True)
        return [_by_parts(builder, 2, _widened, pair, total) for pair, total in both]

    return totals(pairs, totals), _each(build)


def _fma(builder, x, y, total):
    return builder.fadd(builder.fmul(x, y, flags=("contract",)), total, flags=("contract",))


@intrinsic
def add_each(_context, p, first, stride, totals):
    """p[first + r stride + 16 v ..] += totals[r, v]."""
    kind, rows = totals.dtype, tile_rows()

    def codegen(context, builder, _signature, args):
        p, first, stride, totals = args
        _add_each(builder, p, first, stride, cgutils.unpack_tuple(builder, totals), rows, kind is F32)
        return context.get_dummy_value()

    return types.void(p, types.intp, types.intp, totals), codegen


def _add_each(builder, p, first, stride, totals, rows, floats):
    vectors, vector = len(totals) // rows, _V16F32 if floats else _V16I32
    for r, place in enumerate(_rows_of(builder, first, stride, rows)):
        for v in range(vectors):
            at = builder.add(place, ir.Constant(place.type, LANES * v))
            before, total = _load(builder, p, at, vector), totals[r * vectors + v]
            new = builder.fadd(before, total, flags=("contract",)) if floats else builder.add(before, total)
            builder.store(new, builder.bitcast(builder.gep(p, [at]), vector.as_pointer())).align = 4


@intrinsic
def add_scaled_each(_context, p, first, stride, totals, scales, nth, apart):
    """p[first + r stride + 16 v ..] += scales[nth + r apart] float(totals[r, v])."""
    rows = tile_rows()

    def codegen(context, builder, _signature, args):
        p, first, stride, totals, scales, nth, apart = args
        totals = cgutils.unpack_tuple(builder, totals)
        vectors, scaled = len(totals) // rows, []
        for r, place in enumerate(_rows_of(builder, nth, apart, rows)):
            scale = _splat(builder, builder.load(builder.gep(scales, [place])), _V16F32)
            numbers = (builder.sitofp(total, _V16F32) for total in totals[r * vectors : (r + 1) * vectors])
            scaled += [builder.fmul(number, scale, flags=("contract",)) for number in numbers]
        _add_each(builder, p, first, stride, scaled, rows, True)
        return context.get_dummy_value()

    return types.void(p, types.intp, types.intp, totals, scales, types.intp, types.intp), codegen


@intrinsic
def transpose16(_context, p, first, stride, q, to, apart):
    """q[to + j apart + i] = p[first + i stride + j] for 16 i and 16 j, float32.

    Four rounds, in each of which pairs of vectors are dealt into each other as cards are. AVX2 has too few registers for that.
    """

    def codegen(context, builder, _signature, args):
        p, first, stride, q, to, apart = args
        if has("avx2") and not has("avx512f"):
            _transpose_avx2(builder, *args)
            return context.get_dummy_value()
        rows = [_load(builder, p, place, _V16F32) for place in _rows_of(builder, first, stride, LANES)]
        dealt = [number for lane in range(LANES) for number in (lane, LANES + lane)]
        low, high = (ir.Constant(ir.VectorType(_I32, LANES), part) for part in (dealt[:LANES], dealt[LANES:]))
        half = LANES // 2
        for _ in range(4):  # row i and row i + 8: after log2(16) rounds, number j of row i is number i of row j
            rows = [builder.shuffle_vector(rows[i], rows[i + half], part) for i in range(half) for part in (low, high)]
        for row, place in zip(rows, _rows_of(builder, to, apart, LANES), strict=True):
            builder.store(row, builder.bitcast(builder.gep(q, [place]), _V16F32.as_pointer())).align = 4
        return context.get_dummy_value()

    return types.void(p, types.intp, types.intp, q, types.intp, types.intp), codegen


def _transpose_avx2(builder, p, first, stride, q, to, apart):
    """Eight by eight. A register gets four numbers of row i and behind them four of row i + 4, so that 128 bits by 128 bits,
    which is how AVX2 deals, four by four change places: in two rounds, of single numbers and of pairs.
    """
    eight, four = ir.VectorType(_F32, 8), ir.VectorType(_I32, 4)
    sources, targets = (list(_rows_of(builder, *rows, LANES)) for rows in ((first, stride), (to, apart)))

    def part(row, column):
        return _load(builder, p, builder.add(sources[row], ir.Constant(first.type, column)), four)

    for i in (0, 8):
        for j in range(0, LANES, 4):
            rows = [_joined(builder, [part(i + row + half, j) for half in (0, 4)]) for row in range(4)]
            pairs = [_dealt(builder, *rows[at : at + 2], ir.IntType(64)) for at in (0, 2)]
            fours = [v for two in zip(*pairs, strict=True) for v in _dealt(builder, *two, ir.IntType(128))]
            for row, v in enumerate(fours):
                place = builder.gep(q, [builder.add(targets[j + row], ir.Constant(to.type, i))])
                builder.store(builder.bitcast(v, eight), builder.bitcast(place, eight.as_pointer())).align = 4


# ---- 64 bytes at a time


@intrinsic
def dot4(_context, total, a, b):
    """total[i] + sum_{j < 4} a[4i + j] b[4i + j]: a 64 unsigned, b 64 signed bytes, total 16 int32. Exact.

    This is `vpdpbusd` (AVX512-VNNI): 64 multiplications and additions in one instruction.
    """

    def codegen(_context, builder, _signature, args):
        return _dot4(builder, *args, 8)

    return I32(I32, I32, I32), codegen


def _dot4(builder, total, a, b, bits):
    if has("avx512vnni"):
        return _x86(builder, "avx512.vpdpbusd.512", _V16I32, total, a, b)
    if has("avxvnni") or has("avx2"):
        return _by_parts(builder, 2, partial(_dot4_vnni if has("avxvnni") else _dot4_avx2, bits=bits), total, a, b)
    if has("neon"):
        return _by_parts(builder, 4, partial(arm.dot4, bits=bits), total, a, b)
    # Byte j of all lanes at once, widened in its lane by shifts; products of 16-bit numbers, so that pmaddwd will do.
    for j in range(4):
        left, down = (ir.Constant(_V16I32, [count] * 16) for count in (24 - 8 * j, 24))
        x = builder.lshr(builder.shl(a, left), down)
        y = builder.ashr(builder.shl(b, left), down)
        total = builder.add(total, builder.mul(x, y))
    return total


_V8I32, _V16I16, _V32I16 = ir.VectorType(_I32, 8), ir.VectorType(_I16, 16), ir.VectorType(_I16, 32)
_V32I8 = ir.VectorType(_I8, 32)


def _by_parts(builder, count, step, *vectors):
    """What `step` makes of `count`th parts of vectors, for whole ones: of registers of 32 or 16 bytes."""
    size = LANES // count
    return _joined(
        builder,
        [step(builder, *(_shuffle(builder, v, range(at, at + size)) for v in vectors)) for at in range(0, LANES, size)],
    )


def _dot4_vnni(builder, total, a, b, bits):
    """AVX-VNNI has the instruction for 32 bytes only."""
    return _x86(builder, "avx512.vpdpbusd.256", _V8I32, total, a, b)


def _dot4_avx2(builder, total, a, b, bits):
    """AVX2: `vpmaddubsw` adds two products into 16 bits, where they saturate; `vpmaddwd` with ones adds two of those.

    Codes below 128 are safe: 2 * 127 * 128 < 2^15. Those of 8 bits are split into their lower seven and their highest bit, and
    2 * 128 * 127 < 2^15 as well.
    """
    if bits == 8:
        for part in (0x7F, 0x80):
            total = _dot4_avx2(builder, total, builder.and_(a, _every_byte(part)), b, 7)
        return total
    return _widened(builder, _pairs(builder, a, b), total)


def _pairs(builder, a, b):
    """16 sums of two products, in 16 bits."""
    found = _x86(builder, "avx2.pmadd.ub.sw", _V16I16, builder.bitcast(a, _V32I8), builder.bitcast(b, _V32I8))
    return builder.bitcast(found, _V8I32)


def _dot4_sign(builder, total, numbers, x):
    """See `dot4_signed_each`."""
    numbers, x = (builder.bitcast(v, _V32I8) for v in (numbers, x))
    signs = builder.ashr(numbers, ir.Constant(_V32I8, [7] * 32))
    sizes = builder.sub(builder.xor(numbers, signs), signs)
    return _widened(builder, _pairs(builder, sizes, _x86(builder, "avx2.psign.b", _V32I8, x, numbers)), total)


def _dot4_signed(builder, total, sizes, signs, b):
    """See `add_outer_signed`."""
    return _widened(builder, _pairs(builder, sizes, builder.xor(b, signs)), total)


def _add_pairs(builder, a, b, totals):
    """totals + `_pairs`, for 64 bytes."""
    pairs = _by_parts(builder, 2, _pairs, a, b)
    return builder.bitcast(builder.add(*(builder.bitcast(v, _V32I16) for v in (totals, pairs))), _V16I32)


def _widened(builder, pairs, total):
    """total + both sums of 16 bits of each lane."""
    ones = ir.Constant(_V16I16, [1] * 16)
    return builder.add(total, _x86(builder, "avx2.pmadd.wd", _V8I32, builder.bitcast(pairs, _V16I16), ones))


def _every_byte(number: int):
    return ir.Constant(_V8I32, [number * 0x01010101] * 8)


def _x86(builder, name, kind, *args):
    """Call an instruction by LLVM's name for it."""
    of = ir.FunctionType(kind, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, of, f"llvm.x86.{name}"), args)


@intrinsic
def load_bytes(_context, p, i, bits):
    """64 codes of b bits from the 8 b bytes at p[i], one to a byte, in their order: bits is a `Static`, 2 .. 8.

    8 codes are b bytes. A byte shuffle brings to each code the two bytes that it may lie in; a shift and a mask do the rest.
    """
    width = bits.count

    def codegen(_context, builder, _signature, args):
        if width < 8 and has("avx2") and not has("avx512f"):
            return (_halves_of_bytes if width == 4 else _cut_avx2)(builder, *args[:2], width)
        packed = _load(builder, *args[:2], ir.VectorType(_I8, 8 * width))
        if width == 8:
            return builder.bitcast(packed, _V16I32)
        cut = _cut_vbmi if has("avx512vbmi") else _cut
        codes = cut(builder, packed, width)
        return builder.bitcast(builder.and_(codes, ir.Constant(_V64I8, [2**width - 1] * 64)), _V16I32)

    return I32(p, types.intp, bits), codegen


def _halves_of_bytes(builder, p, i, _width):
    """AVX2, 4 bits: the lower and the upper halves of 32 bytes, dealt into each other.

    That happens in each 128 bits, so the second and the third quarter of the bytes change places first.
    """
    quarters = _load(builder, p, i, ir.VectorType(ir.IntType(64), 4))
    octets = builder.bitcast(_shuffle(builder, quarters, (0, 2, 1, 3)), _V32I8)
    words = builder.lshr(builder.bitcast(octets, _V16I16), ir.Constant(_V16I16, [4] * 16))
    low, high = (builder.and_(v, ir.Constant(_V32I8, [15] * 32)) for v in (octets, builder.bitcast(words, _V32I8)))
    return builder.bitcast(_joined(builder, _dealt(builder, low, high, _I16)), _V16I32)


def _cut_avx2(builder, p, i, width):
    """AVX2: shifts of 16-bit numbers, each by its own distance, are products with powers of two, if none is by 0.

    So the first of two neighbours is brought down from the two bytes that end with its last, into the lower byte of 16 bits,
    and the second up from the two that begin with its first, into the upper one. Sixteen codes are 2 b bytes; 16 are read
    from where they begin, or from farther back where they would reach behind the block.
    """
    joined = []
    for half in (0, 32):
        starts = [min(width * first // 8, 8 * width - 16) for first in (half, half + 16)]
        parts = [_load(builder, p, builder.add(i, ir.Constant(i.type, at)), ir.VectorType(_I8, 16)) for at in starts]
        octets, places, distances = _joined(builder, parts), ([], []), ([], [])
        for n in range(32):
            first, lane, odd = width * (half + n), n // 16, n % 2  # the bit that the code begins with
            byte = first // 8 if odd else (first + width - 1) // 8 - 1
            for near in (byte, byte + 1):  # one that is not there holds nothing of the code
                places[odd].append(16 * lane + min(max(near - starts[lane], 0), 15))
            distances[odd].append(8 - (first - 8 * byte) if odd else first - 8 * byte)
        words = [builder.bitcast(_shuffle(builder, octets, near), _V16I16) for near in places]
        down = builder.lshr(words[0], ir.Constant(_V16I16, distances[0]))
        up = builder.shl(words[1], ir.Constant(_V16I16, distances[1]))
        masks = (ir.Constant(_V16I16, [(2**width - 1) << at] * 16) for at in (0, 8))
        pair = (builder.and_(v, mask) for v, mask in zip((down, up), masks, strict=True))
        joined.append(builder.or_(*pair))
    return builder.bitcast(_joined(builder, joined), _V16I32)


def _cut(builder, packed, width):
    """Portable: two bytes to each code, shifted down by where the code begins."""
    v64i16 = ir.VectorType(_I16, 64)
    first = [k * width // 8 for k in range(64)]
    pairs = [byte for at in first for byte in (at, min(at + 1, 8 * width - 1))]
    pairs = builder.bitcast(_shuffle(builder, packed, pairs), v64i16)
    shifted = builder.lshr(pairs, ir.Constant(v64i16, [k * width % 8 for k in range(64)]))
    return builder.trunc(shifted, _V64I8)


def _cut_vbmi(builder, packed, width):
    """AVX512-VBMI: each 64-bit word gets the b bytes of its 8 codes; `vpmultishiftqb` cuts 8 bits from anywhere in it."""
    words = _shuffle(
        builder, packed, [min(word * width + byte, 8 * width - 1) for word in range(8) for byte in range(8)]
    )
    starts = ir.Constant(_V64I8, [code * width for _ in range(8) for code in range(8)])
    name, kind = "llvm.x86.avx512.pmultishift.qb.512", ir.FunctionType(_V64I8, [_V64I8, _V64I8])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [starts, words])


@intrinsic
def magnitudes(_context, codes):
    """|code - 128| of 64 bytes."""

    def codegen(_context, builder, _signature, args):
        numbers, signs = _numbers_and_signs(builder, args[0])
        return builder.bitcast(builder.sub(builder.xor(numbers, signs), signs), _V16I32)

    return I32(I32), codegen


@intrinsic
def signs_of(_context, codes):
    """Of 64 bytes: all bits where code - 128 is below 0, else none."""
    return I32(I32), lambda _context, b, _signature, args: b.bitcast(_numbers_and_signs(b, args[0])[1], _V16I32)


def _numbers_and_signs(builder, codes):
    numbers = builder.xor(builder.bitcast(codes, _V64I8), ir.Constant(_V64I8, [128] * 64))
    return numbers, builder.ashr(numbers, ir.Constant(_V64I8, [7] * 64))


@intrinsic
def widen(_context, codes):
    """64 bytes without a sign as four times sixteen int32, in their order."""

    def build(builder, args):
        octets = builder.bitcast(args[0], _V64I8)
        return [
            builder.zext(_shuffle(builder, octets, range(at, at + LANES)), _V16I32) for at in range(0, BYTES, LANES)
        ]

    return types.UniTuple(I32, 4)(I32), _each(build)


def code_width(bits: int) -> int:
    """Bits from one code of a lane to the next: 2 and 4 as stored, others one to a byte."""
    return bits if bits in (2, 4) else 8


@intrinsic
def load_codes(_context, p, i, bits):
    """A block of b-bit codes at p[i]: as stored where a lane holds whole codes, else one to a byte. bits is a `Static`."""
    if bits.count in (2, 4):
        return I32(p, types.intp, bits), lambda _context, builder, _signature, args: _load(builder, *args[:2], _V16I32)
    return load_bytes._defn(_context, p, i, bits)


@intrinsic
def load_lanes(_context, p, i, bits):
    """A block of 2-, 3- or 4-bit codes at p[i] whose lanes hold whole codes, the first in the lowest bits: bits is a `Static`.

    Sixteen codes of 3 bits are 6 bytes. A byte shuffle brings to each lane the four that its 12 bits begin in, a shift does the
    rest; two bytes behind the block are read.
    """
    width = bits.count

    def codegen(_context, builder, _signature, args):
        if width in (2, 4):
            return _load(builder, *args[:2], _V16I32)
        quarters = []
        for quarter in range(4):
            at = builder.add(args[1], ir.Constant(args[1].type, 2 * width * quarter))
            near = [4 * width * lane // 8 + byte for lane in range(4) for byte in range(4)]
            lanes = _shuffle(builder, _load(builder, args[0], at, ir.VectorType(_I8, 8)), near)
            quarters.append(builder.bitcast(lanes, ir.VectorType(_I32, 4)))
        codes = _joined(builder, quarters)
        return builder.lshr(codes, ir.Constant(_V16I32, [4 * width * lane % 8 for lane in range(LANES)]))

    return I32(p, types.intp, bits), codegen


def _joined(builder, parts):
    """Two or four vectors, one behind the other."""
    if len(parts) > 2:
        parts = [_joined(builder, parts[:2]), _joined(builder, parts[2:])]
    both = list(range(2 * parts[0].type.count))
    return builder.shuffle_vector(*parts, ir.Constant(ir.VectorType(_I32, len(both)), both))


def in_place(bits: int, unit: int) -> list[int]:
    """By how many bits each of the `unit` codes of a lane is too high when all others are masked off, for `dots_in_place`.

    The highest code of a full lane would be a negative number: it is shifted down instead.
    """
    return [0 if bits * (j + 1) == 32 else bits * j for j in range(unit)]


@intrinsic
def dots_in_place(_context, codes, x, first, together, bits):
    """(sum_j code_j x_j + x_unit), lane by lane for each token: x_j are the sixteen at x[first + 16 (j n + token)].

    A code is not brought down: the others are masked off, and what it then counts too much, a power of two, has been taken off
    x (`in_place`). So a code takes three instructions: a mask, the conversion, a multiply-add. together, bits: `Static`s.
    """
    n, width, unit = together.count, bits.count, 4 if bits.count == 3 else 32 // bits.count

    def build(builder, args):
        codes, x, first = args[:3]
        totals = [ir.Constant(_V16F32, [0.0] * LANES)] * n
        places = [builder.add(first, ir.Constant(first.type, LANES * i)) for i in range((unit + 1) * n)]
        for j, high in enumerate(in_place(width, unit)):
            mask = ir.Constant(_V16I32, [(2**width - 1) << high] * LANES)
            down = ir.Constant(_V16I32, [width * j - high] * LANES)
            numbers = builder.and_(codes, mask) if high or not j else builder.lshr(codes, down)
            numbers = builder.sitofp(numbers, _V16F32)
            xs = [_load(builder, x, place, _V16F32) for place in places[j * n : (j + 1) * n]]
            totals = [_fma(builder, numbers, one, total) for one, total in zip(xs, totals, strict=True)]
        last = [_load(builder, x, place, _V16F32) for place in places[unit * n :]]
        return [builder.fadd(total, one) for total, one in zip(totals, last, strict=True)]

    return types.UniTuple(F32, n)(codes, x, types.intp, together, bits), _each(build)


def looks_bytes_up() -> bool:
    """Whether the numbers of a codebook are found byte by byte, `dots_by_bytes`."""
    return (has("avx2") and not has("avx512f")) or has("neon")


@intrinsic
def dots_by_bytes(_context, codes, table, x, first, together):
    """sum_j table[code_j] x_j, lane by lane for each token, of 4-bit codes: x_j are the sixteen at x[first + 16 (j n + token)].

    AVX2 looks nothing up in 16 floats, and Arm 4 at a time. But `vpshufb` looks 32 codes up in 16 bytes, and `tbl` 16: four of
    them find the four bytes of as many floats, and eight `vpunpck` (`zip`) put those together. The codes' bytes are turned
    first, 4 by 4 in each 128 bits, so that the floats of one register are one code each of the lanes, as everywhere. together:
    a `Static`.
    """
    n, unit, size = together.count, 8, 16 if has("neon") else 32  # of a register, in bytes
    lanes = size // 4
    turned = [16 * part + 4 * lane + byte for part in range(size // 16) for byte in range(4) for lane in range(4)]
    octet, word, number = (ir.VectorType(kind, size // width) for kind, width in ((_I8, 1), (_I16, 2), (_F32, 4)))

    def build(builder, args):
        codes, table, x, first, _ = args
        table, mask = builder.bitcast(table, _V64I8), ir.Constant(octet, [0x0F] * size)
        planes = [_shuffle(builder, table, [4 * (code % 16) + byte for code in range(size)]) for byte in range(4)]
        parts = []
        for lane in range(0, LANES, lanes):
            octets = builder.bitcast(_shuffle(builder, codes, range(lane, lane + lanes)), octet)
            octets = _shuffle(builder, octets, turned)
            words = builder.lshr(builder.bitcast(octets, word), ir.Constant(word, [4] * (size // 2)))
            nibbles = (builder.and_(v, mask) for v in (octets, builder.bitcast(words, octet)))
            low, high = (_floats_of(builder, planes, part) for part in nibbles)
            totals = [ir.Constant(number, [0.0] * lanes)] * n
            for j in range(unit):
                found = (low, high)[j % 2][j // 2]
                for t in range(n):
                    place = builder.add(first, ir.Constant(first.type, LANES * (j * n + t) + lane))
                    totals[t] = _fma(builder, found, _load(builder, x, place, number), totals[t])
            parts.append(totals)
        return [_joined(builder, of_token) for of_token in zip(*parts, strict=True)]

    return types.UniTuple(F32, n)(codes, table, x, types.intp, together), _each(build)


def _floats_of(builder, planes, codes):
    """As many codes as a register has bytes, as four registers of floats: the bytes of each, found in four planes."""
    first, second, third, fourth = (_looked_up(builder, plane, codes) for plane in planes)
    lower, upper = _dealt(builder, first, second, _I16), _dealt(builder, third, fourth, _I16)
    return [v for pair in zip(lower, upper, strict=True) for v in _dealt(builder, *pair, _F32)]


def _looked_up(builder, plane, codes):
    """The byte of each code, from the 16 of a plane."""
    return arm.bytes_of(builder, plane, codes) if has("neon") else _x86(builder, "avx2.pshuf.b", _V32I8, plane, codes)


def _dealt(builder, a, b, kind):
    """a and b dealt into each other as cards are, in each 128 bits the lower halves and then the upper ones: `vpunpck`, `zip`.

    The cards of twice the width are seen as `kind`.
    """
    count, width = a.type.count, a.type.element.width
    half = 64 // width
    dealt = []
    for at in (0, half):
        places = [
            part + at + i + card for part in range(0, count, 2 * half) for i in range(half) for card in (0, count)
        ]
        cards = builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, count), places))
        dealt.append(builder.bitcast(cards, ir.VectorType(kind, count // 2)))
    return dealt


@intrinsic
def signed(_context, codes, bits):
    """Each code less 2^(b - 1), in b bits: its highest bit turned over."""
    width, step = bits.count, code_width(bits.count)
    pattern = sum(1 << (at + width - 1) for at in range(0, 32, step))

    def codegen(_context, builder, _signature, args):
        return builder.xor(args[0], ir.Constant(_V16I32, [pattern] * LANES))

    return I32(I32, bits), codegen


@intrinsic
def nth_signed(_context, codes, j, bits):
    """Code j of each lane of `signed` codes as int32: shifted to the top, and down again with its sign."""
    width, step = bits.count, code_width(bits.count)

    def codegen(_context, builder, _signature, args):
        codes, j, _ = args
        left = builder.sub(ir.Constant(j.type, 32 - width), builder.mul(j, ir.Constant(j.type, step)))
        up = builder.shl(codes, _splat(builder, builder.trunc(left, _I32), _V16I32))
        return builder.ashr(up, ir.Constant(_V16I32, [32 - width] * LANES))

    return I32(I32, types.intp, bits), codegen


@intrinsic
def nth_bytes(_context, codes, j, bits):
    """64 of the codes of a block, one to a byte: byte i gets code j of byte i. bits is a `Static`: 2, 4, or any with j 0."""
    width = bits.count

    def codegen(_context, builder, _signature, args):
        codes, j, _ = args
        if width not in (2, 4):
            return codes
        shift = builder.mul(builder.trunc(j, _I32), ir.Constant(_I32, width))
        shifted = builder.lshr(codes, _splat(builder, shift, _V16I32))
        mask = builder.bitcast(ir.Constant(_V64I8, [2**width - 1] * 64), _V16I32)
        return builder.and_(shifted, mask)

    return I32(I32, types.intp, bits), codegen


@intrinsic
def table_of(_context, p, bits):
    """The table that codes are looked up in: sixteen float32 at p; where p is None, signed codes of 2 or 4 bits (a `Static`).

    Entry i is then (i mod 2^b) - 2^(b - 1), so that whatever stands above a code in its lane need not be masked off.
    """
    if p is not types.none:
        return F32(p, bits), lambda _context, builder, _signature, args: _load(builder, args[0], _ZERO, _V16F32)
    count = 2**bits.count
    numbers = [float(i % count - count // 2) for i in range(LANES)]
    return F32(p, bits), lambda *_: ir.Constant(_V16F32, numbers)


# ---- single numbers


def _half(builder, bits):
    """float16 to float32; on an x86 without F16C by hand, because LLVM would call a function that is not there."""
    if has("f16c") or has("neon"):
        return builder.fpext(builder.bitcast(bits, ir.HalfType()), _F32)
    wide = builder.zext(bits, _I32)
    magnitude = builder.shl(builder.and_(wide, ir.Constant(_I32, 0x7FFF)), ir.Constant(_I32, 13))
    sign = builder.shl(builder.and_(wide, ir.Constant(_I32, 0x8000)), ir.Constant(_I32, 16))
    scaled = builder.fmul(
        builder.bitcast(magnitude, _F32), ir.Constant(_F32, 2.0**112)
    )  # exponents count from 127, not 15
    endless = builder.or_(magnitude, ir.Constant(_I32, 0x7F800000))  # infinity and NaN
    is_endless = builder.icmp_unsigned(">=", magnitude, ir.Constant(_I32, 0x7C00 << 13))
    chosen = builder.select(is_endless, endless, builder.bitcast(scaled, _I32))
    return builder.bitcast(builder.or_(chosen, sign), _F32)


@intrinsic
def as_float(_context, x):
    """A number of an array as float32: float32, float16 seen as uint16, bfloat16 seen as int16."""

    def codegen(_context, builder, _signature, args):
        if x == types.uint16:
            return _half(builder, args[0])
        if x == types.int16:  # bfloat16 is the upper half of a float32
            return builder.bitcast(builder.shl(builder.zext(args[0], _I32), ir.Constant(_I32, 16)), _F32)
        return args[0]

    return (types.float32(x), codegen) if x in (types.float32, types.uint16, types.int16) else None


@intrinsic
def nth_code(_context, packed, size, i, bits):
    """Code i of one stream of b-bit codes, as float32; bits is a `Static`, size the bytes of the stream."""
    width = bits.count

    def codegen(_context, builder, _signature, args):
        packed, size, i, _ = args
        bit = builder.mul(i, ir.Constant(i.type, width))
        first = builder.lshr(bit, ir.Constant(i.type, 3))
        after, last = builder.add(first, ir.Constant(i.type, 1)), builder.sub(size, ir.Constant(i.type, 1))
        second = builder.select(builder.icmp_signed("<", after, last), after, last)  # nothing is read behind the end
        low, high = (builder.zext(builder.load(builder.gep(packed, [at])), _I32) for at in (first, second))
        pair = builder.or_(low, builder.shl(high, ir.Constant(_I32, 8)))
        down = builder.trunc(builder.and_(bit, ir.Constant(i.type, 7)), _I32)
        return builder.uitofp(builder.and_(builder.lshr(pair, down), ir.Constant(_I32, 2**width - 1)), _F32)

    return types.float32(packed, types.intp, types.intp, bits), codegen
