"""The container: what a GGUF file says it holds, and where; and the tensors, as codes or as floats.

The file, little-endian:

    "GGUF", version (3; 2 is laid out alike), number of tensors, number of entries
    entries     name, kind, value: numbers, strings, lists of them. `llama.block_count`, the tokenizer's tokens, ...
    tensors     name, dimensions (the innermost first), type, offset
    (up to the next multiple of `general.alignment`)
    data        tensor after tensor, each at its offset

The package `gguf` has a reader too. It is not used here: of a file that was cut or altered it may read for ever (a list
that says it has 2^40 numbers), and it makes an object of every string, which is two seconds for 49,152 tokens. What is read
here is read once, and checked against the length of the file before anything is made of it. The block types that are no
codes of ours are the package's work.
"""

import mmap
import struct
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qkit.checkpoints.gguf.blocks import FROM, check_finite_blocks
from qkit.numerics.mapping import check_finite
from qkit.numerics.qtensor import QTensor

MAGIC = b"GGUF"
NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}  # as struct has them
STRING, LIST = 8, 9
ALIGNMENT = 32
NUMBERS_AT_ONCE = 2**20  # that are dequantized together: the work of it takes several times as much memory
DIMENSIONS = 4  # at most, as ggml has them

# Types by number: name, weights of a block, its bytes. The others are asked of the package `gguf`.
TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    8: ("Q8_0", 32, 34),
    30: ("BF16", 1, 2),
}


@dataclass(frozen=True)
class Entry:
    """A tensor of the file: its shape as torch has it (the innermost dimension last), its type, and where it lies."""

    name: str
    shape: tuple[int, ...]
    type: int
    start: int
    length: int


