"""Exercises of lesson 07: what no other method beats, what a memory's speed allows, and a budget of bits, to be spent better."""

import qkit
from qkit.engine.plan import Plan
from qkit.exercises.core import Exercise
from qkit.exercises.draws import Draw
from qkit.exercises.open_task import OpenTask, check_calibration

Row = tuple[str, float, float]


def unbeaten(rows: list[Row]) -> tuple[str, ...]:
    """Names of the rows (name, megabytes, loss) that no other beats, the smallest first; equals do not beat each other."""
    kept = [row for row in rows if not any(_beats(other, row) for other in rows)]
    return tuple(name for name, _, _ in sorted(kept, key=lambda row: row[1]))


def _beats(other: Row, row: Row) -> bool:
    return other[1] <= row[1] and other[2] <= row[2] and other[1:] != row[1:]


def tokens_per_second(parameters: float, bits: float, memory_gb: float, bandwidth_gb: float) -> float:
    """The most tokens a second when each token reads every weight once; 0 if the weights do not fit in the memory."""
    size = parameters * bits / 8e9
    return bandwidth_gb / size if size <= memory_gb else 0.0


def spend(layers: list[tuple[str, int, float, float]], budget: int) -> tuple[str, ...]:
    """Which layers (name, weights, loss at 3 bits, loss at 4) get a 4th bit, in the order they are bought.

    A layer's bit costs as many bits as it has weights. The layer that saves most loss for a bit is bought first; one that
    is too dear for what is left is passed over.
    """
    bought = []
    for name, weights, _, _ in sorted(layers, key=lambda layer: (layer[3] - layer[2]) / layer[1]):
        if weights <= budget:
            bought.append(name)
            budget -= weights
    return tuple(bought)


def bits_and_kl(answer: Plan | tuple) -> tuple[float, float]:
    """Stored bits a weight, and KL to the original on six tales, of bookworm by a plan, or by (plan, calibration).

    Raises:
        ValueError: the calibration contains a tale that judges.
    """
    plan, calibration = answer if isinstance(answer, tuple) else (answer, None)
    tales = qkit.passages("tales")[::6]
    check_calibration(calibration, tales)
    row = qkit.compare("bookworm-14m", [plan], tales, calibration=calibration).rows[1]
    return row.bits_per_weight, row.kl


def _beaten(rows: list[Row]) -> tuple[str, ...]:
    good = set(unbeaten(rows))
    return tuple(name for name, _, _ in sorted(rows, key=lambda row: row[1]) if name not in good)


def _records_from_the_large_end(rows: list[Row]) -> tuple[str, ...]:
    best: list[Row] = []
    for row in sorted(rows, key=lambda row: -row[1]):
        if not best or row[2] < best[-1][2]:
            best.append(row)
    return tuple(name for name, _, _ in best)


def _records_allowing_ties(rows: list[Row]) -> tuple[str, ...]:
    best: list[Row] = []
    for row in sorted(rows, key=lambda row: row[1:]):
        if not best or row[2] <= best[-1][2]:
            best.append(row)
    return tuple(name for name, _, _ in best)


def _buy(layers: list, budget: int, order, stop: bool = False) -> tuple[str, ...]:
    bought = []
    for name, weights, _, _ in sorted(layers, key=order):
        if weights <= budget:
            bought.append(name)
            budget -= weights
        elif stop:
            break
    return tuple(bought)


def _per_bit(layer: tuple) -> float:
    return (layer[3] - layer[2]) / layer[1]


ROWS = [
    ("GPTQ 4", 9.7, 0.22),
    ("RTN 8", 15.9, 0.002),
    ("NF4", 9.7, 0.30),
    ("RTN 3", 8.1, 1.9),
    ("GPTQ 3", 8.15, 0.79),
    ("LLM.int8", 15.95, 0.006),
    ("RTN 2", 6.8, 6.3),
]
TIED = [("a", 5.0, 1.0), ("b", 7.0, 1.0), ("c", 6.0, 0.5), ("d", 6.0, 0.7)]
LAYERS = [
    ("q", 100, 0.30, 0.10),
    ("up", 400, 0.70, 0.20),
    ("down", 400, 0.90, 0.15),
    ("v", 50, 0.25, 0.05),
    ("o", 100, 0.10, 0.04),
]


