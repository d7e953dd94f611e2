"""INT8 products of many tokens by Intel's AMX: registers of 16 rows of 64 bytes, and one instruction for 16 x 16 x 64 products.

    C[r, t] += sum_k A[r, k] B[k, t]        A: 16 rows of 64 codes without a sign; B: 64 codes of 16 tokens; C: int32

What A reads are codes of weights, one to a byte; what B reads is what `streams.quantize_tiles` lays anyway, four features of a
token side by side; and C lies in memory as `qkit_kernels.numba.integer` keeps its sums. Sixteen registers of a tile's width
do not fit beside each other: two A and two B make four C, so that each byte read is multiplied twice.

    panel      32 rows, a stretch of features, [features / 64, 32, 64]        32 KB: first cache
    block      up to 256 tokens, the same stretch                             256 KB: second cache

(Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.) Linux wants to be asked by each process
before its first use.
"""

import ctypes
import platform
import sys
from functools import cache, partial

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from qkit_kernels.numba.grid import load_row
from qkit_kernels.numba.integer import add_outliers, finish, whole_starts
from qkit_kernels.numba.processor import has
from qkit_kernels.numba.threads import fork_join
from qkit_kernels.numba.tiles import TWO, piece, write_out
from qkit_kernels.numba.vector import (
    BYTES,
    CODES_AT_ONCE,
    LANES,
    as_i32,
    load_bytes,
    load_i32,
    offset,
    pointer,
    pointers,
    room_f32,
    room_u8,
    store_i32,
    value,
)
from qkit_kernels.numba.weight_only import copy_tail

HEIGHT, CODES = 32, 1024  # of a panel: rows, and the features of a stretch
TOKENS = 2 * LANES  # of a tile
_SYSCALL, _ASK, _TILE_DATA = (
    158,
    0x1023,
    18,
)  # arch_prctl, ARCH_REQ_XCOMP_PERM: Linux's arch/x86/include/uapi/asm/prctl.h


@cache
def usable() -> bool:
    """Whether this processor has AMX for bytes, Numba compiles for it, and Linux lets this process use it."""
    if not (has("amx-tile", "amx-int8", "avx512f") and sys.platform == "linux" and platform.machine() == "x86_64"):
        return False
    return ctypes.CDLL(None).syscall(_SYSCALL, _ASK, _TILE_DATA) == 0


# ---- registers


def _call(builder, name, *args):
    kind = ir.FunctionType(ir.VoidType(), [arg.type for arg in args])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{name}"), args)


def _number(number, bits=8):
    return ir.Constant(ir.IntType(bits), number)


def _at(name, tile):
    @intrinsic
    def move(_context, p, first, apart):
        """A whole register from or to memory: 16 rows of 64 bytes, the first at p[first], each `apart` bytes behind another."""

        def codegen(context, builder, _signature, args):
            p, first, apart = args
            place = builder.bitcast(builder.gep(p, [first]), _number(0).type.as_pointer())
            _call(builder, name, _number(tile), place, apart)
            return context.get_dummy_value()

        return types.void(p, types.intp, types.intp), codegen

    return move


_load, _store = partial(_at, "tileloadd64"), partial(_at, "tilestored64")
load_c, store_c = tuple(map(_load, range(4))), tuple(map(_store, range(4)))
load_c00, load_c01, load_c10, load_c11 = load_c
store_c00, store_c01, store_c10, store_c11 = store_c
load_a0, load_a1, load_b0, load_b1 = map(_load, range(4, 8))


@intrinsic
def multiply(_context):
    """Each of two A with each of two B, added to four C."""

    def codegen(context, builder, _signature, _args):
        for c, (a, b) in enumerate(((4, 6), (4, 7), (5, 6), (5, 7))):
            _call(builder, "tdpbusd", _number(c), _number(a), _number(b))
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def begin(_context):
    """Tell the processor that all eight registers have 16 rows of 64 bytes: palette 1, widths and heights."""

    def codegen(context, builder, _signature, _args):
        words = [1, *[0] * 15, *[64, 0] * 8, *[0] * 16, *[16] * 8, *[0] * 8]
        shapes = cgutils.alloca_once_value(builder, ir.Constant(ir.ArrayType(ir.IntType(8), BYTES), words))
        _call(builder, "ldtilecfg", builder.bitcast(shapes, _number(0).type.as_pointer()))
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def end(_context):
    """Give the registers back, whose 8 KB would be saved at every change of threads."""

    def codegen(context, builder, _signature, _args):
        _call(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), codegen


# ---- the product


