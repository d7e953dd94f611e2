"""How the work is cut for a card: a small table, with reasons, by numbers of tokens, rows and blocks and the card's size."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch

from qkit.backends.triton.layout import Laid
from qkit_kernels.triton.assembly import DIGITS_BYTES, PAIRS_BYTES

TOKENS = 16  # up to so many are the narrow side of one instruction of the tensor core
SMALL = 2**24  # weights
SMALLER = 2**22
WORK = 2**28  # tokens times weights up to which `few` is best on Hopper, if there are
MOST_FEW = 128  # tokens, at most,
PROGRAMS = 512  # and programs, of a table's codes
ONE_WARPS = 16  # of a program of `one` or `eight`
STATIC = 48 * 1024  # bytes of shared memory that a program may have without asking


@dataclass(frozen=True)
class Card:
    """What of a card decides how work is cut.

    Attributes:
        units: multiprocessors.
        shared: bytes of shared memory that one program may have.
        major: the first number of its compute capability; 9 is Hopper.
        ptx: it speaks PTX; others (AMD) are given the kernels' plain twins.
        name: what it calls itself.
    """

    units: int
    shared: int
    major: int
    ptx: bool = True
    name: str = ""

    @property
    def tensor_cores(self) -> bool:
        """Whether Triton reaches them: those before sm_80 it does not."""
        return not self.ptx or self.major >= 8

    def takes(self, dtype: torch.dtype) -> bool:
        """Whether the kernels run on it with numbers of `dtype`: before sm_80 there is no bfloat16."""
        return self.tensor_cores or dtype == torch.float16

    @property
    def small_tiles(self) -> bool:
        """Whether large tiles spill: where a matrix instruction wants both operands in registers (sm_8x, sm_12x, AMD's RDNA).
        Hopper's and sm_100's read the right one from shared memory; AMD's CDNA has registers enough.
        """
        return self.major not in (9, 10)

    @property
    def hopper(self) -> bool:
        """Whether it has `wgmma`, which no other has."""
        return self.ptx and self.major == 9

    @property
    def early(self) -> bool:
        """Whether a kernel may begin while the one before it still runs."""
        return self.ptx and self.major >= 9

    @property
    def narrow(self) -> int:
        """How few tokens an instruction of its tensor cores takes."""
        return 8 if self.ptx else 16


@cache
def card(device: int) -> Card:
    """The card called `device`, asked when first used."""
    found = torch.cuda.get_device_properties(device)
    ptx = torch.version.hip is None
    shared = found.shared_memory_per_block_optin if ptx else found.shared_memory_per_block
    return Card(found.multi_processor_count, shared, found.major, ptx, found.name)


@dataclass(frozen=True)
class One:
    """How `qkit_kernels.triton.one` is launched; see there.

    Attributes:
        programs: that share the tiles of 16 rows.
        depth: blocks ordered ahead.
    """

    programs: int
    depth: int


@dataclass(frozen=True)
class Eight:
    """How `qkit_kernels.triton.eight` is launched; see there, and `One`."""

    programs: int
    depth: int


@dataclass(frozen=True)
class Few:
    """How `qkit_kernels.triton.few` is launched; see there."""

    warps: int
    unroll: int
    turns: int


@dataclass(frozen=True)
class Many:
    """How `qkit_kernels.triton.many` is launched; see there, and `qkit_kernels.triton.pieces`.

    Attributes:
        programs: that share the tiles; 0: each tile has its own.
    """

    bn: int
    bm: int
    warps: int
    stages: int
    programs: int = 0

    @property
    def tile(self) -> tuple[int, int]:
        """Rows and tokens."""
        return self.bn, self.bm

    @property
    def split(self) -> bool:
        """Whether tiles may be made in parts."""
        return self.programs > 0


@dataclass(frozen=True)
class Hopper:
    """How `qkit_kernels.triton.hopper.many_hopper` is launched; see there, and `qkit_kernels.triton.pieces`.

    Attributes:
        programs: that take the tiles one after the other.
        split: whether tiles may be made in parts.
    """

    bm: int
    more: int
    stages: int
    in_turns: bool
    programs: int
    split: bool = False

    @property
    def tile(self) -> tuple[int, int]:
        """Rows and tokens."""
        return 128, self.bm + self.more


Cut = One | Eight | Few | Many | Hopper


def number_of_tiles(rows: int, tokens: int, tile: tuple[int, int]) -> int:
    """Of a product."""
    return -(-rows // tile[0]) * -(-tokens // tile[1])


def launched(cut: Many | Hopper, work: int, blocks: int) -> int:
    """Programs for so many tiles: no more than have something to do."""
    most = work * blocks if cut.split else work
    return min(cut.programs or most, most)


def one(weight: Laid, card: Card) -> One | None:
    """On Hopper, for codes that are numbers, of 2, 3, 4 or 8 bits, in groups that are not too small; the token must fit.

    Two programs to a multiprocessor, and two blocks ahead, where the registers are enough and each warp has work; else one.
    """
    groups = weight.grid.shape[2]
    known = weight.table is None and groups <= _GROUPS.get(weight.bits, 0)
    if not card.hopper or not known or one_room(weight) > STATIC:
        return None
    slim = weight.bits <= 4 and groups == 1 and weight.off is None
    two = slim and _blocks_of_a_warp(weight, 2 * card.units) > 2.5
    programs, each = _stretches(weight, card.units * (2 if two else 1))
    return One(programs, 4 if each == 4 and not two and weight.bits * groups <= 16 else min(each, 2))


def eight(tokens: int, weight: Laid, card: Card) -> Eight | None:
    """On Hopper, for up to eight tokens and the codes of a table, or of 2, 3, 4 or 8 bits, in groups that are not too small.

    Two programs to a multiprocessor, and one block ahead, where the registers are enough, each warp has work and no program has
    much more than others; else one, and more ahead where warps have many. With several tokens `few` is faster where some would
    have much more; and of codes that are numbers where a program would have several tiles.
    """
    groups, table = weight.grid.shape[2], weight.table is not None
    if tokens > 8 or not card.hopper or groups > _GROUPS.get(weight.bits, 0):
        return None
    tiles, places = -(-weight.shape[0] // 16), 2 * card.units
    even = tiles <= places or -(-tiles // places) * places < 1.5 * tiles
    if tokens > 1 and not (even if table else tiles <= places):
        return None
    two = even and (tokens == 1 or groups <= 2) and _blocks_of_a_warp(weight, places) > 1.5
    programs, each = _stretches(weight, card.units * (2 if two else 1))
    return Eight(programs, 1 if two else min(each, 3 if each > 8 and groups <= 2 else 2))


def _blocks_of_a_warp(weight: Laid, places: int) -> float:
    """Where so many programs share them evenly."""
    return -(-weight.shape[0] // 16) * weight.blocks / (places * ONE_WARPS)


def _stretches(weight: Laid, places: int) -> tuple[int, int]:
    """Programs, none of which has more tiles than its warps can add up, for so many places; blocks of a warp of the longest."""
    tiles = -(-weight.shape[0] // 16)
    programs = min(tiles, places * -(-tiles // (ONE_WARPS * places)))
    return programs, -(-(-(-tiles // programs) * weight.blocks) // ONE_WARPS)


def reading(tokens: int, weight: Laid, card: Card) -> One | Eight | None:
    """A kernel that does nothing but read the weight, if there is one for so many tokens."""
    found = one(weight, card) if tokens == 1 else None
    return found or eight(tokens, weight, card)


def one_room(weight: Laid) -> int:
    """Bytes of shared memory of a program of `one`."""
    return weight.blocks * (DIGITS_BYTES + 4 + 4 * weight.grid.shape[2]) + 128 * ONE_WARPS


def few_tokens(weight: Laid, card: Card) -> int:
    """Up to how many tokens `few` is best: of a small weight on Hopper more, since nothing runs before or after it."""
    small = card.hopper and weight.grid.shape[2] < 8
    numbers = math.prod(weight.shape)
    if not small or numbers > SMALL:
        return TOKENS
    if numbers > SMALLER:
        return 2 * TOKENS
    most = min(MOST_FEW, WORK // numbers)
    if weight.table is not None:  # each program fills its own shared memory with pairs
        most = min(most, PROGRAMS * TOKENS // -(-weight.shape[0] // 16))
    return max(2 * TOKENS, most)


def few_width(tokens: int, weight: Laid) -> int:
    """How many of them a program of `few` takes: 32 of a weight that is not so small that reading it twice costs nothing."""
    width = 1 << (tokens - 1).bit_length()
    return min(width, TOKENS if math.prod(weight.shape) <= SMALLER else 2 * TOKENS)


def few(weight: Laid, card: Card, tokens: int = 1) -> Few:
    """A warp takes a block of 128 columns at a time.

    Up to eight are written out: the compiler loads the next while it computes with the last. Fewer, each in a turn of its own,
    where the loads of more are put off for lack of registers: of 8 bits, of more than 8 tokens, and where programs are many.
    """
    blocks, each = weight.blocks, -(-weight.shape[0] // 16) * -(-tokens // few_width(tokens, weight)) / card.units
    if weight.table is not None and card.hopper:
        warps, out = 4, 8  # each program fills its own shared memory with pairs
    elif tokens <= 8:
        warps = warps_of(each, blocks, 3.0 if weight.bits == 8 else 5.0)
        out = 4 if weight.bits == 8 and each > 6 else 2 if weight.bits == 4 and warps == 4 else 8
    else:
        warps = warps_of(each, blocks, 3.0)
        out = (2 if blocks > 16 else 1) if warps == 8 else 4 if weight.bits <= 4 and weight.grid.shape[2] < 4 else 8
    stretches = -(-blocks // warps)
    turns = -(-stretches // out)
    return Few(warps, -(-stretches // turns), turns)


def warps_of(each: float, blocks: int, many: float) -> int:
    """Enough to keep a multiprocessor reading that has so many programs: four to each where they are `many`, else eight, if each
    has a block.
    """
    return 4 if each >= many or blocks < 8 else 8


def many(tokens: int, weight: Laid, card: Card) -> Many:
    """Tiles as tall as the tokens are, up to 256: a weight that has become floats is used for all of them.

    Where that leaves more than a quarter of the multiprocessors without a tile, they are 128 tall; where it leaves half of them,
    programs share the columns of a tile.
    """
    rows, blocks = weight.shape[0], weight.blocks
    table = _MANY_SMALL_TILES if card.small_tiles else _MANY
    bn, bm, warps, stages = next(cut for limit, cut in table if tokens <= limit)
    if bm == 256 and number_of_tiles(rows, tokens, (bn, bm)) < 0.75 * card.units:
        bn, bm, warps, stages = 128, 128, 8 if card.ptx else 4, 4
    bm, stages = _that_fit(weight, bn, bm, stages, card)
    work = number_of_tiles(rows, tokens, (bn, bm))
    share = max(n for n in _shares(card) if n == 1 or (work * n <= card.units and blocks >= 4 * n))
    return Many(bn, bm, warps, stages, work * share if share > 1 else 0)


def _shares(card: Card) -> tuple[int, ...]:
    """How many programs may share a tile of `many`: AMD's compiler does not come to an end with a loop of tiles around that of
    blocks.
    """
    return (1, 2, 4) if card.ptx else (1,)


def _that_fit(weight: Laid, bn: int, bm: int, stages: int, card: Card) -> tuple[int, int]:
    """Tokens and stages, fewer where the card has no shared memory for more."""
    while stages > 2 and _shared(weight, bn, bm, stages) > card.shared:
        stages -= 1
    while bm > 32 and _shared(weight, bn, bm, stages) > card.shared:
        bm //= 2
    return bm, stages


def hopper(tokens: int, weight: Laid, card: Card) -> Hopper | Many | None:
    """On Hopper, what takes the least time by `_HOPPER`; None elsewhere, and for groups of 16, for which it has no kernel."""
    if not card.hopper or weight.grid.shape[2] == 8:
        return None
    return min(_hopper_cuts(tokens, weight, card), key=lambda cut: cut[0], default=(math.inf, None))[1]


def _hopper_cuts(tokens: int, weight: Laid, card: Card) -> Iterator[tuple[float, Hopper | Many]]:
    """What can be launched, and microseconds of it, but for what all of them take."""
    rows, blocks, units = weight.shape[0], weight.blocks, card.units
    pairs = 0 if weight.table is None else PAIRS_BYTES
    for bm, more, stages, in_turns, price in _HOPPER:
        room = (card.shared - 2048 - pairs) // (256 * (bm + more) + 2048 * weight.bits + _grid_bytes(weight, 128))
        if room >= 2:
            for most, programs, parts in dealt(rows, 128, tokens, bm + more, blocks, units):
                time = _PRODUCER + most * price + parts * (0.5 + 0.04 * (bm + more))
                yield time, Hopper(bm, more, min(stages, room), in_turns, programs, parts > 0)
    if weight.bits in (4, 8):  # planes of 4 bits are read 16 bytes at a time; others cost `many` half as much again
        bm, stages = _that_fit(weight, 128, 256, 3, card)
        for most, programs, parts in dealt(rows, 128, tokens, bm, blocks, units):
            time = most * _MANY_256 + parts * (0.5 + 0.04 * bm)
            yield time, Many(128, bm, 8, stages, programs if parts else 0)
    if weight.bits == 4:
        for most, programs, parts in dealt(rows, 64, tokens, 64, blocks, 2 * units):
            two, shared, alone = _MANY_64
            price = two if programs > units else shared if parts else alone
            handed = 7.0 if parts == STRETCHES else 3.2 if parts else 0.0
            yield most * price + handed, Many(64, 64, 4, 5, programs if parts else 0)


def dealt(rows: int, bn: int, tokens: int, bm: int, blocks: int, places: int) -> Iterator[tuple[int, int, float]]:
    """How tiles can be dealt out to as many programs as have a place at once.

    Returns:
        blocks of the program that has most, programs, and what handing parts over costs, in that of two parts of each tile.
    """
    work = number_of_tiles(rows, tokens, (bn, bm))
    yield -(-work // places) * blocks, min(work, places), 0.0
    for share in range(2, min(places // work, blocks // 2) + 1):  # so many programs to a tile, each within it
        yield -(-blocks // share), work * share, share / 2
    programs = min(places, work * (blocks // 2))
    if programs > 1 and programs % work:  # equal stretches: a program ends one tile and begins another
        yield -(-work * blocks // programs), programs, STRETCHES


def candidates(tokens: int, weight: Laid, card: Card) -> list[Cut]:
    """What may be tried for so many tokens; what the table says comes first (`tuning`)."""
    rows, blocks = weight.shape[0], weight.blocks
    found: list[Cut] = []
    if (by_reading := reading(tokens, weight, card)) is not None:
        found = [by_reading]
    if tokens <= few_tokens(weight, card):
        found += [few(weight, card, tokens)]
        for warps in (4, 8):
            stretches = -(-blocks // warps)
            turns = (-(-stretches // unrolled) for unrolled in (2, 4, 8))
            found += [Few(warps, -(-stretches // n), n) for n in turns if warps <= blocks]
    if tokens <= 8 and eight(1, weight, card):
        for places, depth in ((card.units, 2), (2 * card.units, 1)):
            programs, each = _stretches(weight, places)
            found.append(Eight(programs, min(each, depth)))
    if tokens > TOKENS:
        by_table = many(tokens, weight, card)
        found += [hopper(tokens, weight, card) or by_table, by_table]
        for _, (bn, bm, warps, stages) in _MANY_SMALL_TILES if card.small_tiles else _MANY:
            if bm < 2 * tokens and _shared(weight, bn, bm, stages) <= card.shared:
                work = number_of_tiles(rows, tokens, (bn, bm))
                shares = [share for share in _shares(card) if 2 * share <= max(2, blocks)]
                found += [Many(bn, bm, warps, stages, work * share if share > 1 else 0) for share in shares]
        if card.hopper and weight.grid.shape[2] < 8:
            found += [cut for _, cut in _hopper_cuts(tokens, weight, card)]
    return list(dict.fromkeys(found))


# Most groups in a block of the kernels that only read the weight, by bits
_GROUPS = {2: 2, 3: 2, 4: 4, 8: 4}

# Tokens of a tile, and more of them; stages; in turns; microseconds of one block of 128 rows by 128 columns on an H200, W4
_HOPPER = (
    (32, 0, 6, False, 0.48),
    (64, 0, 6, False, 0.57),
    (128, 0, 4, False, 0.80),
    (128, 32, 4, True, 0.96),
    (128, 64, 3, True, 1.10),
)
_MANY_256 = 1.46  # the same of `many` and 256 tokens
_MANY_64 = (0.66, 0.55, 0.44)  # and of its 64 x 64: two on a multiprocessor; one, that shares its tile; one
# What handing over costs where programs end one tile and begin another: twice, and two ends to a program
STRETCHES = 2.2
_PRODUCER = 1.3  # microseconds until it has been begun, which `many` has not

_MANY = (  # up to so many tokens: rows and tokens of a tile, warps, stages
    (32, (64, 32, 4, 5)),
    (64, (64, 64, 4, 5)),
    (128, (128, 128, 8, 4)),
    (2**62, (128, 256, 8, 3)),
)

_MANY_SMALL_TILES = (  # the largest that do not spill; chosen by compiling, not by timing
    (32, (64, 32, 4, 3)),
    (2**62, (128, 32, 8, 3)),
)


def _shared(weight: Laid, bn: int, bm: int, stages: int) -> int:
    """Bytes of shared memory: x of every stage, words and scales of all but the one that is worked on; and what groups of 16 with
    offsets pass from lane to lane.
    """
    passing = 128 * bn if weight.off is not None and weight.grid.shape[2] == 8 else 0
    return stages * bm * 256 + (stages - 1) * (bn * 16 * weight.bits + _grid_bytes(weight, bn)) + 64 * stages + passing


def _grid_bytes(weight: Laid, rows: int) -> int:
    """Scales and offsets of a block of so many rows."""
    per_block = weight.grid.shape[2]
    each = 1 if weight.span == 0 else 16 if per_block == 8 else 4 if per_block > 1 else 1
    return rows * 4 * each * (1 if weight.off is None else 2)
