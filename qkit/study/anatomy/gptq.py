"""GPTQ taken apart: the layer's output error, and the weight as it stands after some of its columns."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from qkit.engine.quantize import quantize_tensor
from qkit.methods.gptq import GPTQ, damped, gptq, inverse_cholesky
from qkit.methods.rtn import RTN
from qkit.methods.statistics import InputStatistics


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
        change: float32 [stops, rows, in], GPTQ's weight so far minus the original: left of the stop the error of what is
            rounded, right of it what the free columns were moved by to make it good.
        plain: the root mean square of rounding's error, over all columns of those rows.
        gptq, rounding: the relative squared output error at each stop, all columns that are not rounded yet as they are
            then.
    """

    columns: tuple[int, ...]
    change: Tensor
    plain: float
    gptq: tuple[float, ...]
    rounding: tuple[float, ...]

    @property
    def by_column(self) -> np.ndarray:
        """The root mean square of `change` over the rows, float32 [stops, in]."""
        return self.change.square().mean(1).sqrt().numpy()

    def moved(self, stop: int) -> float:
        """By how much (root of the mean square) the columns that are still free were moved until this stop."""
        free = self.change[stop][:, self.columns[stop] :].numpy()
        return float(np.sqrt(np.mean(free**2))) if free.size else 0.0


def column_steps(
    weight: Tensor, inputs: InputStatistics, bits: int = 4, stops: int = 33, damp: float = 0.01, rows: int = 192
) -> ColumnSteps:
    """GPTQ as published (2210.17323, algorithm 1; symmetric, one scale a row) and rounding, and where they are on the way.

    The method is run once, and what it was after k columns follows from where it ends. The column that is rounded j-th errs
    by e_j = (w_j - ŵ_j) / U_jj and takes e_j U_jk off each later one, so that in the end W - Ŵ = E U, an equation that is
    solved for E. After k columns the free ones have lost the first k of those sums: W - E[:, :k] U[:k].

    Args:
        weight: float [out, in].
        inputs: the statistics of its inputs, with a Hessian.
        stops: how many, evenly spread over the columns, both ends included.
        rows: of `change` only the first rows are kept.

    Raises:
        ValueError: fewer than two stops.
    """
    if stops < 2:
        raise ValueError(f"stops={stops} leaves out an end; use at least 2, the original and what became of it")
    grid = {"bits": bits, "group_size": None, "symmetric": True}
    rounded = quantize_tensor(weight, RTN(**grid, scale_dtype="float32")).dequantize().double()
    solution = gptq(weight, inputs, replace(GPTQ.paper(**grid), scale_dtype="float32", damp=damp))
    original, solved = weight.detach().double(), solution.q.dequantize().double()
    hessian = inputs.hessian.double()
    alive = hessian.diagonal() > 0  # the rest is rounded to nearest, and nothing makes good for it
    upper, _ = inverse_cholesky(hessian[alive][:, alive], solution.damp)
    errors = torch.linalg.solve_triangular(upper, (original - solved)[:, alive], upper=True, left=False)

    width = weight.shape[1]
    columns = tuple(sorted({round(k * width / (stops - 1)) for k in range(stops)}))
    change, losses = [], []
    for column in columns:
        done = int(alive[:column].sum())
        now, plain = original.clone(), original.clone()
        now[:, alive] -= errors[:, :done] @ upper[:done]
        now[:, :column], plain[:, :column] = solved[:, :column], rounded[:, :column]
        change.append((now - original)[:rows].float())
        losses.append([output_error(original, w, hessian) for w in (now, plain)])
    by_gptq, by_rounding = zip(*losses, strict=True)
    plain = float((rounded - original)[:rows].square().mean().sqrt())
    return ColumnSteps(columns, torch.stack(change), plain, by_gptq, by_rounding)


def cost_left(hessian: Tensor, damp: float = 0.01) -> Tensor:
    """What is left of the cost of rounding each column once the columns after it have made good what they can: float64 [in].

    Rounded by itself, an error d of column j costs d² H_jj; with the best change of the columns that follow it costs d² / F_jj,
    with F the inverse of H without the columns before j, and F_jj = U_jj² (Cholesky: H⁻¹ = Uᵀ U). The share is
    1 / (H_jj U_jj²): 1 where nothing can be passed on, as for the last column.
    """
    upper, damp = inverse_cholesky(hessian.double(), damp)
    return 1 / (damped(hessian.double(), damp, 0.0).diagonal() * upper.diagonal().square())
