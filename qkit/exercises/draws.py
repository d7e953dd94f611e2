"""Random arguments for exercises: the same ones each time, of shapes and sizes that nobody has chosen."""

import random
import zlib

import torch
from torch import Tensor


class Draw:
    """Numbers and tensors, drawn; the same name gives the same ones."""

    def __init__(self, name: str):
        seed = zlib.crc32(name.encode())
        self._random, self._generator = random.Random(seed), torch.Generator().manual_seed(seed)

    def whole(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both of them possible."""
        return self._random.randint(low, high)

    def real(self, low: float, high: float) -> float:
        """A number between `low` and `high`."""
        return self._random.uniform(low, high)

    def size(self, low: float, high: float) -> float:
        """A positive number between `low` and `high`, its exponent uniform."""
        return low * (high / low) ** self._random.random()

    def one_of(self, *values):
        """One of `values`."""
        return self._random.choice(values)

    def shuffled(self, values: list) -> list:
        """`values` in another order."""
        return self._random.sample(values, len(values))

    def normal(self, *shape: int) -> Tensor:
        """Float32 of the standard normal distribution."""
        return torch.randn(shape, generator=self._generator)

    def integers(self, low: int, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """Whole numbers from `low` to `high`, both of them possible."""
        return torch.randint(low, high + 1, shape, generator=self._generator).to(dtype)

    def weight(self, rows: int, columns: int) -> Tensor:
        """Float32 [rows, columns], normal, its rows and columns of unlike sizes; now and then an outlier."""
        w = self.normal(rows, columns) * (0.3 * self.normal(rows, 1)).exp() * (0.5 * self.normal(columns)).exp()
        if self._random.random() < 0.3:
            w[self.whole(0, rows - 1), self.whole(0, columns - 1)] *= 20
        return w * self.size(1e-3, 10)


def off_halves(w: Tensor, step: Tensor | float) -> Tensor:
    """w, where w / step lies so near halfway between two whole numbers that rounding depends on the last bit: moved to one."""
    steps = w / step
    near = (steps - steps.floor() - 0.5).abs() < 1e-3
    return torch.where(near, steps.floor() * step, w)
