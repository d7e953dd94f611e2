"""PTX for eight weights at a time: two 16-bit floats to a register, so that one instruction works on two weights.

What
    A word of codes becomes eight 16-bit floats (q - z) s without a table and without a conversion instruction.

How
    A float whose last bit is worth 1 holds a whole number in its low bits: 1024 = 0x6400 in float16, 128 = 0x4300 in
    bfloat16. Put the bits of a code into its mantissa (one `lop3`: and with a mask, or with the constant) and it is 1024 + q.
    Adding -(1024 + z) leaves q - z, exactly; the product with s is rounded, once. Both halves of a register at once.

    bfloat16 has seven bits of mantissa. A code of 8 bits is a difference there: its lowest seven make 128 to 255, and its eighth,
    turned over, is the last bit of the exponent of 128 or 256; what one is more than the other is q - 128.

The text is handed to a kernel as a constant. `words.values` computes the same in Triton's own words, for the interpreter and
for cards that do not speak PTX; a test on a GPU holds the two equal, bit for bit.
"""

from functools import cache

PLANES = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (4, 4)}  # lowest bits first
BIAS = {"f16": 1024, "bf16": 128}  # a float whose last bit is worth 1
_MAGIC = {"f16": 0x64006400, "bf16": 0x43004300}
# bfloat16 has no add and no mul before sm_90: x + y is x 1 + y, and x y is x y + -0
_NEUTRAL = ".reg .b32 one, none; mov.b32 one, 0x3f803f80; mov.b32 none, 0x80008000;"
_SCALED = {"f16": "mul.f16x2 {0}, {0}, ss;", "bf16": "fma.rn.bf16x2 {0}, {0}, ss, none;"}
COPIES = 32  # of each pair of a table's numbers, see `pairs`
PAIRS_BYTES = 256 * 4 * COPIES
DIGITS_BYTES = 3 * 128  # of a block of a token, see `one.split_token`
_MANTISSA = {"f16": 10, "bf16": 7}  # bits
_FIELD = {8: 0x00FF00FF, 4: 0x000F000F, 2: 0x00030003, 1: 0x00010001}
_OUTPUTS = " ".join(f"mov.b32 {{${2 * p}, ${2 * p + 1}}}, v{p};" for p in range(4))


def bias(bits: int, kind: str) -> int:
    """What stands in front of a code: q + bias is what the bits say when they are read as a float."""
    return -128 if (bits, kind) == (8, "bf16") else BIAS[kind]


def _field(word: str, plane: int, pair: int, place: int, into: str, base: str) -> str:
    """into = base | the codes of `pair` in a word of `plane` bits each, moved to bit `place` of their halves."""
    right = plane * pair - place
    move = f"shr.u32 t, {word}, {right};" if right > 0 else f"shl.b32 t, {word}, {-right};"
    source = "t" if right else word
    return f"{move if right else ''} lop3.b32 {into}, {source}, {_FIELD[plane] << place:#x}, {base}, 0xea;"


def _byte(word: str, pair: int, into: str) -> str:
    """into = what the codes of `pair`, of 8 bits, and `bias` are together in bfloat16; `word` is that of its plane."""
    source, move = (word, "") if pair % 2 == 0 else ("t", f"shr.u32 t, {word}, 8;")
    low = f"lop3.b32 {into}, {source}, 0x007f007f, 0x43004300, 0xea;"
    high = f"lop3.b32 h, {source}, 0x00800080, 0x43804380, 0x6a;"  # and, then exclusive or
    return f"{move} {low} {high} fma.rn.bf16x2 {into}, h, minus, {into};"


