"""How far a quantized tensor is from the original: SQNR and its companions.

SQNR (signal to quantization noise ratio) is 10 log10(sum w^2 / sum (w - ŵ)^2) in decibels. A uniform quantizer that is
not overloaded gains 20 log10 2 = 6.02 dB with each bit (Bennett 1948), which makes it the natural ruler for bits.
"""

import math
from dataclasses import asdict, dataclass

from torch import Tensor


@dataclass(frozen=True)
class ErrorStatistics:
    """Statistics of the error w - ŵ over one tensor."""

    sqnr_db: float  # inf when the error is zero everywhere
    rmse: float  # root of the mean squared error, in units of w
    max_abs: float  # the largest |w - ŵ|
    mean: float  # the bias
    relative: float  # ||w - ŵ|| / ||w||

    def to_dict(self) -> dict[str, float | None]:
        """For JSON, which has no infinity: an infinite SQNR becomes None."""
        return {key: value if math.isfinite(value) else None for key, value in asdict(self).items()}


def sqnr_db(original: Tensor, approximation: Tensor) -> float:
    """10 log10 of signal power over error power, in dB; inf when they are equal."""
    return error_statistics(original, approximation).sqnr_db


def error_statistics(original: Tensor, approximation: Tensor) -> ErrorStatistics:
    """Compare two tensors of one shape, in float64."""
    if original.shape != approximation.shape:
        raise ValueError(
            f"shapes {tuple(original.shape)} and {tuple(approximation.shape)} differ; compare a weight with its own copy"
        )
    w = original.detach().double()
    error = w - approximation.detach().double()
    signal, noise = float((w * w).sum()), float((error * error).sum())
    if noise == 0:
        ratio_db, relative = math.inf, 0.0
    elif signal == 0:
        ratio_db, relative = -math.inf, math.inf
    else:
        ratio_db, relative = 10 * math.log10(signal / noise), math.sqrt(noise / signal)
    return ErrorStatistics(
        sqnr_db=ratio_db,
        rmse=math.sqrt(noise / max(w.numel(), 1)),
        max_abs=float(error.abs().max()) if w.numel() else 0.0,
        mean=float(error.mean()) if w.numel() else 0.0,
        relative=relative,
    )
