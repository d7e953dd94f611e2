"""A stored weight as the Triton kernels read it: made once from its codes, and turned back exactly.

What
    Codes lie in planes of words, and scales in the dtype of x, as `qkit_kernels.triton.words` describes. One layout serves every
    number of tokens, every number of bits and both kinds of weight.

Formula
    ŵ[n, k] = r[n] s' (q - z),   s' = s / r[n],   r a power of two: s' is between 0 and 1 whatever s is, so that a scale that
    float16 has no room for loses nothing.

Trade-off
    The laid words take as many bytes as the stored ones, and stand beside them for as long as those live.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from qkit.numerics.stored import StoredWeight
from qkit_kernels.triton.assembly import PLANES, bias

BLOCK = 128  # columns of a block
ROWS = 128  # rows are filled up to whole tiles of the largest kernel
SMALLEST = 16  # columns that share a scale: a tensor core takes so many at a time
KIND = {torch.float16: "f16", torch.bfloat16: "bf16"}


@dataclass(frozen=True, eq=False)
class Laid:
    """What a kernel reads of a weight.

    Attributes:
        words: int32 [128 ceil(N / 128) 128 ceil(K / 128) bits / 32].
        grid: int32 [N/8, groups, S, 8], bias and zero point below, scale above.
        off: int32, shaped like grid: offsets and what rounding them left; None where there are none.
        rows: float32 [N], r.
        table: int32 [8, 8], the bytes of a codebook's numbers; None where a code is the number that it is.
        shape: (N, K).
        bits: of a code.
        span: blocks that share a scale; 0 where a row is one group.
        dtype: of x.
    """

    words: Tensor
    grid: Tensor
    off: Tensor | None
    rows: Tensor
    table: Tensor | None
    shape: tuple[int, int]
    bits: int
    span: int
    dtype: torch.dtype

    @property
    def blocks(self) -> int:
        """Blocks of 128 columns that a row has."""
        return -(-self.shape[1] // BLOCK)


def fits(q: StoredWeight) -> bool:
    """Whether the kernels can read `q`: rows of whole groups, which are multiples of 16 or a row."""
    groups = q.row_groups
    return min(q.shape) > 0 and groups is not None and (groups == 1 or q.shape[1] // groups % SMALLEST == 0)


def pack_words(codes: Tensor, bits: int, table: bool = False) -> Tensor:
    """Codes uint8 [N, K] to words, int32 [n]; what is missing to whole blocks and tiles is filled with zeros.

    Args:
        table: in the order in which a table's bytes are looked up.
    """
    filled = F.pad(codes, (0, -codes.shape[1] % BLOCK, 0, -codes.shape[0] % ROWS))
    planes, lowest = [], 0
    for width in PLANES[bits]:
        fields = (filled >> lowest & 2**width - 1).view(-1, 8, filled.shape[1] // BLOCK, 4, 4, 8)  # n g k i t 8
        words = (fields.to(torch.int32) << _places(width, table, codes.device)).sum(-1, dtype=torch.int32)
        together = 4 // width
        words = words.unflatten(3, (width, together)).permute(0, 2, 1, 5, 3, 4)  # n k g t word i
        inside = 4 * width * torch.arange(together, device=codes.device, dtype=torch.int32)
        planes.append((words << inside).sum(-1, dtype=torch.int32).flatten())
        lowest += width
    return torch.cat(planes)


def unpack_words(words: Tensor, bits: int, shape: tuple[int, int], table: bool = False) -> Tensor:
    """The inverse of `pack_words`: codes uint8 [N, K]."""
    rows, blocks = -(-shape[0] // ROWS) * ROWS, -(-shape[1] // BLOCK)
    codes, lowest, start = torch.zeros(rows, blocks * BLOCK, dtype=torch.uint8, device=words.device), 0, 0
    for width in PLANES[bits]:
        plane = words[start : (start := start + rows * blocks * BLOCK * width // 32)]
        together = 4 // width
        inside = 4 * width * torch.arange(together, device=words.device, dtype=torch.int32)
        fields = plane.view(-1, blocks, 8, 4, width, 1) >> inside  # n k g t word i
        fields = fields.permute(0, 2, 1, 4, 5, 3).flatten(3, 4)[..., None] >> _places(width, table, words.device)
        codes |= (fields & 2**width - 1).to(torch.uint8).reshape(rows, -1) << lowest
        lowest += width
    return codes[: shape[0], : shape[1]].contiguous()


def _places(width: int, table: bool, device: torch.device) -> Tensor:
    """At which bit of a word each of 8 consecutive codes lies: int32 [8]."""
    h, u, left = (torch.arange(8, device=device, dtype=torch.int32) >> bit & 1 for bit in (2, 1, 0))
    return 16 * h + 8 * left + 4 * u if table else 16 * left + width * (2 * h + u)


def _pairs(low: Tensor, high: Tensor, dtype: torch.dtype) -> Tensor:
    """Two numbers in one int32, each rounded to `dtype`."""
    below, above = (t.to(dtype).contiguous().view(torch.int16).to(torch.int32) for t in (low, high))
    return below & 0xFFFF | above << 16


def _grid_parts(q: StoredWeight) -> tuple[Tensor, Tensor, Tensor | None]:
    """Scales, zero points and offsets of each row's groups, float32 [N, groups]."""
    shape = (q.shape[0], q.row_groups)
    if q.table() is not None:
        scales = q.absmax().reshape(shape)
        return scales, torch.zeros_like(scales), None
    offsets = q.grid()[2]
    scales, zeros = q.scales.float().expand(shape), q.zeros().expand(shape)
    return scales, zeros, None if offsets is None else offsets.float().expand(shape)


