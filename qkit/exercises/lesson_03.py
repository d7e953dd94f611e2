"""Exercises of lesson 03: INT8 times INT8, outlier columns, and rounding to a table."""

import torch

from qkit.exercises.core import Exercise
from qkit.exercises.draws import Draw, off_halves
from qkit.exercises.open_task import OpenTask, percent_off, the_layer

OPEN_BLOCK = 64  # weights of the open task that share an absmax


def int8_product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """x wᵀ in INT8: codes round(127 x / absmax), a scale for each token of x [tokens, in], one for each row of w [out, in].

    The sum runs over codes; both scales are multiplied on afterwards; a row of zeros has codes 0. Returns [tokens, out].
    """
    sx = x.abs().amax(1, keepdim=True) / 127
    sw = w.abs().amax(1, keepdim=True) / 127
    sx[sx == 0], sw[sw == 0] = 1, 1
    return (torch.round(x / sx) @ torch.round(w / sw).T) * sx * sw.T


def llm_int8(x: torch.Tensor, w: torch.Tensor, threshold: float) -> torch.Tensor:
    """LLM.int8(): columns of x with any |x| >= threshold are multiplied in float, the others by `int8_product`.

    The codes of w are made once, before any x is seen: its outlier columns count in its scales.
    """
    outlier = (x.abs() >= threshold).any(0)
    return x[:, outlier] @ w[:, outlier].T + int8_product(x * ~outlier, w)


def round_to_table(w: torch.Tensor, table: torch.Tensor, block_size: int) -> torch.Tensor:
    """w [n] in blocks of `block_size`: each divided by its absmax, put on the nearest of `table`, and multiplied back."""
    blocks = w.reshape(-1, block_size)
    absmax = blocks.abs().amax(1, keepdim=True)
    levels = blocks / torch.where(absmax == 0, 1, absmax)  # of zeros, whose level is multiplied by 0 again
    codes = (levels[..., None] - table).abs().argmin(-1)
    return (table[codes] * absmax).reshape(w.shape)


def sixteen_levels(answer: torch.Tensor | list[float]) -> tuple[float, float]:
    """What a table of 16 levels, ascending, makes of a layer in blocks of 64 that are divided by their absmax.

    Returns:
        stored bits a weight, the absmax in float32, and the error in percent.

    Raises:
        ValueError: another number of levels, or levels that do not ascend.
    """
    table = torch.as_tensor(answer, dtype=torch.float32)
    if table.shape != (16,) or not (table.diff() > 0).all():
        raise ValueError(f"the table is {list(table.shape)}; give 16 levels, each above the one before")
    weight = the_layer()
    blocks = weight.reshape(-1, OPEN_BLOCK)
    absmax = blocks.abs().amax(1, keepdim=True)
    codes = torch.bucketize(blocks / absmax, (table[:-1] + table[1:]) / 2)  # the nearest level
    return 4 + 32 / OPEN_BLOCK, percent_off(weight, (table[codes] * absmax).reshape(weight.shape))


def _product(x, w, sx, sw, rounding=torch.round):
    return (rounding(x / sx) @ rounding(w / sw).T) * sx * sw.T


def _reach(t: torch.Tensor, dim: int | None, steps: int = 127) -> torch.Tensor:
    return (t.abs().amax(dim, keepdim=True) if dim is not None else t.abs().max().reshape(1, 1)) / steps


def _mixed(x, w, big):
    return (x * big) @ w.T + int8_product(x * ~big, w)


def _without_their_columns(x, w, threshold):
    outlier = (x.abs() >= threshold).any(0)
    return x[:, outlier] @ w[:, outlier].T + int8_product(x[:, ~outlier], w[:, ~outlier])


def _scaled_before(x, w, threshold):
    outlier = (x.abs() >= threshold).any(0)
    sx, sw = _reach(x, 1), _reach(w, 1)
    return x[:, outlier] @ w[:, outlier].T + _product(x * ~outlier, w, sx, sw)


def _blocks(w, table, size, reach=None, divide=True, back=True):
    blocks = w.reshape(-1, size)
    reach = blocks.abs().amax(1, keepdim=True) if reach is None else reach(blocks)
    codes = ((blocks / reach if divide else blocks)[..., None] - table).abs().argmin(-1)
    return (table[codes] * (reach if back else 1)).reshape(w.shape)


def _not_above(w, table, size):
    blocks = w.reshape(-1, size)
    absmax = blocks.abs().amax(1, keepdim=True)
    codes = torch.searchsorted(table, blocks / absmax, right=True) - 1
    return (table[codes.clamp(0)] * absmax).reshape(w.shape)