@njit(nogil=True, cache=True)
def gemm_rows(x, x_scales, x_sums, outliers, packed, grid, bits, share, y, first, last):
    """Many tokens, with one scale a row and no zero point.

    Args:
        x: int8 [tiles, features / 64 rounded up times 16, 32, 4], laid by `streams.quantize_tiles`.
        x_scales, x_sums, outliers, packed, grid, bits, share, y, first, last: as for `integer.gemm_rows`.
    """
    (tokens, outputs), width, lanes, (room, height) = y.shape, 4 * x.shape[1], x.shape[2], share
    row_bytes, end_of_all = packed.shape[1], packed.size
    panel, tail = room_u8(HEIGHT * CODES), room_u8(2 * BYTES)
    s, c = room_f32(1), room_f32(1)
    columns, count, floats = pointer(outliers[0]), outliers[0].size, pointer(outliers[1])
    sums, row_scales = room_f32((height + HEIGHT) * room), room_f32(height)
    exact, starts = as_i32(sums), as_i32(room_f32(room))
    wild = room_f32(height * room if count else 0)
    x, x_scales, x_sums, packed, y = pointer(x), pointer(x_scales), pointer(x_sums), pointer(packed), pointer(y)
    grid, sizes = pointers(grid), (grid[0].shape[0], grid[1].size, grid[2].size)
    begin()
    for number in range(first, last):
        token, meeting, band, rows = piece(number, share, tokens, outputs)
        laid = (meeting + lanes - 1) // lanes * lanes
        whole_starts(x_sums, token, laid, 2 ** (value(bits) - 1), starts)
        for i in range(rows):
            load_row(grid, sizes, band + i, 1, 0, 1, bits, np.float32(0), s, c)
            row_scales[i] = s[0]
            for t in range(0, laid, LANES):
                store_i32(exact, i * room + t, load_i32(starts, t))
        for start in range(0, width, CODES):
            stop = min(start + CODES, width)
            for i in range(0, rows, HEIGHT):
                for r in range(min(HEIGHT, rows - i)):
                    at = (band + i + r) * row_bytes
                    unpack(packed, at, at + row_bytes, end_of_all, start, stop, offset(panel, r * BYTES), tail, bits)
                for t in range(0, meeting, lanes):
                    of_x = offset(x, (token + t) * width + start * lanes)
                    add_tile(exact, i * room + t, room, panel, of_x, (stop - start) // BYTES)
        if count:
            codes = (packed, row_bytes, band, columns, count)
            add_outliers(codes, row_scales, rows, floats, token, meeting, lanes, TWO, wild, room)
        finish(sums, exact, True, wild, count, row_scales, x_scales, token, laid, rows, room)
        write_out(sums, room, rows, meeting, y, token * outputs + band, outputs)
    end()


@njit(forceinline=True)
def unpack(packed, at, end_of_row, end_of_all, start, stop, panel, tail, bits):
    """The codes start .. stop - 1 of a row that begins at `at`, one to a byte, 64 of them in every 32nd place of the panel."""
    size = 8 * value(bits)  # bytes of 64 codes
    for k in range(start, stop, CODES_AT_ONCE):
        source, first = packed, at + k // CODES_AT_ONCE * size
        if first + size > end_of_all:
            copy_tail(packed, first, end_of_row - first, tail)
            source, first = tail, 0
        store_i32(panel, (k - start) * HEIGHT, load_bytes(source, first, bits))


@njit(forceinline=True)
def add_tile(exact, at, room, panel, x, steps):
    """exact[at + r room + t] += 64 `steps` products each, for the 32 rows of a panel and 32 tokens."""
    apart, low = 4 * room, at + LANES * room
    load_c00(exact, at, apart)
    load_c01(exact, at + LANES, apart)
    load_c10(exact, low, apart)
    load_c11(exact, low + LANES, apart)
    for step in range(steps):
        codes = step * HEIGHT * BYTES  # 32 tokens are as many bytes as 32 rows
        load_a0(panel, codes, BYTES)
        load_a1(panel, codes + LANES * BYTES, BYTES)
        load_b0(x, codes, 2 * BYTES)
        load_b1(x, codes + BYTES, 2 * BYTES)
        multiply()
    store_c00(exact, at, apart)
    store_c01(exact, at + LANES, apart)
    store_c10(exact, low, apart)
    store_c11(exact, low + LANES, apart)


@njit(nogil=True, cache=True)
def gemm(team, threads, chunk, pieces, x, x_scales, x_sums, outliers, packed, grid, bits, share, y):
    """`gemm_rows` by a team of threads."""
    args = (x, x_scales, x_sums, outliers, packed, grid, bits, share, y)
    fork_join(gemm_rows, args, pieces, chunk, threads, team)
