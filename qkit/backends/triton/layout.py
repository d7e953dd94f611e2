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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Lock
from typing import Any
from weakref import finalize

import torch
import torch.nn.functional as F
from torch import Tensor

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
        table: int32 [40, 8], the bytes of a codebook's numbers, and its pairs; None where a code is the number that it is.
        shape: (N, K).
        bits: of a code.
        span: blocks that share a scale (1 where a block has several, or parts of two); 0 where a row is one group.
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
        table: one after the other, as they are looked up.
    """
    filled = F.pad(codes, (0, -codes.shape[1] % BLOCK, 0, -codes.shape[0] % ROWS))
    filled = filled.view(-1, 8, filled.shape[1] // BLOCK, 4, 4, 8)  # n g k i t 8
    planes = []
    for plane in _planes(bits, table, codes.device):
        fields = filled[..., plane.columns] >> plane.lowest & plane.mask
        words = (fields.to(torch.int32) << plane.places).sum(-1, dtype=torch.int32)
        together = 4 // plane.width
        words = words.unflatten(3, (plane.width, together)).permute(0, 2, 1, 5, 3, 4)  # n k g t word i
        planes.append((words << plane.inside).sum(-1, dtype=torch.int32).flatten())
    return torch.cat(planes)


def unpack_words(words: Tensor, bits: int, shape: tuple[int, int], table: bool = False) -> Tensor:
    """The inverse of `pack_words`: codes uint8 [N, K]."""
    rows, blocks = -(-shape[0] // ROWS) * ROWS, -(-shape[1] // BLOCK)
    codes = torch.zeros(rows // 8, blocks, 8, 4, 4, 8, dtype=torch.uint8, device=words.device)  # n k g i t 8
    start = 0
    for plane in _planes(bits, table, words.device):
        taken = words[start : (start := start + rows * blocks * BLOCK * plane.width // 32)]
        fields = taken.view(-1, blocks, 8, 4, plane.width, 1) >> plane.inside  # n k g t word i
        fields = fields.flatten(4).transpose(3, 4)[..., None] >> plane.places
        codes[..., plane.columns] |= (fields & plane.mask).to(torch.uint8) << plane.lowest
    return codes.transpose(1, 2).reshape(rows, -1)[: shape[0], : shape[1]].contiguous()


@dataclass(frozen=True)
class _Plane:
    """Of 8 consecutive codes those bits that lie in one plane.

    Attributes:
        width: bits of a plane, as its words are counted: a lane has so many words of a block.
        columns: whose.
        lowest, mask: which bits.
        places: int32 [columns], where in a word.
        inside: int32 [4 / width], where in a word each of the quarters of a block that share it begins.
    """

    width: int
    columns: slice
    lowest: int
    mask: int
    places: Tensor
    inside: Tensor


def _planes(bits: int, table: bool, device: torch.device) -> Iterator[_Plane]:
    """Codes of 8 bits stay whole, four in a word of each plane: others are parted into the bits that fit."""
    lowest, column = 0, torch.arange(8, device=device, dtype=torch.int32)
    left, pair = column & 1, column >> 1
    for number, width in enumerate(PLANES[bits]):
        inside = 4 * width * torch.arange(4 // width, device=device, dtype=torch.int32)
        if bits == 8:
            yield _Plane(width, slice(4 * number, 4 * number + 4), 0, 255, (16 * left + 8 * pair)[:4], inside)
        else:
            places = 4 * column if table else 16 * left + width * pair
            yield _Plane(width, slice(0, 8), lowest, 2**width - 1, places, inside)
        lowest += width


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
    size = q.shape[1] // q.row_groups
    return Laid(
        words=pack_words(q.codes(), q.bits, numbers is not None) if words is None else words,
        grid=grid,
        off=off,
        rows=rows,
        table=None if numbers is None else _table(numbers, dtype),
        shape=q.shape,
        bits=q.bits,
        span=0 if q.row_groups == 1 else size // BLOCK if size % BLOCK == 0 else 1,
        dtype=dtype,
    )


def beside(parts: Sequence[Laid]) -> Laid:
    """Weights of one form, each of whole tiles of rows, as one that has the rows of all of them."""
    first, planes = parts[0], []
    sizes = [[one.words.numel() * width // first.bits for width in PLANES[first.bits]] for one in parts]
    for pieces in zip(*(one.words.split(size) for one, size in zip(parts, sizes, strict=True)), strict=True):
        planes += pieces
    return replace(
        first,
        words=torch.cat(planes),
        grid=torch.cat([one.grid for one in parts]),
        off=None if first.off is None else torch.cat([one.off for one in parts if one.off is not None]),
        rows=torch.cat([one.rows for one in parts]),
        shape=(sum(one.shape[0] for one in parts), first.shape[1]),
    )


def _table(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """16 numbers in 16 bits as four words of their low bytes and four of their high ones, each word eight times; behind them all
    256 pairs, the number of the lower code below.
    """
    bits = numbers.to(dtype).view(torch.int16).to(torch.int32)
    octets = torch.stack([bits & 255, bits >> 8 & 255]).view(8, 4)
    places = 8 * torch.arange(4, device=numbers.device, dtype=torch.int32)
    octets = (octets << places).sum(1, dtype=torch.int32)[:, None].repeat(1, 8)
    pairs = bits[None, :] & 0xFFFF | bits[:, None] << 16
    return torch.cat([octets, pairs.view(32, 8)]).contiguous()


@dataclass(eq=False)
class _Kept:
    """What was made of a weight, by name; how often its parts had been written into by then; and what was made before that."""

    written: tuple[int, ...] = ()
    made: dict[Any, Any] = field(default_factory=dict)
    stale: dict[Any, Any] = field(default_factory=dict)


_KEPT: dict[
    tuple[Any, ...], _Kept
] = {}  # by what the weight is and where its parts lie; gone when the first of them is
_ALONE = Lock()


def laid(q: StoredWeight, dtype: torch.dtype) -> Laid:
    """`lay`, once for each weight and dtype."""
    words = kept(q, "words", lambda q: pack_words(q.codes(), q.bits, q.table() is not None))
    return kept(q, dtype, lambda q: lay(q, dtype, words))


def laid_beside(weights: Sequence[StoredWeight], dtype: torch.dtype) -> Laid:
    """`beside` of `lay`, once for each of these lists and dtype."""
    return kept(weights[0], dtype, lambda *weights: beside([lay(q, dtype) for q in weights]), *weights[1:])


def kept(q: StoredWeight, name: Any, make: Callable[..., Any], *others: StoredWeight) -> Any:
    """`make(q, *others)`, once; forgotten when one of the weights is, made anew when one is written into.

    What nobody counts is not seen: writing through `.data`, or into tensors that were made inside torch.inference_mode.

    Raises:
        RuntimeError: a CUDA graph is being recorded, which would lay the weight out at each replay, and not before the first.
    """
    weights = (q, *others)
    parts = [tensor for one in weights for tensor in one.tensors().values()]
    what = tuple((one.kind, str(one.meta())) for one in weights)
    place = (what, *(number for tensor in parts for number in _place(tensor)))
    written = tuple(0 if tensor.is_inference() else tensor._version for tensor in parts)
    found = _KEPT.get(place)
    if found is not None and found.written == written and name in found.made:
        return found.made[name]
    if q.packed.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "a CUDA graph is being recorded and this weight is not laid out yet for its kernel; run the model once before"
        )
    with _ALONE:
        found = _KEPT.get(place)
        if found is None:
            found = _KEPT[place] = _Kept()
            for tensor in parts:
                finalize(tensor.untyped_storage(), _KEPT.pop, place, None).atexit = False
        if found.written != written:
            found.written, found.stale = written, {**found.stale, **found.made}
            found.made = {}
        if name not in found.made:
            found.made[name] = _finished(partial(make, *weights), q.packed, found.stale.get(name))
        return found.made[name]


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """Where a tensor lies. As long as `finalize` watches the memory, no other has its address."""
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape, tensor.stride()


def _finished(make: Callable[[], Any], packed: Tensor, stale: Any) -> Any:
    """`make()` where `packed` is, in the memory of a stale one if there is one: a CUDA graph may read there.

    By a thread of its own, which waits for the card: then every stream may read it, and what is allocated belongs to no pool of a
    CUDA graph, as it would here where torch.compile is about to record one.
    """
    here = torch.cuda.current_stream(packed.device) if packed.is_cuda else None

    def work() -> Any:
        with torch.cuda.device_of(packed), torch.no_grad():
            if here is not None:
                torch.cuda.current_stream().wait_stream(here)
            made = make()
            if stale is not None:
                for old, new in zip(_tensors(stale), _tensors(made), strict=True):
                    old.copy_(new)
            if here is not None:
                torch.cuda.current_stream().synchronize()
            return made if stale is None else stale

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()


def _tensors(made: Any) -> list[Tensor]:
    return [part for part in ([made] if torch.is_tensor(made) else vars(made).values()) if torch.is_tensor(part)]