_G = torch.Generator().manual_seed(0)
_X, _W = torch.randn(5, 12, generator=_G), torch.randn(7, 12, generator=_G) * torch.linspace(0.3, 3, 7)[:, None]
_LOUD = _X.clone()
_LOUD[:, 3] *= 40
_LOUD[2, 8] = 6.0
_TABLE = torch.tensor([-1.0, -0.5, -0.2, 0.0, 0.1, 0.3, 0.6, 1.0])
_V = torch.randn(24, generator=_G) * torch.linspace(0.2, 4, 24)


def _activations_and_weight(d: Draw) -> tuple[torch.Tensor, torch.Tensor]:
    features = d.whole(2, 20)
    found = []
    for rows in (d.whole(1, 6), d.whole(1, 6)):
        t = d.weight(rows, features)
        found.append(off_halves(t, t.abs().amax(1, keepdim=True) / 127) / t.std())
    return found[0], found[1]


def _numbers_and_table(d: Draw) -> tuple[torch.Tensor, torch.Tensor, int]:
    size = d.whole(2, 9)
    inner = d.normal(d.whole(2, 12)).clamp(-0.99, 0.99)
    return d.weight(d.whole(1, 5), size).flatten(), torch.cat([torch.tensor([-1.0, 1.0]), inner]).sort().values, size


