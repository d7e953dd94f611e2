"""GPTQ taken apart: the layer's output error, and the weight as it stands after some of its columns."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qkit.methods.gptq import inverse_cholesky
from qkit.methods.statistics import InputStatistics
from qkit.numerics.mapping import choose_scale, dequantize, integer_range, quantize, value_range


def output_error(weight: Tensor, approximation: Tensor, hessian: Tensor) -> float:
    """||(W - Ŵ) X||² / ||W X||², from the Hessian X Xᵀ [in, in] alone, up to any constant factor; 0 where W X is 0."""
    hessian, weight = hessian.double(), weight.double()
    error = weight - approximation.double()
    whole = float(((weight @ hessian) * weight).sum())
    return float(((error @ hessian) * error).sum()) / whole if whole else 0.0


@dataclass(frozen=True, eq=False)
class ColumnSteps:
    """GPTQ and rounding, stopped after some columns.

    Attributes:
        columns: how many columns are rounded at each stop: 0, ..., in.
        change: float32 [stops, out, in], GPTQ's weight so far minus the original: left of the stop the error of what is
            rounded, right of it what the free columns were moved by to make it good.
        gptq, rounding: the relative squared output error at each stop, all columns that are not rounded yet as they are
            then.
    """

    columns: tuple[int, ...]
    change: Tensor
    gptq: tuple[float, ...]
    rounding: tuple[float, ...]

    def moved(self, stop: int) -> float:
        """By how much (root of the mean square) the columns that are still free were moved until this stop."""
        free = self.change[stop][:, self.columns[stop] :].numpy()
        return float(np.sqrt(np.mean(free**2))) if free.size else 0.0


def column_steps(
    weight: Tensor, inputs: InputStatistics, bits: int = 4, stops: int = 33, damp: float = 0.01, rows: int = 48
) -> ColumnSteps:
    """Run GPTQ's column loop (2210.17323, algorithm 1; symmetric, one scale a row) and stop on the way.

    Args:
        weight: float [out, in].
        inputs: the statistics of its inputs, with a Hessian.
        stops: how many, evenly spread over the columns, both ends included.
        rows: of `change` only the first rows are kept.
    """
    hessian = inputs.hessian.double()
    hessian = hessian + torch.diag((hessian.diagonal() == 0).double())
    upper, _ = inverse_cholesky(hessian, damp)
    original = weight.detach().double()
    scale, zero = choose_scale(*value_range(original), bits, symmetric=True)

    def rounded(column: Tensor) -> Tensor:
        return dequantize(quantize(column, scale, zero, *integer_range(bits)), scale, zero).double()

    width = weight.shape[1]
    where = tuple(sorted({round(k * width / (stops - 1)) for k in range(stops)}))
    now, plain = original.clone(), original.clone()
    change, errors = [], []
    for j in range(width + 1):
        if j in where:
            change.append((now - original)[:rows].float())
            errors.append([output_error(original, w, hessian) for w in (now, plain)])
        if j < width:
            column = rounded(now[:, j : j + 1])
            now[:, j + 1 :] -= (now[:, j : j + 1] - column) / upper[j, j] * upper[j, j + 1 :]
            now[:, j : j + 1], plain[:, j : j + 1] = column, rounded(original[:, j : j + 1])
    gptq, rounding = zip(*errors, strict=True)
    return ColumnSteps(where, torch.stack(change), gptq, rounding)
