"""Exercises of lesson 02: what a weight really costs, packing, and groups."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from qkit.exercises.core import Exercise
from qkit.exercises.draws import Draw, off_halves
from qkit.exercises.open_task import OpenTask, check_stored, percent_off, the_layer


def bits_per_weight(bits: int, group_size: int, symmetric: bool) -> float:
    """Stored bits of a weight: its code, and its share of a 16-bit scale and (unless symmetric) a b-bit zero point."""
    return bits + (16 + (0 if symmetric else bits)) / group_size


def pack_int4(codes: torch.Tensor) -> torch.Tensor:
    """Codes 0 .. 15, [n], into ceil(n / 2) bytes: the first of each pair in the low four bits; an odd end is filled by 0."""
    pairs = F.pad(codes.long(), (0, len(codes) % 2)).reshape(-1, 2)
    return (pairs[:, 0] | (pairs[:, 1] << 4)).to(torch.uint8)


def fake_quantize_groups(w: torch.Tensor, bits: int, group_size: int) -> torch.Tensor:
    """Quantize w [out, in] symmetrically and come back: every `group_size` weights along a row share a scale.

    The scale is s = absmax / (2^(bits-1) - 1), 1 for a group of zeros, and the codes are round(w / s).
    """
    groups = w.reshape(len(w), -1, group_size)
    scale = groups.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    scale[scale == 0] = 1
    return (torch.round(groups / scale) * scale).reshape(w.shape)


def pack_int3(codes: torch.Tensor) -> torch.Tensor:
    """Codes 0 .. 7, [n], as one stream of bits, lowest bits first, in ceil(3 n / 8) bytes; zeros fill the last."""
    bits = (codes[:, None] >> torch.arange(3)) & 1
    octets = F.pad(bits.flatten(), (0, -3 * len(codes) % 8)).reshape(-1, 8)
    return (octets << torch.arange(8)).sum(1).to(torch.uint8)


def stored_and_error(answer: Callable) -> tuple[float, float] | None:
    """Stored bits a weight, and the error in percent, of what `answer` makes of a layer [N, K].

    It gives a stored weight (`qkit.quantize_tensor`, `qkit.QTensor.from_codes`); None where it gives None.

    Raises:
        TypeError: it gives something else, whose bits cannot be counted.
    """
    weight = the_layer()
    q = answer(weight.clone())
    if q is None:
        return None
    check_stored(q)
    return q.bits_per_weight, percent_off(weight, q.dequantize())


def _pairs(codes: torch.Tensor) -> torch.Tensor:
    return F.pad(codes.long(), (0, len(codes) % 2)).reshape(-1, 2)


def _stream(codes: torch.Tensor, width: int = 3, turn_code: bool = False, turn_byte: bool = False) -> torch.Tensor:
    bits = (codes.long()[:, None] >> torch.arange(width)) & 1
    bits = (bits.flip(1) if turn_code else bits).flatten()
    octets = F.pad(bits, (0, -len(bits) % 8)).reshape(-1, 8)
    return ((octets.flip(1) if turn_byte else octets) << torch.arange(8)).sum(1).to(torch.uint8)


def _two_a_byte(codes: torch.Tensor) -> torch.Tensor:
    pairs = _pairs(codes)
    return (pairs[:, 0] | (pairs[:, 1] << 3)).to(torch.uint8)


def _whole_bytes_only(codes: torch.Tensor) -> torch.Tensor:
    return pack_int3(codes)[: 3 * len(codes) // 8]


def _whole_eights(codes: torch.Tensor) -> torch.Tensor:
    return pack_int3(F.pad(codes, (0, -len(codes) % 8)))


def _high_first_unpadded(codes: torch.Tensor) -> torch.Tensor:
    return ((codes[0::2] << 4) | codes[1::2]).to(torch.uint8)


def _with_reach(
    w: torch.Tensor, group_size: int, reach: float, q_min: int = -999, q_max: int = 999, rounding=torch.round
) -> torch.Tensor:
    groups = w.reshape(len(w), -1, group_size)
    scale = groups.abs().amax(-1, keepdim=True) / reach
    return (rounding(groups / scale).clamp(q_min, q_max) * scale).reshape(w.shape)


def _codes(w: torch.Tensor, bits: int, group_size: int) -> torch.Tensor:
    groups = w.reshape(len(w), -1, group_size)
    return torch.round(groups / (groups.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1))).reshape(w.shape)


_W = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.5, 4, 8)[:, None]
_V = torch.randn(12, 12, generator=torch.Generator().manual_seed(1)) * torch.linspace(3, 0.2, 12)


def _weight_in_groups(d: Draw) -> tuple[torch.Tensor, int, int]:
    """A weight whose groups are of unlike sizes, with a group of zeros now and then, no number nearly halfway."""
    size, bits = d.whole(2, 9), d.whole(2, 8)
    groups = d.weight(d.whole(1, 5), size * d.whole(1, 4)).unflatten(1, (-1, size))
    if d.whole(0, 2) == 0:
        groups[0, -1] = 0
    reach = groups.abs().amax(-1, keepdim=True).clamp(min=1e-9)
    return off_halves(groups, reach / (2 ** (bits - 1) - 1)).flatten(1), bits, size


EXERCISES = (
    Exercise(
        name="02.1",
        minutes=4,
        difficulty="easy",
        hints=(
            "A group of g weights has one scale of 16 bits: how much is that for each of them?",
            "What a group stores beside its codes, divided by its weights, comes on top of the bits of a code.",
        ),
        solution=bits_per_weight,
        cases=((4, 128, True), (4, 128, False), (4, 16, False), (3, 64, False), (2, 32, True), (8, 4096, False)),
        edges={
            "a group of one": (4, 1, False),
            "a symmetric group of one": (8, 1, True),
            "a whole row": (3, 11008, False),
        },
        draw=lambda d: (d.whole(2, 8), d.whole(1, 300), d.one_of(True, False)),
        rtol=1e-6,
        mistakes=(
            (
                lambda b, g, sym: float(b),
                "the scales are missing: each group stores one of 16 bits, shared by its g weights.",
            ),
            (lambda b, g, sym: b + (16 + (0 if sym else b)) // g, "// drops the fraction: divide with /."),
            (
                lambda b, g, sym: b + (16 + (b if sym else 0)) / g,
                "that is the wrong way round: it is the asymmetric group that stores a zero point.",
            ),
            (
                lambda b, g, sym: b + 16 / g,
                "the zero points are missing: unless symmetric, each group stores one of b bits.",
            ),
            (lambda b, g, sym: b + (16 + b) / g, "a symmetric group stores no zero point."),
            (
                lambda b, g, sym: b + (32 + (0 if sym else b)) / g,
                "qkit stores scales in 16 bits, not 32 (and so do most checkpoints).",
            ),
            (
                lambda b, g, sym: b + (16 + (0 if sym else 16)) / g,
                "a zero point is a code: it takes b bits, not 16.",
            ),
        ),
    ),
    Exercise(
        name="02.2",
        minutes=8,
        difficulty="medium",
        hints=(
            "codes[0::2] are the first of each pair. What moves the second into the high half of its byte?",
            "x << 4 moves, | joins. With an odd length the last code has no partner: give it one first.",
        ),
        solution=pack_int4,
        cases=(
            (torch.tensor([1, 2]),),
            (torch.tensor([15, 0, 7, 9]),),
            (torch.tensor([3, 4, 5]),),
            (torch.tensor([12]),),
        ),
        edges={
            "the largest codes": (torch.full((6,), 15),),
            "zeros": (torch.zeros(5, dtype=torch.int64),),
            "one code": (torch.tensor([9]),),
        },
        draw=lambda d: (d.integers(0, 15, d.whole(1, 40)),),
        mistakes=(
            (
                lambda c: (_pairs(c)[:, 1] | (_pairs(c)[:, 0] << 4)).to(torch.uint8),
                "the first code of each pair belongs in the low four bits; yours is in the high ones.",
            ),
            (
                lambda c: (_pairs(c)[:, 0] | (_pairs(c)[:, 1] << 3)).to(torch.uint8),
                "the second code is shifted by 3 and overlaps the first; four bits need a shift of 4.",
            ),
            (
                lambda c: (_pairs(c[: len(c) // 2 * 2])[:, 0] | (_pairs(c[: len(c) // 2 * 2])[:, 1] << 4)).to(
                    torch.uint8
                ),
                "the last code of an odd length is lost: fill the end with a 0.",
            ),
            (
                _high_first_unpadded,
                "the first code of each pair belongs in the low four bits; yours is in the high ones.",
            ),
            (
                lambda c: (c[0::2] | (c[1::2] << 4)).to(torch.uint8),
                "with an odd length codes[1::2] is one shorter, and torch repeats its only value or raises: append a 0 first.",
            ),
            (lambda c: pack_int4(c).long(), "the numbers are right; return bytes: .to(torch.uint8)."),
            (lambda c: c.to(torch.uint8), "that still takes a byte a code: two codes share one."),
            (
                lambda c: (c[: (len(c) + 1) // 2] | (F.pad(c, (0, len(c) % 2))[(len(c) + 1) // 2 :] << 4)).to(
                    torch.uint8
                ),
                "that joins the first half with the second half; neighbours share a byte here.",
            ),
        ),
    ),
    Exercise(
        name="02.3",
        minutes=10,
        difficulty="medium",
        hints=(
            "Reshape [out, in] to [out, in / g, g], then the last axis shares a scale.",
            "amax(-1, keepdim=True) keeps the axis, so that dividing broadcasts. And what is 0 / 0?",
        ),
        solution=fake_quantize_groups,
        cases=((_W, 4, 4), (_W, 3, 2), (_V, 4, 4), (_V, 8, 6)),
        edges={
            "a group of zeros": (torch.tensor([[0.0, 0.0, 1.0, -0.4], [0.3, -2.0, 0.0, 0.0]]), 4, 2),
            "a weight of zeros": (torch.zeros(2, 8), 4, 4),
            "numbers that lie halfway": (
                torch.tensor([[1.75, 0.125, 0.375, 0.625, -0.125, -0.375, -0.625, 0.875]]),
                4,
                8,
            ),
            "one row": (_W[:1], 3, 4),
            "one group a row": (_W, 4, 8),
            "groups of one": (_W[:2], 4, 1),
            "positive numbers only": (_W.abs() + 0.1, 4, 4),
            "one outlier": (_W + 50 * torch.eye(8)[2] * torch.eye(8)[:, 3:4], 4, 4),
            "very small numbers": (_W * 1e-6, 4, 4),
        },
        draw=_weight_in_groups,
        mistakes=(
            (
                lambda w, b, g: fake_quantize_groups(w.reshape(1, -1), b, w.numel()).reshape(w.shape),
                "one scale serves the whole tensor there; every group_size weights of a row get their own.",
            ),
            (
                lambda w, b, g: fake_quantize_groups(w, b, w.shape[1]),
                "one scale serves a whole row there; every group_size weights of the row get their own.",
            ),
            (
                lambda w, b, g: fake_quantize_groups(w.T, b, g).T,
                "the groups run along the outputs (down a column); they run along a row, the inputs.",
            ),
            (
                lambda w, b, g: _with_reach(w, g, (2**b - 1) / 2),
                "that is lesson 01's symmetric scale, with its clamp missing; here s = max|w| / (2^(bits-1) - 1).",
            ),
            (
                lambda w, b, g: _with_reach(w, g, (2**b - 1) / 2, -(2 ** (b - 1)), 2 ** (b - 1) - 1),
                "that is lesson 01's symmetric scale, right there; here s = max|w| / (2^(bits-1) - 1).",
            ),
            (
                lambda w, b, g: _with_reach(w, g, 2 ** (b - 1), -(2 ** (b - 1)), 2 ** (b - 1) - 1),
                "the scale divides by 2^(bits-1), and the largest positive weight is clamped; divide by 2^(bits-1) - 1.",
            ),
            (
                lambda w, b, g: _with_reach(w, g, 2 ** (b - 1) - 1, rounding=torch.trunc),
                "that truncates: round to the nearest.",
            ),
            (
                lambda w, b, g: fake_quantize_groups(w, b, g).reshape(len(w), -1, g),
                "the numbers are right; give them the shape of w again.",
            ),
            (
                lambda w, b, g: _with_reach(w, g, 2 ** (b - 1)),
                "the scale divides by 2^(bits-1), whose positive code does not exist; divide by 2^(bits-1) - 1.",
            ),
            (
                _codes,
                "those are the codes; multiply them by their scales to come back to weights.",
            ),
        ),
    ),
    Exercise(
        name="02.4",
        minutes=15,
        difficulty="hard",
        hints=(
            "Write the bits of two codes on paper, then of three. Which code is the first that lies in two bytes?",
            "Forget bytes at first: make one row of all bits, three a code. x >> i & 1 is bit i of x.",
            "How long must that row be, before it can be cut into eights? And what is bit i of a byte worth?",
        ),
        solution=pack_int3,
        cases=(
            (torch.tensor([5]),),
            (torch.tensor([1, 2]),),
            (torch.tensor([1, 2, 3]),),
            (torch.tensor([1, 2, 3, 4, 5, 6, 7, 0]),),
            (torch.tensor([7, 0, 4, 1, 6, 3, 3, 5, 2, 7]),),
        ),
        edges={
            "the largest codes": (torch.full((11,), 7),),
            "zeros": (torch.zeros(5, dtype=torch.int64),),
            "no codes": (torch.zeros(0, dtype=torch.int64),),
            "codes that come as bytes": (torch.tensor([7, 6, 5, 4, 3, 2, 1], dtype=torch.uint8),),
            "sixteen codes, six bytes": (torch.arange(16) % 8,),
        },
        draw=lambda d: (d.integers(0, 7, d.whole(1, 60)),),
        mistakes=(
            (
                lambda c: _stream(c, turn_code=True),
                "the bits of each code are turned round: its lowest bit comes first.",
            ),
            (
                lambda c: _stream(c, turn_byte=True),
                "each byte is filled from its high end: the first bit of the stream is a byte's lowest, worth 1.",
            ),
            (
                lambda c: _stream(c, turn_code=True, turn_byte=True),
                "the stream runs from the highest bit to the lowest: here the lowest bit of the first code is a byte's lowest.",
            ),
            (
                lambda c: _stream(c, width=4),
                "that gives each code four bits; three are enough, and the next code begins right behind them.",
            ),
            (
                _two_a_byte,
                "that puts two codes into a byte and leaves two bits empty; here a code may lie in two bytes.",
            ),
            (_whole_bytes_only, "the last bits are lost where they do not fill a byte: fill it up with zeros."),
            (
                _whole_eights,
                "those are bytes for whole eights of codes; ceil(3 n / 8) bytes hold n codes, so a few zeros are too many.",
            ),
            (lambda c: c.to(torch.uint8), "that still takes a byte a code."),
            (lambda c: pack_int3(c).long(), "the numbers are right; return bytes: .to(torch.uint8)."),
        ),
    ),
)

OPEN = OpenTask("02", stored_and_error, budget=4.15625, to_beat=10.05, cost="bits a weight", loss="% error")
