"""Statistics of what a layer is given: sums over the calibration tokens that do not grow with the text.

A method that looks at data needs, for each layer, sums over all tokens: the Hessian of the layer's squared output error, the
largest and the mean |x| of each input channel. Whoever gathers them (`qkit.model.calibration`) hands over the inputs once.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from qkit import ops
from qkit.numerics.arithmetic import divided
from qkit.numerics.mapping import check_finite

SAMPLE = 1024  # tokens
STRIP = 128  # rows of x xᵀ that are summed at a time, at the least: with fewer products of matrices are slow
WANTS = frozenset({"square", "drift", "magnitudes", "sample"})  # what costs time or memory to gather
BINS_PER_OCTAVE, OCTAVES = 64, 24  # of the histogram of |x|, which reaches from 2^-24 to 2^24
UNUSED_BITS = 23 - 6  # of a float's mantissa: the first six say which of the 64 bins of an octave
LOWEST = (127 - OCTAVES) * BINS_PER_OCTAVE  # what a float says for the first bin; 127 is the exponent of 1.0


def magnitude_edges(device: torch.device | str = "cpu") -> Tensor:
    """Edges of the histogram of |x|: from each power of two to the next 64 equal bins, whatever the range will be.

    A float's exponent and the first six bits of its mantissa say which is its bin.
    """
    bins = torch.arange(2 * OCTAVES * BINS_PER_OCTAVE + 1, dtype=torch.int32, device=device)
    return ((bins + LOWEST) << UNUSED_BITS).view(torch.float32)


@dataclass(eq=False)
class InputStatistics:
    """Sums over the calibration tokens x [in] that one layer (or several with the same input) has seen.

    Attributes:
        tokens: how many.
        absmax: [in], the largest |x| of each channel.
        abssum: [in], the sum of |x|.
        square: [in, in], the sum of x xᵀ: half the Hessian of the squared output error, times `tokens`.
        drift: [in, in], the sum of (x₀ - x) xᵀ, where x₀ is what the original model puts in the place of x; None when it
            was not asked for.
        magnitudes: how many |x| fell into each bin of `magnitude_edges`, over all channels.
        sample: [tokens, in], the inputs of the first batch, at most `SAMPLE` of them; for searches that need the
            activations themselves.
    """

    tokens: int
    absmax: Tensor
    abssum: Tensor
    square: Tensor | None = None
    drift: Tensor | None = None
    magnitudes: Tensor | None = None
    sample: Tensor | None = None

    @classmethod
    def empty(
        cls, in_features: int, device: torch.device | str = "cpu", wants: frozenset[str] = WANTS
    ) -> "InputStatistics":
        """Nothing seen yet; `wants` names which of the costly sums are to be gathered.

        Raises:
            ValueError: it names something else.
        """
        if strange := ", ".join(sorted(wants - WANTS)):
            raise ValueError(
                f"no statistic of the inputs is called {strange}; a scheme may want {', '.join(sorted(WANTS))}"
            )
        statistics = cls(0, *(torch.zeros(in_features, dtype=torch.float32, device=device) for _ in range(2)))
        for name in ("square", "drift"):
            if name in wants:
                setattr(statistics, name, torch.zeros(in_features, in_features, dtype=torch.float32, device=device))
        if "magnitudes" in wants:
            statistics.magnitudes = torch.zeros(2 * OCTAVES * BINS_PER_OCTAVE, dtype=torch.int64, device=device)
        if "sample" in wants:
            statistics.sample = torch.zeros(0, in_features, dtype=torch.float32, device=device)
        return statistics

    def known(self, name: str) -> Tensor:
        """One of the costly sums (`WANTS`), by name.

        Raises:
            ValueError: it was not asked for when they were gathered.
        """
        if (found := getattr(self, name)) is None:
            raise ValueError(f"these statistics hold no {name!r}; gather them with wants={{{name!r}}}")
        return found

    @property
    def hessian(self) -> Tensor:
        """The mean of x xᵀ, float32 [in, in]. Constant factors of H change nothing in GPTQ."""
        return divided(self.known("square"), max(self.tokens, 1))

    @property
    def mean(self) -> Tensor:
        """The mean |x| of each channel, [in]."""
        return divided(self.abssum, max(self.tokens, 1))

    def add(self, x: Tensor, original: Tensor | None = None) -> None:
        """Take in x [tokens, in], and what the original model had in its place."""
        x = x.float()
        if not len(x):
            return
        self.tokens += len(x)
        magnitude = x.abs()
        self.absmax = torch.maximum(self.absmax, magnitude.amax(0))
        self.abssum += magnitude.sum(0)
        if self.square is not None:
            _add_square(self.square, x)
        if self.drift is not None and original is not None:
            self.drift.addmm_((original.float() - x).T, x)
        if self.magnitudes is not None:
            self.magnitudes += ops.count_magnitudes(x, len(self.magnitudes), UNUSED_BITS, LOWEST)
        if self.sample is not None and not len(self.sample):
            self.sample = x[:SAMPLE].clone()

    def scaled(self, scale: Tensor) -> "InputStatistics":
        """What they would be had every input been divided by `scale` [in] (without the magnitudes, which do not tell)."""
        both = scale[:, None] * scale
        return InputStatistics(
            self.tokens,
            self.absmax / scale,
            self.abssum / scale,
            None if self.square is None else self.square / both,
            None if self.drift is None else self.drift / both,
            sample=None if self.sample is None else self.sample / scale,
        )

    def covers(self, wants: frozenset[str]) -> bool:
        """Whether all of these costly sums are here."""
        return all(getattr(self, name) is not None for name in wants)

    def check(self, name: str) -> None:
        """Refuse NaN and infinity in any of the sums, naming the layer: an activation may be finite, and its square not."""
        parts = {
            "sums of |x| by input channel": self.abssum,
            "largest |x| by input channel": self.absmax,
            "sums of x xᵀ": self.square,
            "sums of (x₀ - x) xᵀ": self.drift,
            "a sample of x": self.sample,
        }
        for what, part in parts.items():
            if part is not None:
                check_finite(part, f"the calibration statistics of {name} ({what})")


def _add_square(square: Tensor, x: Tensor) -> None:
    """square [in, in] += xᵀ x for x [tokens, in].

    x xᵀ is symmetric: on a CPU, where the products are what takes the time, rows are summed in up to four strips, each from
    the diagonal on, and what lies below is copied: 5/8 of the products. (With MKL every sum was that of one product to the last
    bit, but for a strip of one row.)
    """
    width = x.shape[1]
    if x.device.type != "cpu":
        square.addmm_(x.T, x)
        return
    size = max(STRIP, -(-width // 4))
    for first in range(0, width, size):
        last = min(first + size, width)
        strip = square[first:last, first:]
        strip.addmm_(x[:, first:last].T, x[:, first:])
        square[last:, first:last] = strip[:, last - first :].T
