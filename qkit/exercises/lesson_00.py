"""Exercises of lesson 00: bytes, perplexity, and reading a table."""

import math

import qkit
from qkit.engine.plan import Plan
from qkit.exercises.core import Exercise
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

EXERCISES = (
    Exercise(
        name="00.1",
        hints=(
            "How many bytes is one number of 32 bits? Of 4 bits?",
            "bits / 8 is the bytes of one number; 10^6 bytes are a megabyte.",
        ),
        solution=megabytes,
        cases=((1_000_000, 8), (14_162_304, 32), (14_162_304, 4), (7_000_000_000, 4.125), (3, 16)),
        mistakes=(
            (lambda n, b: n * b / 1e6, "that counts megabits: 8 bits are one byte."),
            (lambda n, b: n * b / 8, "that counts bytes: divide by 10^6 for megabytes."),
            (lambda n, b: n * b / 8 / 2**20, "that counts mebibytes of 2^20 bytes; this table uses megabytes of 10^6."),
            (lambda n, b: n * b / 8 / 1e9, "that counts gigabytes: a megabyte is 10^6 bytes."),
        ),
    ),
    Exercise(
        name="00.2",
        hints=(
            "Perplexity of a model that gives every right token p = 1/10 is 10.",
            "Take -log of each probability, then their mean, then exp.",
        ),
        solution=perplexity,
        cases=(([0.1, 0.1],), ([0.5, 0.25, 0.125],), ([1.0, 0.01],), ([0.9],)),
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
        hints=(
            "First keep the rows that fit, then choose among them.",
            "min(..., key=lambda row: row[2]) over rows that fit.",
        ),
        solution=best_that_fits,
        cases=((ROWS, 12.0), (ROWS, 9.9), (ROWS, 100.0), (ROWS, 7.0), (ROWS[::-1], 16.0)),
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
