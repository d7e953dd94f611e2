"""Exercises of lesson 00: bytes, perplexity, and reading a table."""

import math

import qkit
from qkit.engine.plan import Plan
from qkit.exercises.core import Exercise
from qkit.exercises.draws import Draw
from qkit.exercises.open_task import OpenTask


def megabytes(parameters: int, bits: float) -> float:
    """Megabytes (10^6 bytes) that `parameters` numbers of `bits` bits take."""
    return parameters * bits / 8 / 1e6


def perplexity(probabilities: list[float]) -> float:
    """exp of the mean of -log p, where p is the probability the model gave to each token that really came next."""
    return math.exp(sum(-math.log(p) for p in probabilities) / len(probabilities))


def best_that_fits(rows: list[tuple[str, float, float]], budget: float) -> str:
    """The name of the row (name, megabytes, perplexity) with the lowest perplexity among those of at most `budget` MB."""
    return min((row for row in rows if row[1] <= budget), key=lambda row: row[2])[0]


def megabytes_and_kl(plan: Plan) -> tuple[float, float]:
    """Megabytes on disk, and KL to the original on six tales, of bookworm quantized by a scheme, or by a plan."""
    row = qkit.compare("bookworm-14m", [plan], qkit.passages("tales")[::6]).rows[1]
    return row.disk_bytes / 1e6, row.kl


ROWS = [
    ("D", 56.6, 6.4),
    ("G", 15.9, 6.5),
    ("E", 9.9, 8.0),
    ("A", 9.6, 10.5),
    ("C", 10.5, 9.0),
    ("F", 6.8, 1900.0),
    ("B", 8.1, 4000.0),
]


def _table(d: Draw) -> tuple[list, float]:
    """Rows of which no two are alike in anything, and a budget that one of them meets, now and then exactly."""
    sizes, losses = ([d.size(1, 100) for _ in range(d.whole(1, 9))] for _ in range(2))
    rows = [(f"{d.whole(0, 99)}-{at}", size, loss) for at, (size, loss) in enumerate(zip(sizes, losses, strict=False))]
    return rows, d.one_of(*(row[1] for row in rows)) * d.one_of(1, 1.01)


EXERCISES = (
    Exercise(
        name="00.1",
        minutes=3,
        difficulty="easy",
        hints=(
            "How many bytes is one number of 32 bits? Of 4 bits?",
            "Go from bits to bytes first, then from bytes to megabytes; a bit is an eighth of a byte, a byte 10^-6 MB.",
        ),
        solution=megabytes,
        cases=((1_000_000, 8), (14_162_304, 32), (14_162_304, 4), (7_000_000_000, 4.125), (3, 16)),
        edges={"no parameters": (0, 4), "half a byte too many": (3, 4), "a fraction of a bit": (1_000_003, 1.58)},
        rtol=1e-7,
        draw=lambda d: (d.whole(1, 10**10), d.one_of(1, 2, 3, 4, 8, 16, 32, d.real(1, 9))),
        mistakes=(
            (lambda n, b: n * b / 1e6, "that counts megabits: 8 bits are one byte."),
            (lambda n, b: n * b / 8, "that counts bytes: divide by 10^6 for megabytes."),
            (lambda n, b: n * b / 8 / 2**20, "that counts mebibytes of 2^20 bytes; this table uses megabytes of 10^6."),
            (lambda n, b: n * b / 8 / 1e9, "that counts gigabytes: a megabyte is 10^6 bytes."),
        ),
    ),
    Exercise(
        name="00.2",
        minutes=5,
        difficulty="easy",
        hints=(
            "Perplexity of a model that gives every right token p = 1/10 is 10.",
            "Take -log of each probability, then their mean, then exp.",
        ),
        solution=perplexity,
        cases=(([0.1, 0.1],), ([0.5, 0.25, 0.125],), ([1.0, 0.01],), ([0.9],)),
        edges={"one token": ([0.03],), "tokens that are certain": ([1.0, 1.0, 1.0],)},
        draw=lambda d: ([d.size(0.01, 1.0) for _ in range(d.whole(1, 60))],),
        mistakes=(
            (lambda ps: len(ps) / sum(ps), "that is one over the mean probability; average the logarithms, not the p."),
            (
                lambda ps: sum(1 / p for p in ps) / len(ps),
                "that is the mean of 1/p; average the logarithms, then take exp.",
            ),
            (
                lambda ps: math.exp(sum(-math.log(p) for p in ps)),
                "that sums the -log p; divide by the number of tokens.",
            ),
            (
                lambda ps: math.exp(sum(math.log(p) for p in ps) / len(ps)),
                "that is the (geometric) mean of p: the minus is missing.",
            ),
            (
                lambda ps: sum(-math.log(p) for p in ps) / len(ps),
                "that is the mean -log p, the cross-entropy; take its exp.",
            ),
            (
                lambda ps: math.exp(sum(-math.log2(p) for p in ps) / len(ps)),
                "that mixes log2 with exp; use the natural logarithm, or 2 to the power.",
            ),
        ),
    ),
    Exercise(
        name="00.3",
        minutes=5,
        difficulty="easy",
        hints=(
            "First keep the rows that fit, then choose among them.",
            "min takes key=, a function that says of a row what is compared; the model of exactly the budget fits.",
        ),
        solution=best_that_fits,
        cases=((ROWS, 12.0), (ROWS, 9.9), (ROWS, 100.0), (ROWS, 7.0), (ROWS[::-1], 16.0)),
        edges={
            "one row": ([("X", 5.0, 7.0)], 5.0),
            "a row of exactly the budget": ([("X", 5.0, 7.0), ("Y", 6.0, 6.0), ("Z", 6.5, 5.0)], 6.0),
            "a larger model that is worse": ([("X", 6.0, 7.0), ("Y", 5.0, 6.0)], 8.0),
        },
        draw=_table,
        mistakes=(
            (
                lambda rows, budget: min(rows, key=lambda r: r[2])[0],
                "that ignores the budget: keep the rows that fit first.",
            ),
            (
                lambda rows, budget: min(r for r in rows if r[1] <= budget)[0],
                "min of whole rows compares the names first: say key=lambda row: row[2].",
            ),
            (
                lambda rows, budget: min(rows, key=lambda r: r[1])[0],
                "that takes the smallest model; the budget is met, now quality counts: the lowest perplexity.",
            ),
            (
                lambda rows, budget: max((r for r in rows if r[1] <= budget), key=lambda r: r[2])[0],
                "that takes the highest perplexity; lower is better.",
            ),
            (
                lambda rows, budget: max((r for r in rows if r[1] <= budget), key=lambda r: r[1])[0],
                "that takes the largest model that fits; a larger file is not always the better model.",
            ),
            (
                lambda rows, budget: min((r for r in rows if r[1] < budget), key=lambda r: r[2])[0],
                "a model of exactly the budget fits too: at most is <=, not <.",
            ),
        ),
    ),
)

OPEN = OpenTask("00", megabytes_and_kl, budget=10.47, to_beat=0.0683, cost="MB", loss="nats of KL", digits=4)