EXERCISES = (
    Exercise(
        name="03.1",
        minutes=8,
        difficulty="medium",
        hints=(
            "The reach of a token is the largest magnitude in its row; keepdim=True makes it [tokens, 1]. And for the rows of w?",
            "codes = torch.round(x / (reach / 127)): no clamp is needed, none is larger than 127.",
            "The sum is [tokens, out]: which shapes must the two kinds of scales have, to multiply it? And what is 0 / 0?",
        ),
        solution=int8_product,
        cases=(
            (torch.tensor([[1.0, -2.0], [0.3, 0.1]]), torch.tensor([[0.5, 0.7], [-3.0, 1.0], [0.2, 0.1]])),
            (_X, _W),
            (_LOUD, _W),
        ),
        edges={
            "one token": (_X[:1], _W),
            "one row of the weight": (_X, _W[:1]),
            "a token of zeros": (_X * torch.tensor([1.0, 0, 1, 1, 1])[:, None], _W),
            "a row of zeros in the weight": (_X, _W * (torch.arange(7) != 2)[:, None]),
            "positive numbers only": (_X.abs(), _W.abs()),
            "very small numbers": (_X * 1e-6, _W * 1e-3),
            "numbers that lie halfway": (
                torch.tensor([[127.0, 0.5, -1.5, 2.5], [-127.0, 4.5, 0.5, -0.5]]),
                torch.tensor([[127.0, 10.0, 2.0, -3.0], [1.5, -127.0, 0.5, 3.0]]),
            ),
            "as many tokens as rows": (_X[:4], _W[:4]),
        },
        draw=_activations_and_weight,
        mistakes=(
            (
                lambda x, w: _product(x, w, _reach(x, None), _reach(w, 1)),
                "one scale serves all tokens there; each token (row of x) has its own.",
            ),
            (
                lambda x, w: _product(x, w, _reach(x, 1), _reach(w, None)),
                "one scale serves the whole weight there; each row of w has its own.",
            ),
            (
                lambda x, w: _product(x, w, _reach(x, None), _reach(w, None)),
                "one scale serves a whole tensor there; each row of x and each row of w has its own.",
            ),
            (
                lambda x, w: _product(x, w, _reach(x, 1, 128), _reach(w, 1, 128)),
                "the step is absmax / 127: with 128 the largest number would need the code 128, which INT8 has not.",
            ),
            (
                lambda x, w: _product(x, w, _reach(x, 1), _reach(w, 1), torch.trunc),
                "that truncates: round to the nearest.",
            ),
            (
                lambda x, w: torch.round(x / _reach(x, 1)) @ torch.round(w / _reach(w, 1)).T,
                "that is the integer sum: multiply it by the scale of the token and the scale of the row.",
            ),
            (
                lambda x, w: torch.round(x / _reach(x, 1)) * _reach(x, 1) @ w.T,
                "only x is quantized there; the weight needs its codes too.",
            ),
            (
                lambda x, w: x @ (torch.round(w / _reach(w, 1)) * _reach(w, 1)).T,
                "only w is quantized there; the activations need their codes too.",
            ),
            (lambda x, w: x @ w.T, "that is the product in float: nothing is quantized."),
        ),
    ),
    Exercise(
        name="03.2",
        minutes=8,
        difficulty="medium",
        hints=(
            "(x.abs() >= threshold) says it of each number; .any(0) says it of each column.",
            "Two products, one in float and one by int8_product; they are added. Which columns does each take?",
            "A mask of columns picks them, x[:, mask], or sets the others to 0, x * mask: one for each part.",
        ),
        solution=llm_int8,
        cases=((_LOUD, _W, 6.0), (_X, _W, 2.0), (_LOUD, _W, 1.2)),
        edges={
            "one token": (_LOUD[2:3], _W, 6.0),
            "no outlier": (_X, _W, 50.0),
            "nothing but outliers": (_X, _W, 1e-3),
            "an outlier below 0": (-_LOUD.abs(), _W, 6.0),
            "a number that equals the threshold": (torch.tensor([[1.0, -6.0, 0.5]]), _W[:, :3], 6.0),
        },
        draw=lambda d: (*_activations_and_weight(d), d.real(0.5, 3)),
        mistakes=(
            (
                lambda x, w, t: int8_product(x, w),
                "nothing is kept in float there; the outlier columns must be.",
            ),
            (
                lambda x, w, t: _mixed(x, w, (x.abs() > t).any(0)),
                "a number that equals the threshold is an outlier: >=, not >.",
            ),
            (
                lambda x, w, t: _mixed(x, w, (x >= t).any(0)),
                "outliers have both signs: take the magnitude, x.abs().",
            ),
            (
                lambda x, w, t: _mixed(x, w, (x.abs() >= t).all(0)),
                "one large number makes a column an outlier: any(0), not all(0).",
            ),
            (
                lambda x, w, t: _mixed(x, w, x.abs() >= t),
                "that takes out single numbers; a product takes out whole columns: .any(0).",
            ),
            (
                lambda x, w, t: x[:, (x.abs() >= t).any(0)] @ w[:, (x.abs() >= t).any(0)].T + int8_product(x, w),
                "the outlier columns are counted twice: the INT8 part must leave them out.",
            ),
            (
                _scaled_before,
                "the scales were taken with the outliers still in: take them of what is left.",
            ),
            (
                lambda x, w, t: int8_product(x * ~(x.abs() >= t).any(0), w),
                "the outlier columns are thrown away: multiply them in float, and add.",
            ),
            (
                _without_their_columns,
                "w is quantized once, before any x is seen: set the outlier columns of x to 0, and give int8_product all of w.",
            ),
        ),
    ),
    Exercise(
        name="03.3",
        minutes=10,
        difficulty="medium",
        hints=(
            "w.reshape(-1, block_size) has a block in each row; amax(1, keepdim=True) of its magnitudes is the absmax.",
            "With an axis more, blocks[..., None], subtracting the table gives every distance at once. Which is least?",
            "The code is a place in the table; what it stands for has to grow to its block's size again. And what is 0 / 0?",
        ),
        solution=round_to_table,
        cases=(
            (torch.tensor([0.4, -0.1, 2.0, 0.5]), torch.tensor([-1.0, 0.0, 0.3, 1.0]), 2),
            (_V, _TABLE, 8),
            (_V, _TABLE, 24),
        ),
        edges={
            "a block of zeros": (torch.cat([_V[:8], torch.zeros(8)]), _TABLE, 8),
            "one block": (_V[:4], _TABLE, 4),
            "blocks of one": (_V[:5], _TABLE, 1),
            "positive numbers only": (_V.abs(), _TABLE, 6),
            "an outlier": (torch.cat([_V[:11], torch.tensor([-90.0])]), _TABLE, 6),
            "very small numbers": (_V * 1e-6, _TABLE, 8),
        },
        draw=_numbers_and_table,
        mistakes=(
            (
                lambda w, t, b: _blocks(w, t, len(w)),
                "one absmax serves all of w there; each block has its own.",
            ),
            (
                lambda w, t, b: _blocks(w, t, b, divide=False),
                "the table reaches from -1 to 1: divide each block by its absmax before you look.",
            ),
            (
                lambda w, t, b: _blocks(w, t, b, back=False),
                "those are the levels, between -1 and 1: multiply them by the absmax of their block.",
            ),
            (
                lambda w, t, b: _blocks(w, t, b, lambda blocks: blocks.amax(1, keepdim=True)),
                "the largest magnitude, not the largest number: .abs() is missing.",
            ),
            (
                lambda w, t, b: _blocks(w, t, b, lambda blocks: blocks.std(1, keepdim=True)),
                "the blocks are divided by their standard deviation; divide by the largest magnitude.",
            ),
            (_not_above, "that takes the next level below; take the nearest, of both sides."),
            (
                lambda w, t, b: _blocks(w, t, b).reshape(-1, b),
                "the numbers are right; give them the shape of w again.",
            ),
            (
                lambda w, t, b: torch.round(w),
                "that rounds to whole numbers: the nearest level of the table is asked for.",
            ),
        ),
    ),
)

OPEN = OpenTask("03", sixteen_levels, budget=4.5, to_beat=9.18, cost="bits a weight", loss="% error")
