"""From the loop that anyone would write to a kernel at the speed of memory: the steps of lesson 08.

One token meets one layer, y = ŵ x, with symmetric 4-bit codes and a scale for each 128 of them. All steps read the same bytes,
those of a `QTensor` as they are stored:

    packed   uint8 [rows, features / 2]       a row's codes 0 .. 15, two to a byte, the first in the low half
    scales   uint16 [rows, features / 128]    float16, seen as whole numbers because Numba has no float16
    y        float32 [rows]                   y_r = sum_g s_rg sum_{k in g} (q_rk - 8) x_k

and fill rows first .. last - 1 of y. What changes from step to step is how many instructions a weight costs, and for that the
order in which x lies: `STEPS` says which order each step takes. (The last step costs one more, and waits less.) The kernels
that `qkit.linear` runs are in `weight_only` and `integer`: `registers` and `integers`, asked for ahead, for all widths, groups,
zero points and tails.

Nothing here is cached on disk: Numba shows the machine code only of what it has just compiled.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numba.core.registry import cpu_target

from qkit_kernels.numba import threads
from qkit_kernels.numba.threads import fork_join
from qkit_kernels.numba.vector import (
    LANES,
    as_float,
    dot4,
    fma,
    load_f32,
    load_i32,
    lookup,
    pointer,
    prefetch,
    splat,
    sum_f32,
    to_f32,
    zeros_f32,
)

TABLE = np.arange(-8, 8).astype(np.float32)


@njit(nogil=True)
def as_written(x, packed, scales, y, first, last):
    """As one would write it down. x: [features]."""
    for row in range(first, last):
        total = 0.0
        for k in range(x.size):
            byte = packed[row, k // 2]
            code = byte & 15 if k % 2 == 0 else byte >> 4
            total += as_float(scales[row, k // 128]) * (code - 8) * x[k]
        y[row] = total


@njit(nogil=True)
def by_bytes(x, packed, scales, y, first, last):
    """Both codes of a byte at once, a scale once a group, floats of 32 bits: no branch is left. x: [features]."""
    for row in range(first, last):
        total = np.float32(0)
        for g in range(scales.shape[1]):
            dot = np.float32(0)
            for i in range(64 * g, 64 * g + 64):
                byte = np.int32(packed[row, i])
                low, high = np.int32(byte & np.int32(15)), np.int32(byte >> np.int32(4))
                dot += np.float32(low - np.int32(8)) * x[2 * i]
                dot += np.float32(high - np.int32(8)) * x[2 * i + 1]
            total += as_float(scales[row, g]) * dot
        y[row] = total


@njit(nogil=True, fastmath={"reassoc", "contract"})
def split(x, packed, scales, y, first, last):
    """The additions may be reordered, and what is read together lies together. x: [2, features / 2], the even, the odd."""
    for row in range(first, last):
        total = np.float32(0)
        for g in range(scales.shape[1]):
            dot = np.float32(0)
            for i in range(64):
                byte = np.int32(packed[row, 64 * g + i])
                low, high = np.int32(byte & np.int32(15)), np.int32(byte >> np.int32(4))
                dot += np.float32(low - np.int32(8)) * x[0, 64 * g + i]
                dot += np.float32(high - np.int32(8)) * x[1, 64 * g + i]
            total += as_float(scales[row, g]) * dot
        y[row] = total


@njit(nogil=True, fastmath={"reassoc", "contract"})
def types_fixed(x, packed, scales, y, first, last):
    """As `split`, but a difference of two int32 is an int64 in Numba, and one of two float32 is not. x: [2, features / 2]."""
    eight = np.float32(8)
    for row in range(first, last):
        total = np.float32(0)
        for g in range(scales.shape[1]):
            dot = np.float32(0)
            for i in range(64):
                byte = np.int32(packed[row, 64 * g + i])
                low, high = np.int32(byte & np.int32(15)), np.int32(byte >> np.int32(4))
                dot += (np.float32(low) - eight) * x[0, 64 * g + i]
                dot += (np.float32(high) - eight) * x[1, 64 * g + i]
            total += as_float(scales[row, g]) * dot
        y[row] = total


@njit(nogil=True)
def registers(x, packed, scales, y, first, last):
    """A register holds a group: lane l has codes 8 l .. 8 l + 7, and a shift by 4 j brings code j of all lanes down.

    Another register is a table of 16 numbers, so that subtracting 8 and making a float of it is one look-up. The lanes are
    scaled, each on its own, and added up once a row. x: [groups, 8, 16].
    """
    groups, x, packed, scales = scales.shape[1], pointer(x), pointer(packed), pointer(scales)
    table = load_f32(pointer(TABLE), 0)
    for row in range(first, last):
        total = zeros_f32()
        for g in range(groups):
            codes = load_i32(packed, 64 * (row * groups + g))
            dot = zeros_f32()
            for j in range(8):
                dot = fma(lookup(table, codes >> 4 * j), load_f32(x, 128 * g + 16 * j), dot)
            total = fma(dot, splat(as_float(scales[row * groups + g])), total)
        y[row] = sum_f32(total)


@njit(nogil=True)
def integers(x, packed, scales, y, first, last):
    """Bytes times bytes, four to a lane. x: (int8 [groups, 2, 64], what the lanes begin with int32 [groups, 16], scale)."""
    groups, codes_x, begin, x_scale = scales.shape[1], pointer(x[0]), pointer(x[1]), x[2]
    packed, scales = pointer(packed), pointer(scales)
    for row in range(first, last):
        total = zeros_f32()
        for g in range(groups):
            codes = load_i32(packed, 64 * (row * groups + g))
            low, high = codes & 0x0F0F0F0F, (codes >> 4) & 0x0F0F0F0F
            dot = dot4(load_i32(begin, 16 * g), low, load_i32(codes_x, 128 * g))
            dot = dot4(dot, high, load_i32(codes_x, 128 * g + 64))
            total = fma(to_f32(dot), splat(as_float(scales[row * groups + g])), total)
        y[row] = x_scale * sum_f32(total)


@njit(nogil=True)
def ahead(x, packed, scales, y, first, last):
    """As `integers`; and the codes that are read 4 KB later are asked for now. x: as there."""
    groups, codes_x, begin, x_scale = scales.shape[1], pointer(x[0]), pointer(x[1]), x[2]
    packed, scales = pointer(packed), pointer(scales)
    for row in range(first, last):
        total = zeros_f32()
        for g in range(groups):
            prefetch(packed, 64 * (row * groups + g) + 4096)
            codes = load_i32(packed, 64 * (row * groups + g))
            low, high = codes & 0x0F0F0F0F, (codes >> 4) & 0x0F0F0F0F
            dot = dot4(load_i32(begin, 16 * g), low, load_i32(codes_x, 128 * g))
            dot = dot4(dot, high, load_i32(codes_x, 128 * g + 64))
            total = fma(to_f32(dot), splat(as_float(scales[row * groups + g])), total)
        y[row] = x_scale * sum_f32(total)


# ---- the order in which x lies


def as_it_is(x: np.ndarray) -> np.ndarray:
    """x float32 [features]."""
    return x


def even_and_odd(x: np.ndarray) -> np.ndarray:
    """[2, features / 2]: what the low halves of the bytes are multiplied with, and the high ones."""
    return np.ascontiguousarray(x.reshape(-1, 2).T)


def by_shift(x: np.ndarray) -> np.ndarray:
    """[groups, 8, 16]: for each shift j what the 16 lanes are multiplied with, x'[g, j, l] = x[g, l, j]."""
    return np.ascontiguousarray(x.reshape(-1, LANES, 8).transpose(0, 2, 1))


