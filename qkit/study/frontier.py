"""Of several models, each with a size and a loss, those that are worth having."""

from collections.abc import Mapping

Points = Mapping[str, tuple[float, float]]  # by name: (megabytes, loss), both to be small


def frontier(points: Points) -> list[str]:
    """The names that no other beats in both: all others are at least as large and lose at least as much. Smallest first."""
    best: list[str] = []
    for name in sorted(points, key=points.__getitem__):
        if not best or points[name][1] < points[best[-1]][1]:
            best.append(name)
    return best


def best_that_fits(points: Points, megabytes: float) -> str | None:
    """The name with the least loss among those of at most `megabytes`; None: nothing fits."""
    fitting = [name for name, (size, _) in points.items() if size <= megabytes]
    return min(fitting, key=lambda name: points[name][1], default=None)
