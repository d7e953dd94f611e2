"""Mixed precision: spend a budget of bits where they help most.

Each layer has a few choices, each with a size and a loss (`qkit.sensitivity`); losses are taken to add up. From the
smallest choice of every layer, the upgrade that saves most loss for a byte is bought again and again, along the lower
convex hull of each layer's choices, until the budget is spent. That is the optimum of the relaxed knapsack; the last,
half-affordable upgrade is what is left on the table.

Losses measured as "kl" nearly do add up. Relative output errors ("error") of different layers do not mean the same, and
with few and coarse choices a plan made from them can be worse than the same bits everywhere: measure what you get.
"""

from itertools import pairwise

from qkit.methods.scheme import Scheme
from qkit.study.sensitivity import Choice, Sensitivity


def mixed_precision(sensitivity: Sensitivity, budget_bits: float) -> dict[str, Scheme]:
    """A scheme for each layer, by its name: what `qkit.quantize` takes as its scheme.

    Args:
        budget_bits: bits a weight on average, over all layers, scales and zero points included.

    Raises:
        ValueError: the smallest choices already cost more.
    """
    hulls = {layer: _hull(sensitivity.of(layer)) for layer in sensitivity.weights}
    chosen = {layer: hull[0] for layer, hull in hulls.items()}
    total = sum(sensitivity.weights.values())
    left = budget_bits * total / 8 - sum(choice.nbytes for choice in chosen.values())
    if not left >= 0:
        least = 8 * sum(choice.nbytes for choice in chosen.values()) / total
        raise ValueError(
            f"budget_bits={budget_bits} is less than the smallest choices take, {least:.3f} bits per weight; "
            f"raise it, or measure smaller schemes"
        )
    steps = [(_gain(before, after), before, after) for hull in hulls.values() for before, after in pairwise(hull)]
    blocked: set[str] = set()  # an upgrade that was not affordable ends its layer's way up
    for _, before, after in sorted(steps, key=lambda step: -step[0]):
        cost = after.nbytes - before.nbytes
        if cost <= left and after.layer not in blocked:
            chosen[after.layer] = after
            left -= cost
        else:
            blocked.add(after.layer)
    return {layer: choice.scheme for layer, choice in chosen.items()}


def _gain(before: Choice, after: Choice) -> float:
    return (before.loss - after.loss) / (after.nbytes - before.nbytes)


def _hull(choices: list[Choice]) -> list[Choice]:
    """The choices, smallest first, that are on the lower convex hull: each further byte buys less than the one before."""
    hull: list[Choice] = []
    for choice in choices:
        if hull and (choice.nbytes == hull[-1].nbytes or choice.loss >= hull[-1].loss):
            continue  # larger and no better
        while len(hull) > 1 and _gain(hull[-1], choice) >= _gain(hull[-2], hull[-1]):
            hull.pop()
        hull.append(choice)
    return hull