@cache
def affine(bits: int, kind: str, offset: bool) -> str:
    """Eight floats (q - z) s, or q s + offset.

    Operands: $0 .. $7 the floats, "=h"; $8 $9 $10 a word of each plane; $11 -(bias + z) below and s above; $12 the offset
    below and what rounding it left above.
    """
    add = {"f16": "add.f16x2 {0}, {0}, {1};", "bf16": "fma.rn.bf16x2 {0}, {0}, one, {1};"}[kind]
    scale = _SCALED[kind]
    lines = [
        "{ .reg .b32 t, h, minus, v0, v1, v2, v3, nz, ss, oh, ol; mov.b32 minus, 0xbf80bf80;",
        _NEUTRAL,
        "prmt.b32 nz, $11, $11, 0x1010; prmt.b32 ss, $11, $11, 0x3232;",
    ]
    if offset:
        lines.append("prmt.b32 oh, $12, $12, 0x1010; prmt.b32 ol, $12, $12, 0x3232;")
        scale = f"fma.rn.{kind}x2 {{0}}, {{0}}, ss, oh; " + add.format("{0}", "ol")
    for pair in range(4):
        lines.append(_count(bits, kind, pair, f"v{pair}", 8, 0))
        lines.append(add.format(f"v{pair}", "nz"))
        lines.append(scale.format(f"v{pair}"))
    return "\n".join([*lines, _OUTPUTS, "}"])


def _count(bits: int, kind: str, pair: int, value: str, first: int, place: int) -> str:
    """value = bias + q of the codes of `pair`, which stand at bit `place` of a float whose last bit is worth 2^-place; their
    words are the operands from `first` on. Of 8 bits in bfloat16 `place` is 0.
    """
    if bits == 8 and kind == "bf16":
        return _byte(f"${first + pair // 2}", pair, value)
    magic = _MAGIC[kind] - 0x00010001 * (place << _MANTISSA[kind])
    if bits == 8:
        return _field(f"${first + pair // 2}", 8, pair % 2, place, value, f"{magic:#x}")
    lines = []
    for word, plane in enumerate(PLANES[bits]):
        lines.append(_field(f"${first + word}", plane, pair, place, value, value if word else f"{magic:#x}"))
        place += plane
    return " ".join(lines)


def small_bias(bits: int, kind: str) -> int:
    """What stands in front of a code in `counted`: as little as a float can, since it is taken away again from a sum."""
    return bias(bits, kind) if (bits, kind) == (8, "bf16") else 2**bits


@cache
def counted(bits: int, kind: str) -> str:
    """Eight floats `small_bias` + q, of codes of 2, 3, 4 or 8 bits.

    Operands: $0 .. $3 pairs of them; $4 $5 a word of each plane.
    """
    lines = ["{ .reg .b32 t, h, minus; mov.b32 minus, 0xbf80bf80;"]
    lines += [_count(bits, kind, pair, f"${pair}", 4, max(0, _MANTISSA[kind] - bits)) for pair in range(4)]
    return "\n".join([*lines, "}"])


@cache
def table(kind: str) -> str:
    """Eight floats table[q] s: `prmt` picks four bytes among eight; low and high bytes of the numbers are looked up apart.

    Of 16 numbers the first and the last 8 are looked up both, by three bits of the code, and its fourth bit picks.

    Operands: $0 .. $7 the floats; $8 a word of codes; $9 .. $12 the low bytes of the 16 numbers; $13 .. $16 their high bytes;
    $17 the scale, above.
    """
    lines = [
        "{ .reg .b32 s, m, u, v, lb, hb, v0, v1, v2, v3, ss; prmt.b32 ss, $17, $17, 0x3232;",
        _NEUTRAL,
        "and.b32 s, $8, 0x77777777; shr.u32 m, $8, 1; lop3.b32 m, m, 0x44444444, 0x32103210, 0xea;",
    ]
    for half in range(2):
        if half:
            lines.append("shr.u32 s, s, 16; shr.u32 m, m, 16;")
        for found, first in (("lb", 9), ("hb", 13)):
            lines.append(f"prmt.b32 u, ${first}, ${first + 1}, s; prmt.b32 v, ${first + 2}, ${first + 3}, s;")
            lines.append(f"prmt.b32 {found}, u, v, m;")
        a, b = f"v{2 * half}", f"v{2 * half + 1}"
        lines.append(f"prmt.b32 {a}, lb, hb, 0x5140; prmt.b32 {b}, lb, hb, 0x7362;")
        lines.append(_SCALED[kind].format(a) + _SCALED[kind].format(b))
    return "\n".join([*lines, _OUTPUTS, "}"])