def as_bytes(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.float32]:
    """INT8 codes [groups, 2, 64], even and odd; -8 times the sum of each lane's eight, [groups, 16]; the step of x.

    sum (q - 8) x = -8 sum x + sum q x: what comes from the zero point does not depend on the weight, so lanes begin with it.
    """
    scale = np.float32(np.abs(x).max() / 127) or np.float32(1)
    codes = np.rint(x / scale).astype(np.int8)
    begin = -8 * codes.reshape(-1, LANES, 8).sum(-1, dtype=np.int32)
    return np.ascontiguousarray(codes.reshape(-1, 64, 2).transpose(0, 2, 1)), begin, scale


# ---- the steps, one after the other


def _team_of(body):
    @njit(nogil=True)
    def team(address, threads, chunk, rows, x, packed, scales, y):
        fork_join(body, (x, packed, scales, y), rows, chunk, threads, address)

    return team


@dataclass(frozen=True)
class Step:
    """One way to do it.

    Attributes:
        body: the compiled loop, body(x, packed, scales, y, first, last).
        lay: gives x in the order that `body` takes.
        team: `body` by several threads; None: one does it all.
    """

    body: Callable
    lay: Callable[[np.ndarray], Any]
    team: Callable | None = None

    def __call__(self, x: Any, packed: np.ndarray, scales: np.ndarray) -> np.ndarray:
        """y float32 [rows]; x is what `lay` gave."""
        y = np.empty(len(packed), np.float32)
        if self.team is None:
            self.body(x, packed, scales, y, 0, len(y))
        else:
            threads.run(self.team, self.body, (x, packed, scales, y), len(y))
        return y


