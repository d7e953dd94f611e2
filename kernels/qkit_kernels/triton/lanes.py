"""Single threads in Triton: instructions that it has no words for, on tensors that have one element for each thread.

In a kernel whose tensors are all as long as the program has threads, element i is what thread i holds, and nothing ever moves
unless one of these moves it. Shared memory is an address, as in assembly; a warp that has read its number may go its own way,
as long as it meets no barrier there.
"""

import triton
import triton.language as tl

_LOAD4 = tl.constexpr("ld.global.L1::no_allocate.v4.b32 {$0, $1, $2, $3}, [$4];")
_LOAD4_AGAIN = tl.constexpr("ld.global.v4.b32 {$0, $1, $2, $3}, [$4];")
_LOAD2 = tl.constexpr("ld.global.L1::no_allocate.v2.b32 {$0, $1}, [$2];")
_LOAD = tl.constexpr("ld.global.L1::no_allocate.b32 $0, [$1];")
_STORE = tl.constexpr("{ .reg .pred p; setp.ne.u32 p, $3, 0; @p st.global.b16 [$1], $2; mov.u32 $0, 0; }")
_PUT = tl.constexpr("{ .reg .pred p; setp.ne.u32 p, $3, 0; @p st.shared.b32 [$1], $2; mov.u32 $0, 0; }")
_PUT2 = tl.constexpr("{ .reg .pred p; setp.ne.u32 p, $4, 0; @p st.shared.v2.b32 [$1], {$2, $3}; mov.u32 $0, 0; }")
_TAKE4 = tl.constexpr(
    "{ .reg .pred p; setp.ne.u32 p, $5, 0; mov.u32 $0, 0; mov.u32 $1, 0; mov.u32 $2, 0; mov.u32 $3, 0;"
    " @p ld.shared.v4.b32 {$0, $1, $2, $3}, [$4]; }"
)
_TAKE = tl.constexpr("{ .reg .pred p; setp.ne.u32 p, $2, 0; mov.b32 $0, 0; @p ld.shared.b32 $0, [$1]; }")
_WARP = tl.constexpr("{ .reg .b32 w; mov.u32 w, %tid.x; shr.u32 w, w, 5; shfl.sync.idx.b32 $0, w, 0, 31, 0xffffffff; }")
_SWAP = tl.constexpr("shfl.sync.bfly.b32 $0, $1, $2, 31, 0xffffffff;")
_BYTES = tl.constexpr("prmt.b32 $0, $1, $2, $3;")
_PRODUCT = tl.constexpr(
    "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32"
    " {$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
)
_PRODUCT_OF_FLOATS = tl.constexpr(
    "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
    " {$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
)
_PRODUCT_OF_BFLOATS = tl.constexpr(_PRODUCT_OF_FLOATS.value.replace("f16.f16", "bf16.bf16"))


@triton.jit
def warp_number(anything):
    """Which warp of the program this is, a number that each warp has its own of."""
    return tl.inline_asm_elementwise(_WARP, "=r,r", [anything], dtype=tl.int32, is_pure=True, pack=1)