@cache
def pairs(threads: int) -> str:
    """All 256 pairs of a table's numbers into shared memory, COPIES times each, by the first `threads` of a program.

    Pair c, the float of its lower code below, lies at bytes 4 COPIES c and on: each lane has a bank to itself, so that none waits
    for another.

    Operands: $0 where that begins; $1 the pairs, a pointer.
    """
    together = threads * 4 // COPIES  # pairs that all threads write at once, four copies each
    turns = range(256 // together)
    loads = [f"ld.global.nc.b32 v{j}, [p + {4 * together * j}];" for j in turns]
    stores = [f"st.shared.v4.b32 [a + {16 * threads * j}], {{{', '.join([f'v{j}'] * 4)}}};" for j in turns]
    lines = [
        f"{{ .reg .b64 p, o; .reg .b32 i, a, {', '.join(f'v{j}' for j in turns)};",
        f".shared .align 128 .b8 pairs[{PAIRS_BYTES}];",
        f"mov.u32 i, %tid.x; shr.u32 a, i, {(COPIES // 4).bit_length() - 1}; mul.wide.u32 o, a, 4; add.u64 p, $1, o;",
        *loads,
        "mov.u32 $0, pairs; mad.lo.u32 a, i, 16, $0;",
        *stores,
        f"bar.sync 0, {threads}; }}",
    ]
    return "\n".join(lines)


@cache
def summed(warps: int, tokens: int, kind: str) -> str:
    """What all warps of a program have summed, added up by the first in the order of the warps: one barrier, and nobody waits on.

    The others get nothing that means anything.

    Args:
        tokens: beside 16 rows: a lane has half as many sums as there are tokens.
        kind: "f32" or "s32".

    Operands: $0 .. the total; behind them the sums of this warp, as many.
    """
    each, threads = tokens // 2, 32 * warps
    at = [f"{4 * place * threads}" for place in range(0, each, 4)]  # of four sums of all threads, one after the other
    lines = [
        "{ .reg .pred first; .reg .b32 i, a, all; .reg .b32 t<4>;",
        f".shared .align 16 .b8 sums[{4 * each * threads}];",
        "mov.u32 i, %tid.x; mov.u32 all, sums; mad.lo.u32 a, i, 16, all;",
    ]
    for four, place in enumerate(at):
        sums = ", ".join(f"${each + 4 * four + j}" for j in range(4))
        lines.append(f"st.shared.v4.b32 [a + {place}], {{{sums}}};")
    lines.append("bar.sync 0; setp.lt.u32 first, i, 32;")
    for four, place in enumerate(at):
        lines.append(f"@first ld.shared.v4.b32 {{{', '.join(f'${4 * four + j}' for j in range(4))}}}, [a + {place}];")
        for warp in range(1, warps):
            lines.append(f"@first ld.shared.v4.b32 {{t0, t1, t2, t3}}, [a + {place} + {512 * warp}];")
            lines += [f"add.{kind} ${4 * four + j}, ${4 * four + j}, t{j};" for j in range(4)]
    return "\n".join([*lines, "}"])


@cache
def paired(kind: str) -> str:
    """Eight floats table[q] s, two looked up at a time where `pairs` has put them.

    Operands: $0 .. $7 the floats; $8 a word of codes; $9 where this lane's copy of pair 0 lies; $10 the scale, above.
    """
    lines = ["{ .reg .b32 t, v0, v1, v2, v3, ss; prmt.b32 ss, $10, $10, 0x3232;", _NEUTRAL]
    lines += [_look(p, "$8", "$9", f"v{p}") for p in range(4)]
    lines += [_SCALED[kind].format(f"v{p}") for p in range(4)]
    return "\n".join([*lines, _OUTPUTS, "}"])


def looked_up() -> str:
    """Four pairs of a table's numbers, as they lie in `pairs`.

    Operands: $0 .. $3 the pairs; $4 a word of codes; $5 where this lane's copy of pair 0 lies.
    """
    return "\n".join(["{ .reg .b32 t;", *(_look(p, "$4", "$5", f"${p}") for p in range(4)), "}"])


def _look(pair: int, word: str, copy: str, into: str) -> str:
    """into = what a pair of codes of a word stands for."""
    return f"bfe.u32 t, {word}, {8 * pair}, 8; mad.lo.u32 t, t, {4 * COPIES}, {copy}; ld.shared.b32 {into}, [t];"


@cache
def room(nbytes: int) -> str:
    """So many bytes of shared memory, 48 KB at most.

    Operands: $0 where they begin.
    """
    return f"{{ .shared .align 128 .b8 room[{nbytes}]; mov.u32 $0, room; }}"