STEPS = {
    "as written": Step(as_written, as_it_is),
    "by bytes": Step(by_bytes, as_it_is),
    "x split": Step(split, even_and_odd),
    "types fixed": Step(types_fixed, even_and_odd),
    "whole registers": Step(registers, by_shift),
    "two threads": Step(registers, by_shift, _team_of(registers)),
    "INT8 activations": Step(integers, as_bytes, _team_of(integers)),
    "asked for ahead": Step(ahead, as_bytes, _team_of(ahead)),
}


# ---- what the compiler made of it


def result_type(function: Callable, *kinds) -> str:
    """The Numba type of what `function` returns for arguments of the Numba types `kinds`."""
    compiled = njit(function)
    compiled.compile(kinds)
    return str(compiled.nopython_signatures[0].return_type)


def assembly(kernel) -> str:
    """The machine code of an @njit function that was called before, in words; for the types it was compiled for last."""
    options = {name: value for name, value in kernel.targetoptions.items() if name != "nopython"}
    fresh = njit(**options)(kernel.py_func)  # what Numba reads from its cache has no words any more
    fresh.compile(kernel.signatures[-1])
    return fresh.inspect_asm(fresh.signatures[0])


def instructions(text: str) -> Counter[str]:
    """How often each instruction stands in machine code."""
    lines = (re.sub(r"\{\w+\}", " ", line).split("#")[0].split() for line in text.splitlines())
    return Counter(words[0] for words in lines if words and not re.match(r"\.|[.$\w]+:", words[0]))


def is_product(instruction: str) -> bool:
    """Whether an instruction multiplies vectors, by its name on x86 or Arm."""
    one_number = re.search(r"(mul|madd\d*)s[sd]$", instruction)
    product = re.match(r"v?p?(dpbusd|f?n?madd|mul)|[fsu]?mla|[su]?[us]dot|[fsu]mul", instruction)
    return bool(product) and not one_number


def inner_loop(text: str, *wanted: str) -> str:
    """The shortest innermost loop with the first instruction of `wanted` that stands in any; "" if none does.

    A loop is what stands between a label and a jump back to it; innermost if there is no other label between them.
    """
    loops, label, body = [], None, []
    for line in text.splitlines():
        if found := re.match(r"(\.?L\w+):", line):
            label, body = found[1], []
        elif not line.strip().startswith("."):
            body.append(line)
            if label is not None and re.match(rf"\s+[jbct]\S*\s.*{re.escape(label)}\b", line):
                loops.append("\n".join(body))
    for name in wanted:
        holding = [loop for loop in loops if name in instructions(loop)]
        if holding:
            return min(holding, key=len)
    return ""


def processor_without(*parts: str) -> dict[str, str]:
    """Environment variables: Numba then compiles for this processor less the instruction sets whose names hold a part."""
    if not parts:
        return {}
    _, _, known = cpu_target.target_context.codegen().magic_tuple()
    parts = (*parts, "avx10") if "avx512" in parts else parts  # the newer name of the same
    kept = [name for name in known.split(",") if name[:1] == "+" and not any(part in name for part in parts)]
    return {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ",".join(kept)}