def _table(d: Draw) -> tuple[list[Row]]:
    """Rows of which some are equal in size or in loss, none in both."""
    drawn = {(float(d.whole(1, 6)), float(d.whole(1, 6))): f"{d.whole(0, 99)}-{at}" for at in range(d.whole(1, 12))}
    return (d.shuffled([(name, size, loss) for (size, loss), name in drawn.items()]),)


def _layers_and_budget(d: Draw) -> tuple[list, int]:
    layers = []
    for at in range(d.whole(1, 9)):
        loss = d.real(0.1, 2)
        layers.append((f"{d.whole(0, 99)}-{at}", d.whole(5, 200), loss, loss * d.real(0, 0.95)))
    return layers, d.whole(0, 600)


EXERCISES = (
    Exercise(
        name="07.1",
        minutes=8,
        difficulty="medium",
        hints=(
            "When does one row beat another? Write that as a function of two rows first.",
            "A row stays if no other beats it: any(...) over all rows. Two rows that are equal in both do not beat each other.",
        ),
        solution=unbeaten,
        cases=((ROWS,), (ROWS[::-1],), (TIED,), (ROWS[:3],)),
        edges={
            "one row": ([("a", 1.0, 2.0)],),
            "two rows that are equal in both": ([("b", 2.0, 1.0), ("a", 2.0, 1.0), ("c", 3.0, 1.0)],),
            "rows of one size": ([("a", 2.0, 3.0), ("b", 2.0, 1.0), ("c", 2.0, 2.0)],),
            "rows of one loss": ([("a", 3.0, 1.0), ("b", 2.0, 1.0), ("c", 4.0, 1.0)],),
            "no row that is beaten": ([("b", 3.0, 1.0), ("a", 2.0, 2.0), ("c", 1.0, 3.0)],),
        },
        draw=_table,
        mistakes=(
            (
                lambda rows: tuple(r[0] for r in sorted(rows, key=lambda r: r[1])),
                "that sorts all of them; leave out each row that a smaller or equal one beats.",
            ),
            (_beaten, "those are the beaten ones; return the others."),
            (lambda rows: unbeaten(rows)[::-1], "the right names, the largest first; begin with the smallest."),
            (lambda rows: (min(rows, key=lambda r: r[2])[0],), "that is only the best of all; the smaller ones trade."),
            (lambda rows: tuple(sorted(unbeaten(rows))), "the right names in alphabetical order; the smallest first."),
            (_records_from_the_large_end, "that walks from the largest down; begin with the smallest row."),
            (_records_allowing_ties, "a larger row that only equals the loss is beaten: lower is <, not <=."),
        ),
    ),
    Exercise(
        name="07.2",
        minutes=5,
        difficulty="easy",
        hints=(
            "How many gigabytes does one token read?",
            "GB a second over GB a token are tokens a second. And first: do the weights fit? Exactly full is not too full.",
        ),
        solution=tokens_per_second,
        cases=(
            (8e9, 4, 8.0, 40.0),
            (7e9, 4.16, 8.0, 50.0),
            (7e9, 16, 8.0, 50.0),
            (175e9, 3.15, 100.0, 50.0),
            (1e9, 8, 1.0, 25.0),
        ),
        edges={
            "weights of exactly the memory": (4e9, 16, 8.0, 10.0),
            "weights that are a little too large": (4e9 + 8, 16, 8.0, 10.0),
            "a memory that is nearly empty": (1e6, 4, 80.0, 2000.0),
        },
        draw=lambda d: (d.size(1e8, 1e11), d.one_of(2, 3.15, 4, 4.5, 8, 16), d.size(0.5, 100), d.size(10, 3000)),
        rtol=1e-6,
        mistakes=(
            (
                lambda p, b, m, w: w / (p * b / 1e9) if p * b / 8e9 <= m else 0.0,
                "that counts gigabits: 8 bits are one byte.",
            ),
            (
                lambda p, b, m, w: p * b / 8e9 / w if p * b / 8e9 <= m else 0.0,
                "that is seconds a token: turn it over.",
            ),
            (
                lambda p, b, m, w: w / (p * b / 8e9),
                "that runs what does not fit: give 0 when the size exceeds the memory.",
            ),
            (
                lambda p, b, m, w: w / (p * b / 8e9) if p * b / 8e9 < m else 0.0,
                "weights of exactly the memory fit too: at most is <=, not <.",
            ),
            (
                lambda p, b, m, w: w / m if p * b / 8e9 <= m else 0.0,
                "that reads the whole memory for each token; only the weights are read.",
            ),
            (
                lambda p, b, m, w: w / (p * b / 8 / 2**30) if p * b / 8 / 2**30 <= m else 0.0,
                "that counts GiB of 2^30 bytes; bandwidths and this course count 10^9.",
            ),
        ),
    ),
    Exercise(
        name="07.3",
        minutes=10,
        difficulty="medium",
        hints=(
            "What does a layer save for each bit that it costs?",
            "Sort by that, and walk through with what is left of the budget: what fits is bought, what does not is passed over.",
        ),
        solution=spend,
        cases=((LAYERS, 500), (LAYERS, 150), (LAYERS, 0), (LAYERS, 2000), (LAYERS[::-1], 650)),
        edges={
            "one layer": ([("a", 10, 0.5, 0.1)], 10),
            "a layer that is one bit too dear": ([("a", 10, 0.5, 0.1)], 9),
            "a layer that costs exactly what is left": ([("a", 10, 0.5, 0.1), ("b", 5, 0.2, 0.1)], 15),
            "a small layer behind one that is too dear": (
                [("a", 90, 0.95, 0.0), ("b", 60, 0.5, 0.0), ("c", 5, 0.03, 0.0)],
                100,
            ),
        },
        draw=_layers_and_budget,
        mistakes=(
            (
                lambda layers, budget: _buy(layers, budget, lambda x: x[3] - x[2]),
                "that buys by loss saved; a large layer costs more bits: divide by its weights.",
            ),
            (
                lambda layers, budget: _buy(layers, budget, lambda x: -x[2]),
                "that goes by the loss at 3 bits; what counts is how much of it the 4th bit saves, for each weight.",
            ),
            (
                lambda layers, budget: _buy(layers, budget, lambda x: -x[2] / x[1]),
                "that goes by the loss at 3 bits for each weight; what counts is what the 4th bit saves of it.",
            ),
            (
                lambda layers, budget: _buy(layers, budget, _per_bit, stop=True),
                "that stops at the first layer that is too dear; pass over it and go on.",
            ),
            (
                lambda layers, budget: _buy(layers, budget, lambda x: -_per_bit(x)),
                "that buys the worst bargains first: the largest saving for a bit comes first.",
            ),
            (
                lambda layers, budget: _buy(layers, budget, lambda x: x[1]),
                "that buys the smallest layers first; look at what each saves for a bit.",
            ),
            (
                lambda layers, budget: tuple(x[0] for x in sorted(layers, key=_per_bit)),
                "that ignores the budget: each layer costs as many bits as it has weights.",
            ),
            (
                lambda layers, budget: tuple(sorted(spend(layers, budget))),
                "the right layers in alphabetical order; return them in the order they are bought.",
            ),
        ),
    ),
)

OPEN = OpenTask("07", bits_and_kl, budget=4.6, to_beat=0.04796, cost="bits a weight", loss="nats of KL", digits=4)