@triton.jit
def shared(TEXT: tl.constexpr, anything):
    """Where the shared memory of `assembly.room` begins."""
    return tl.inline_asm_elementwise(TEXT, "=r,r", [anything], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def load4(address, AFTER: tl.constexpr = False):
    """16 bytes of global memory at an int64 address, four int32. AFTER: not before what stands above, and cached."""
    TEXT: tl.constexpr = _LOAD4_AGAIN if AFTER else _LOAD4
    return tl.inline_asm_elementwise(TEXT, "=r,=r,=r,=r,l", [address], dtype=(tl.int32,) * 4, is_pure=not AFTER, pack=1)


@triton.jit
def load2(address):
    """8 bytes of it, two int32."""
    return tl.inline_asm_elementwise(_LOAD2, "=r,=r,l", [address], dtype=(tl.int32,) * 2, is_pure=True, pack=1)


@triton.jit
def load(address):
    """4 bytes of global memory, int32."""
    return tl.inline_asm_elementwise(_LOAD, "=r,l", [address], dtype=tl.int32, is_pure=True, pack=1)


@triton.jit
def store(pointer, value, live):
    """A 16-bit float to global memory, where it is live (int32)."""
    tl.inline_asm_elementwise(
        _STORE, "=r,l,h,r", [pointer.to(tl.int64), value, live], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def put(address, value, live):
    """A float32 to shared memory, where it is live."""
    tl.inline_asm_elementwise(_PUT, "=r,r,f,r", [address, value, live], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def put2(address, first, second, live):
    """Two int32 or float32 side by side to shared memory, where they are live."""
    KIND: tl.constexpr = "=r,r,r,r,r" if first.dtype == tl.int32 else "=r,r,f,f,r"
    tl.inline_asm_elementwise(_PUT2, KIND, [address, first, second, live], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def take4(address, live):
    """Four int32 of shared memory; 0 where not live."""
    return tl.inline_asm_elementwise(
        _TAKE4, "=r,=r,=r,=r,r,r", [address, live], dtype=(tl.int32,) * 4, is_pure=True, pack=1
    )


@triton.jit
def take(address, live, AFTER: tl.constexpr = False):
    """A float32 of shared memory; 0 where not live. AFTER: not before what stands above it."""
    return tl.inline_asm_elementwise(_TAKE, "=f,r,r", [address, live], dtype=tl.float32, is_pure=not AFTER, pack=1)


@triton.jit
def partner(value, AWAY: tl.constexpr):
    """The float32 of lane l xor AWAY."""
    away = AWAY + 0 * value.to(tl.int32, bitcast=True)
    return tl.inline_asm_elementwise(_SWAP, "=f,f,r", [value, away], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def bytes_of(low, high, WHICH: tl.constexpr):
    """Four bytes of the eight of two int32: 0 to 3 those of `low`, 4 to 7 those of `high`; a digit of WHICH for each."""
    return tl.inline_asm_elementwise(
        _BYTES, "=r,r,r,r", [low, high, WHICH + 0 * low], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def product(a0, a1, a2, a3, b0, b1, sums):
    """sums + a b of a warp, int32 [16, 8]: a uint8 [16, 32], b int8 [32, 8], as `mma.m16n8k32` wants them of lane 4 g + t.

    a0 and a1: bytes k = 4 t .. 4 t + 3 of rows g and g + 8; a2 and a3: those 16 further on; b0 and b1 the same bytes of column
    g. Sums: rows g and g + 8 of columns 2 t and 2 t + 1, row by row.
    """
    return tl.inline_asm_elementwise(
        _PRODUCT, "=r,=r,=r,=r,r,r,r,r,r,r,r,r,r,r", [a0, a1, a2, a3, b0, b1, sums[0], sums[1], sums[2], sums[3]],
        dtype=(tl.int32,) * 4, is_pure=True, pack=1,
    )  # fmt: skip


@triton.jit
def product_of_floats(a0, a1, a2, a3, b0, b1, sums, BF16: tl.constexpr):
    """sums + a b of a warp, float32 [16, 8]: a [16, 16] and b [16, 8] of 16-bit floats, two in an int32, as `mma.m16n8k16` wants.

    a0 and a1: columns 2 t and 2 t + 1 of rows g and g + 8; a2 and a3: those 8 further on; b0 and b1: the same rows of column g.
    Sums as those of `product`.
    """
    TEXT: tl.constexpr = _PRODUCT_OF_BFLOATS if BF16 else _PRODUCT_OF_FLOATS
    return tl.inline_asm_elementwise(
        TEXT, "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f", [a0, a1, a2, a3, b0, b1, sums[0], sums[1], sums[2], sums[3]],
        dtype=(tl.float32,) * 4, is_pure=True, pack=1,
    )  # fmt: skip