class Container:
    """An open file.

    Attributes:
        path: where it is.
        metadata: the entries by name: numbers, strings, booleans, lists.
        tensors: what it holds, by name.
    """

    def __init__(self, path: Path, buffer: mmap.mmap) -> None:
        self.path = path
        self._buffer = buffer
        cursor = _Cursor(path, buffer)
        tensors = _header(cursor)
        self.metadata = {}
        for _ in range(cursor.count("entries", 12)):
            key = cursor.string()
            if key in self.metadata:
                raise ValueError(f"{path} says {key!r} twice; {ALTERED}")
            self.metadata[key] = cursor.value()
        self.tensors = _tensors(cursor, tensors, self.metadata.get("general.alignment", ALIGNMENT))

    def stored(self, name: str) -> QTensor | None:
        """The codes of a tensor [out, in]; None where its blocks are no codes of ours."""
        entry = self.tensors[name]
        kind = TYPES.get(entry.type, ("",))[0]
        if kind not in FROM or len(entry.shape) != 2:
            return None
        q = FROM[kind](torch.from_numpy(self._octets(entry).copy()))
        check_finite_blocks(q, f"{name} of {self.path}")
        return q

    def floats(self, name: str) -> Tensor:
        """A tensor as float32, dequantized where need be, some rows at a time; NaN and infinity are refused."""
        entry = self.tensors[name]
        data = self._octets(entry)
        data = data.reshape(-1, data.shape[-1])
        numbers = torch.empty(len(data), entry.shape[-1])
        rows = max(1, NUMBERS_AT_ONCE // entry.shape[-1])
        for start in range(0, len(data), rows):
            numbers[start : start + rows] = self._numbers(entry, data[start : start + rows].copy())
        check_finite(numbers, f"{name} of {self.path}")
        return numbers.reshape(entry.shape)

    def _numbers(self, entry: Entry, octets: np.ndarray) -> Tensor:
        """Rows of bytes as rows of numbers."""
        kind = TYPES.get(entry.type, ("",))[0]
        if kind == "F32":
            return torch.from_numpy(octets.view(np.float32))
        if kind in ("F16", "BF16"):
            return torch.from_numpy(octets.view(np.int16)).view(torch.float16 if kind == "F16" else torch.bfloat16)
        if kind in FROM:
            return FROM[kind](torch.from_numpy(octets)).dequantize()
        from gguf import GGMLQuantizationType  # there, or the header would have been refused
        from gguf.quants import dequantize

        try:
            with np.errstate(all="ignore"):  # what is no number is named by the caller
                return torch.from_numpy(dequantize(octets, GGMLQuantizationType(entry.type)))
        except NotImplementedError as error:
            raise ValueError(
                f"{entry.name} of {self.path} is of type {GGMLQuantizationType(entry.type).name}, which the package gguf does "
                f"not dequantize; give a file with another"
            ) from error

    def _octets(self, entry: Entry) -> np.ndarray:
        """The bytes of a tensor, row after row: uint8 [..., bytes of a row]; a view of the file."""
        data = np.frombuffer(self._buffer, np.uint8, entry.length, entry.start)
        return data.reshape(*entry.shape[:-1], -1)


def open_container(path: Path) -> Container:
    """The container at `path`; its tensors are read when they are asked for.

    Raises:
        ValueError: no GGUF file, or one that was cut or altered.
        ImportError: it has block types that need the package `gguf`.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != MAGIC:
                raise ValueError(f"{path} does not begin with the letters GGUF; give a file of llama.cpp's")
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); see that it is a file and that you may") from error
    return Container(path, buffer)


ALTERED = "it was cut or altered: copy the file again"


class _Cursor:
    """A place in the file. Nothing behind its end is read."""

    def __init__(self, path: Path, buffer: mmap.mmap) -> None:
        self.path, self.buffer, self.at = path, buffer, 0

    def take(self, length: int) -> bytes:
        if length > len(self.buffer) - self.at:
            raise ValueError(f"{self.path} ends at byte {len(self.buffer):,}, in the middle of its header; {ALTERED}")
        self.at += length
        return self.buffer[self.at - length : self.at]

    def number(self, kind: int) -> Any:
        code = "<" + NUMBERS[kind]
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def count(self, what: str, least: int) -> int:
        """A number of things of at least so many bytes each, that may be there by the length of the file."""
        count = self.number(10)
        if count > (len(self.buffer) - self.at) // least:
            raise ValueError(f"{self.path} says that {count:,} {what} follow, and is too short for them; {ALTERED}")
        return count

    def string(self) -> str:
        octets = self.take(self.count("bytes of a string", 1))
        try:
            return octets.decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self.path} has a string that is not UTF-8 before byte {self.at:,}; {ALTERED}"
            ) from error

    def value(self) -> Any:
        kind = self.number(4)
        if kind == LIST:
            return self._list(self.number(4))
        return self._one(kind)

    def _one(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind not in NUMBERS:
            raise ValueError(
                f"{self.path} has a value of kind {kind} before byte {self.at:,}, GGUF has none; {ALTERED}"
            )
        return self.number(kind)

    def _list(self, kind: int) -> list:
        size = struct.calcsize("<" + NUMBERS[kind]) if kind in NUMBERS else 8  # a string is its length at least
        count = self.count("values of a list", size)
        if kind not in NUMBERS:
            return [self._one(kind) for _ in range(count)]
        return list(struct.unpack(f"<{count}{NUMBERS[kind]}", self.take(count * size)))


def _header(cursor: _Cursor) -> int:
    """The number of tensors that the file says it has."""
    cursor.take(len(MAGIC))
    version = cursor.number(4)
    if version not in (2, 3):
        why = "is big-endian" if version & 0xFFFF == 0 else f"has format version {version}"
        raise ValueError(f"{cursor.path} {why}, qkit reads versions 2 and 3, little-endian; convert it with llama.cpp")
    return cursor.count("tensors", 24)


def _tensors(cursor: _Cursor, count: int, alignment: Any) -> dict[str, Entry]:
    path, size = cursor.path, len(cursor.buffer)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"{path} has general.alignment={alignment!r}, which is no power of two; {ALTERED}")
    told = []
    for _ in range(count):
        name, dimensions = cursor.string(), cursor.number(4)
        if not 1 <= dimensions <= DIMENSIONS:
            raise ValueError(f"{name} of {path} has {dimensions} dimensions, ggml has 1 to {DIMENSIONS}; {ALTERED}")
        shape = tuple(reversed([cursor.number(10) for _ in range(dimensions)]))
        told.append((name, shape, cursor.number(4), cursor.number(10)))
    start = -(-cursor.at // alignment) * alignment
    tensors: dict[str, Entry] = {}
    for name, shape, number, offset in told:
        kind, block, octets = type_of(number, f"{name} of {path}")
        if name in tensors:
            raise ValueError(f"{path} has two tensors {name!r}; {ALTERED}")
        if not prod(shape) or shape[-1] % block:
            raise ValueError(f"{name} of {path} is {shape} in blocks of {block} ({kind}); {ALTERED}")
        length = prod(shape) // block * octets
        if offset % alignment or start + offset + length > size:
            raise ValueError(
                f"{name} of {path} should lie at byte {start + offset:,} and take {length:,}, the file has {size:,}; {ALTERED}"
            )
        tensors[name] = Entry(name, shape, number, start + offset, length)
    places = sorted(tensors.values(), key=lambda entry: entry.start)
    for first, second in pairwise(places):
        if first.start + first.length > second.start:
            raise ValueError(f"{first.name} and {second.name} of {path} lie on each other; {ALTERED}")
    return tensors


def type_of(number: int, what: str) -> tuple[str, int, int]:
    """(name, weights of a block, bytes of a block) of a type."""
    if number in TYPES:
        return TYPES[number]
    try:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    except ImportError as error:
        raise ImportError(
            f"{what} is of GGUF's type {number}, which qkit reads with the package gguf, and that is not installed; "
            f"pip install 'qkit[gguf]'"
        ) from error
    try:
        kind = GGMLQuantizationType(number)
    except ValueError as error:
        raise ValueError(
            f"{what} is of type {number}, which the package gguf does not know; upgrade it, or copy the file again"
        ) from error
    return (kind.name, *GGML_QUANT_SIZES[kind])