def _spread(part: Tensor, features: int) -> Tensor:
    """[N, groups] as [N/8, groups, S, 8], padded rows included: the scales of whole blocks, or several of each block."""
    groups = part.shape[1]
    size = features // groups
    per_block = 1 if groups == 1 else BLOCK // math.gcd(size, BLOCK)
    if per_block > 1:
        places = torch.arange(-(-features // BLOCK) * per_block, device=part.device) * (BLOCK // per_block) // size
        part = part[:, places.clamp(max=groups - 1)]
    part = F.pad(part, (0, 0, 0, -len(part) % ROWS))
    return part.reshape(-1, 8, part.shape[1] // per_block, per_block).permute(0, 2, 3, 1).contiguous()


def lay(q: StoredWeight, dtype: torch.dtype, words: Tensor | None = None) -> Laid:
    """The weight for activations of `dtype`.

    Args:
        words: those of the same weight, if they are known.
    """
    numbers = q.table()
    scales, zeros, offsets = _grid_parts(q)
    reach = scales.abs().amax(1) if offsets is None else torch.maximum(scales.abs(), offsets.abs() / 2**q.bits).amax(1)
    rows = torch.exp2(torch.frexp(reach.clamp(min=2.0**-120))[1].float())
    scales = scales / rows[:, None]
    grid = _pairs(*(_spread(t, q.shape[1]) for t in (-(bias(q.bits, KIND[dtype]) + zeros), scales)), dtype)
    off = None
    if offsets is not None:
        offsets = offsets / rows[:, None]
        rest = offsets - offsets.to(dtype).float()
        off = _pairs(_spread(offsets, q.shape[1]), _spread(rest, q.shape[1]), dtype)
    return Laid(
        words=pack_words(q.codes(), q.bits, numbers is not None) if words is None else words,
        grid=grid,
        off=off,
        rows=rows,
        table=None if numbers is None else _bytes_of(numbers, dtype),
        shape=q.shape,
        bits=q.bits,
        span=0 if q.row_groups == 1 else max(1, q.shape[1] // q.row_groups // BLOCK),
        dtype=dtype,
    )


def _bytes_of(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """16 numbers in 16 bits as four words of their low bytes and four of their high ones, each word eight times."""
    bits = numbers.to(dtype).view(torch.int16).to(torch.int32)
    octets = torch.stack([bits & 255, bits >> 8 & 255]).view(8, 4)
    places = 8 * torch.arange(4, device=numbers.device, dtype=torch.int32)
    return (octets << places).sum(1, dtype=torch.int32)[:, None].repeat(1, 8).contiguous()


# What was made of weights, by the memory of their parts (its address, where in it, how often it was written): the memory itself,
# so that an address that is used again is not taken for the old one, and what was made, by name.
_KEPT: dict[tuple[int, ...], tuple[StorageWeakRef, dict[Any, Any]]] = {}


def laid(q: StoredWeight, dtype: torch.dtype) -> Laid:
    """`lay`, once for each weight and dtype."""
    words = kept(q, "words", lambda q: pack_words(q.codes(), q.bits, q.table() is not None))
    return kept(q, dtype, lambda q: lay(q, dtype, words))


def kept(q: StoredWeight, name: Any, make: Callable[[Any], Any]) -> Any:
    """`make(q)`, once; forgotten when the weight is, or when it is written into."""
    key = tuple(number for tensor in q.tensors().values() for number in _identity(tensor))
    found = _KEPT.get(key)
    if found is None or found[0].expired():
        for old in [old for old, (memory, _) in _KEPT.items() if memory.expired()]:
            del _KEPT[old]
        found = _KEPT[key] = (StorageWeakRef(q.packed.untyped_storage()), {})
    if name not in found[1]:
        found[1][name] = make(q)
    return found[1][name]


def _identity(tensor: Tensor) -> tuple[int, ...]:
    version = 0 if tensor.is_inference() else tensor._version
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), version
