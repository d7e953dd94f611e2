"""The assembly that turns codes into floats, carried out on a CPU, instruction by instruction, for those who have no card.

What
    The text that the Triton kernels hand to the card (`qkit_kernels.triton.assembly`) is read line by line, and each line does to
    NumPy's words what its instruction does to registers. Of PTX there is what this text uses, in float16.

Source
    PTX ISA 8.5, chapter 9: `lop3` 9.7.8.5, `prmt` 9.7.9.7, half precision 9.7.4.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

Words = np.ndarray


class Instruction(NamedTuple):
    """One, carried out."""

    text: str
    into: str  # the register that it writes
    value: Words  # uint32, what is in there now


def lop3(a: Words, b: Words, c: Words, table: int) -> Words:
    """Any function of three bits, on each of 32: bit 4 a + 2 b + c of `table` is its value."""
    out = np.zeros_like(a | b | c)
    for row in range(8):
        if table >> row & 1:
            parts = [word if row >> place & 1 else ~word for word, place in ((a, 2), (b, 1), (c, 0))]
            out |= parts[0] & parts[1] & parts[2]
    return out


def prmt(a: Words, b: Words, select: Words) -> Words:
    """Four bytes picked from the eight of b and a (b's are 4 .. 7), each by the lowest three of four bits of `select`."""
    a, b, select = np.broadcast_arrays(a, b, select)
    octets = np.stack([a >> 8 * i & 255 for i in range(4)] + [b >> 8 * i & 255 for i in range(4)])
    out = np.zeros_like(a)
    for i in range(4):
        place = (select >> np.uint32(4 * i) & 7).astype(np.int64)
        out |= np.take_along_axis(octets, place[None], 0)[0] << np.uint32(8 * i)
    return out


def halves(word: Words) -> tuple[Words, Words]:
    """The two float16 numbers of each word, lower half first."""
    low, high = (word & 0xFFFF).astype(np.uint16), (word >> np.uint32(16)).astype(np.uint16)
    return low.view(np.float16), high.view(np.float16)


def _joined(low: Words, high: Words) -> Words:
    below, above = (half.astype(np.float16).view(np.uint16).astype(np.uint32) for half in (low, high))
    return below | above << np.uint32(16)


def _floats(*words: Words) -> list[tuple[Words, ...]]:
    """For the lower and the upper halves: the operands as float64, which holds a product and a sum of two float16 exactly."""
    return list(zip(*([half.astype(np.float64) for half in halves(word)] for word in words), strict=True))


def _instruction(name: str, operands: Sequence[Words]) -> Words:
    if name == "lop3.b32":
        a, b, c, table = operands
        return lop3(a, b, c, int(table))
    if name == "prmt.b32":
        return prmt(*operands)
    if name == "mov.b32":
        return operands[0].copy()
    if name in ("shr.u32", "shl.b32", "and.b32"):
        a, b = operands
        return {"shr.u32": a >> b, "shl.b32": a << b, "and.b32": a & b}[name]
    if name in ("add.f16x2", "mul.f16x2", "fma.rn.f16x2"):
        kind = name.partition(".")[0]
        results = [v[0] + v[1] if kind == "add" else v[0] * v[1] + sum(v[2:]) for v in _floats(*operands)]
        return _joined(*results)
    raise ValueError(f"the instruction {name!r} is none of those that float16 kernels use; take a text of kind 'f16'")


def execute(text: str, operands: Mapping[int, Words | int]) -> tuple[list[Words], list[Instruction]]:
    """Carry out a text of `qkit_kernels.triton.assembly`, on whole arrays at once.

    Args:
        text: for float16.
        operands: uint32 by number, as its docstring names them: {8: words, 11: zero points and scales}.

    Returns:
        (its outputs $0, $1, ..., float16, and each instruction that wrote a register, in order).

    Raises:
        ValueError: an instruction that is not known here, or an operand that was not given.
    """
    registers: dict[str, Words] = {f"${n}": np.asarray(word, np.uint32) for n, word in operands.items()}
    outputs: dict[int, Words] = {}
    steps = []

    def value(word: str) -> Words:
        if re.fullmatch(r"0x[0-9a-f]+|\d+", word):
            return np.asarray(int(word, 0), np.uint32)
        if word not in registers:
            raise ValueError(f"{word} is read before it is written; give operand {word} of the text")
        return registers[word]

    for line in re.findall(r"[a-z][\w.]+ [^;]+;", text):
        name, _, rest = line.rstrip(";").partition(" ")
        if name.startswith("reg"):
            continue
        if pair := re.match(r"\{\$(\d+), \$(\d+)\}, (\w+)", rest):
            low, high = halves(value(pair[3]))
            outputs |= {int(pair[1]): low, int(pair[2]): high}
            continue
        into, *sources = re.split(r",\s*", rest.strip())
        registers[into] = _instruction(name, [value(source) for source in sources])
        steps.append(Instruction(line, into, registers[into]))
    return [outputs[n] for n in sorted(outputs)], steps


def on_the_way(steps: Sequence[Instruction], register: str, word: int) -> list[tuple[str, int, str]]:
    """What becomes of a word in one register: (instruction, the register's word, what it says as two numbers).

    Begins with the word. A shift into `t` that the register is then made of belongs to it, and says nothing yet.
    """
    rows = [("the word", word, f"0x{word:08x}")]
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        value = int(np.ravel(step.value)[0])
        low, high = (float(half[0]) for half in halves(np.array([value], np.uint32)))
        if step.into == register:
            rows.append((step.text.rstrip(";"), value, f"{high:g} and {low:g}"))
        elif step.into == "t" and following is not None and following.into == register:
            rows.append((step.text.rstrip(";"), value, f"0x{value:08x}"))
    return rows
