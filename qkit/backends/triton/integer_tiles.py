"""How a product of INT8 codes is cut for a card: the small table of `tiles`, for `qkit_kernels.triton.integer`."""

from dataclasses import dataclass, replace

from qkit.backends.triton.tiles import TOKENS, Card, number_of_tiles, warps_of


@dataclass(frozen=True)
class Integers:
    """How `qkit_kernels.triton.integer.many_integers` is launched; see there."""

    bm: int
    bn: int
    bk: int
    warps: int
    stages: int
    swap: bool


def few_tokens(card: Card) -> int:
    """Up to how many tokens `few_integers` is best: Hopper's large products take 16 in less time."""
    return card.narrow if card.hopper else TOKENS


def few(rows: int, blocks: int, units: int) -> tuple[int, int]:
    """Warps of a program of `few_integers`, and blocks of 64 columns that each takes."""
    warps = warps_of(-(-rows // 16) / units, blocks, 5.0)
    return warps, -(-blocks // warps)


def many(tokens: int, rows: int, features: int, card: Card, outliers: bool) -> Integers:
    """On Hopper what takes the least time by `_HOPPER`; elsewhere up to 128 tokens, there up to 64 in any case, are the narrow
    side of the product, and the weight fills the tensor core; small products, small tiles.
    """
    if card.hopper:
        fitting = (cut for cut in _HOPPER if cut[0].swap or tokens > 64)
        return min(fitting, key=lambda cut: microseconds(cut, tokens, rows, features, card.units, outliers))[0]
    if card.small_tiles:
        cut = next(cut for limit, cut in _SMALL_TILES if tokens <= limit)
    elif tokens > 32 and 2 * number_of_tiles(rows, tokens, (128, 128)) < card.units:
        cut = _SMALL
    elif tokens > 128 and (card.major == 10 or number_of_tiles(rows, tokens, (256, 128)) < 0.75 * card.units):
        cut = _MEDIUM  # sm_100: INT8 is `mma.sync` there, and the largest tile spills beside outliers
    else:
        cut = next(cut for limit, cut in _LARGE if tokens <= limit)
    stages = cut.stages
    while stages > 2 and stages * (cut.bm + cut.bn) * cut.bk + 1024 > card.shared:
        stages -= 1
    return replace(cut, stages=stages)


def microseconds(priced: tuple, tokens: int, rows: int, features: int, units: int, outliers: bool) -> float:
    """What a product takes: the multiprocessor that has most tiles, in rounds of as many as it works on at once."""
    cut, places, begin, end, alone, shared = priced
    tiles = -(-number_of_tiles(rows, tokens, (cut.bn, cut.bm)) // units)
    rounds, last = divmod(tiles, places[outliers])
    prices = rounds * max(alone, places[outliers] * shared) + (max(alone, last * shared) if last else 0.0)
    return begin + tiles * end + features / 128 * prices


# On an H200: how many tiles a multiprocessor has room for, and with outliers, which take registers; microseconds until the first
# begins, and to end one; of 128 columns of one that is alone, and of each of several. Fitted to 15 cuts at 55 products without
# outliers: what is chosen takes 2.6 % longer than the best
_HOPPER = (
    (Integers(32, 128, 256, 4, 4, True), (1, 1), 3.0, 1.0, 0.251, 0.0),
    (Integers(64, 64, 256, 4, 4, True), (1, 1), 3.0, 1.0, 0.216, 0.0),
    (Integers(64, 64, 128, 4, 5, True), (2, 2), 3.0, 0.5, 0.342, 0.178),
    (Integers(64, 128, 128, 4, 3, True), (3, 2), 3.0, 0.5, 0.682, 0.293),
    (Integers(128, 128, 128, 8, 3, False), (2, 1), 3.0, 2.0, 0.737, 0.418),
    (Integers(128, 128, 256, 8, 3, False), (1, 1), 2.0, 2.5, 0.502, 0.0),
    (Integers(128, 256, 128, 8, 4, False), (1, 1), 3.0, 2.0, 0.859, 0.0),
)
_SMALL = Integers(64, 64, 256, 4, 4, True)
_MEDIUM = Integers(128, 128, 128, 8, 4, False)
_LARGE = (  # up to so many tokens
    (32, Integers(32, 64, 128, 4, 5, True)),
    (64, Integers(64, 64, 128, 4, 5, True)),
    (128, Integers(64, 128, 128, 4, 4, True)),
    (2**62, Integers(128, 256, 128, 8, 4, False)),
)
_SMALL_TILES = (
    (32, Integers(32, 64, 32, 4, 4, True)),
    (2**62, Integers(64, 128, 32, 8, 3, True)),
)
