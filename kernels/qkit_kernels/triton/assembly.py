"""PTX for eight weights at a time: two 16-bit floats to a register, so that one instruction works on two weights.

What
    A word of codes becomes eight 16-bit floats (q - z) s without a table and without a conversion instruction.

How
    A float whose last bit is worth 1 holds a whole number in its low bits: 1024 = 0x6400 in float16, 128 = 0x4300 in
    bfloat16. Put the bits of a code into its mantissa (one `lop3`: and with a mask, or with the constant) and it is 1024 + q.
    Adding -(1024 + z) leaves q - z, exactly; the product with s is rounded, once. Both halves of a register at once.

    bfloat16 has seven bits of mantissa, and a code of 8 bits is added up from two: 128 + low, and 2048 + 16 high
    (0x4500: its last bit is worth 16).

The text is handed to a kernel as a constant. `words.values` computes the same in Triton's own words, for the interpreter and
for cards that do not speak PTX; a test on a GPU holds the two equal, bit for bit.
"""

from functools import cache

PLANES = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (4, 4)}  # lowest bits first
BIAS = {"f16": 1024, "bf16": 128}  # a float whose last bit is worth 1
_MAGIC = {"f16": 0x64006400, "bf16": 0x43004300}
# bfloat16 has no add and no mul before sm_90: x + y is x 1 + y, and x y is x y + -0
_NEUTRAL = ".reg .b32 one, none; mov.b32 one, 0x3f803f80; mov.b32 none, 0x80008000;"
_FIELD = {4: 0x000F000F, 2: 0x00030003, 1: 0x00010001}
_OUTPUTS = " ".join(f"mov.b32 {{${2 * p}, ${2 * p + 1}}}, v{p};" for p in range(4))


def bias(bits: int, kind: str) -> int:
    """What stands in front of a code: q + bias is what the bits say when they are read as a float."""
    return 0 if (bits, kind) == (8, "bf16") else BIAS[kind]


def _field(word: str, plane: int, pair: int, place: int, into: str, base: str) -> str:
    """into = base | the codes of `pair` in a word of `plane` bits each, moved to bit `place` of their halves."""
    right = plane * pair - place
    move = f"shr.u32 t, {word}, {right};" if right > 0 else f"shl.b32 t, {word}, {-right};"
    source = "t" if right else word
    return f"{move if right else ''} lop3.b32 {into}, {source}, {_FIELD[plane] << place:#x}, {base}, 0xea;"


@cache
def affine(bits: int, kind: str, offset: bool) -> str:
    """Eight floats (q - z) s, or q s + offset.

    Operands: $0 .. $7 the floats, "=h"; $8 $9 $10 a word of each plane; $11 -(bias + z) below and s above; $12 the offset
    below and what rounding it left above.
    """
    add = {"f16": "add.f16x2 {0}, {0}, {1};", "bf16": "fma.rn.bf16x2 {0}, {0}, one, {1};"}[kind]
    scale = {"f16": "mul.f16x2 {0}, {0}, ss;", "bf16": "fma.rn.bf16x2 {0}, {0}, ss, none;"}[kind]
    lines = [
        "{ .reg .b32 t, h, k, v0, v1, v2, v3, nz, ss, oh, ol; mov.b32 k, 0xc508c508;",
        _NEUTRAL,
        "prmt.b32 nz, $11, $11, 0x1010; prmt.b32 ss, $11, $11, 0x3232;",
    ]
    if offset:
        lines.append("prmt.b32 oh, $12, $12, 0x1010; prmt.b32 ol, $12, $12, 0x3232;")
        scale = f"fma.rn.{kind}x2 {{0}}, {{0}}, ss, oh; " + add.format("{0}", "ol")
    for pair in range(4):
        value, place = f"v{pair}", 0
        for word, plane in enumerate(PLANES[bits]):
            if (bits, kind, word) == (8, "bf16", 1):
                lines.append(_field("$9", 4, pair, 0, "h", "0x45004500"))
                lines.append(add.format("h", "k"))  # 2048 + 16 high - 2176 = 16 high - 128
                lines.append(add.format(value, "nz") + add.format(value, "h"))
            else:
                base = value if word else f"{_MAGIC[kind]:#x}"
                lines.append(_field(f"${8 + word}", plane, pair, place, value, base))
            place += plane
        if (bits, kind) != (8, "bf16"):
            lines.append(add.format(value, "nz"))
        lines.append(scale.format(value))
    return "\n".join([*lines, _OUTPUTS, "}"])


@cache
def table(kind: str) -> str:
    """Eight floats table[q] s: `prmt` picks four bytes among eight; low and high bytes of the numbers are looked up apart.

    Of 16 numbers the first and the last 8 are looked up both, by three bits of the code, and its fourth bit picks.

    Operands: $0 .. $7 the floats; $8 a word of codes, those of pairs 0 and 1 in its lower half; $9 .. $12 the low bytes of the 16
    numbers; $13 .. $16 their high bytes; $17 the scale, above.
    """
    mul = {"f16": "mul.f16x2 {0}, {0}, ss;", "bf16": "fma.rn.bf16x2 {0}, {0}, ss, none;"}[kind]
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
        # looked up in the order: pair 0 left, pair 1 left, pair 0 right, pair 1 right
        a, b = f"v{2 * half}", f"v{2 * half + 1}"
        lines.append(f"prmt.b32 {a}, lb, hb, 0x6240; prmt.b32 {b}, lb, hb, 0x7351;")
        lines.append(mul.format(a) + mul.format(b))
    return "\n".join([*lines, _OUTPUTS, "}"])
