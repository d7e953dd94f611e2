"""Arithmetic that is rounded alike on every device, so that a card makes the codes that a processor makes.

Sums are not here: their order is each device's own.
"""

from torch import Tensor


def divided(x: Tensor, by: float) -> Tensor:
    """x / by, rounded once: by a Python number CUDA does not divide, it multiplies with 1 / by, rounded."""
    return x / x.new_full((), by)


def power(x: Tensor, exponent: float) -> Tensor:
    """x to the power of `exponent`, for a short vector: as the CPU rounds it, for no two libraries round powers alike."""
    return x.cpu().pow(exponent).to(x.device)
