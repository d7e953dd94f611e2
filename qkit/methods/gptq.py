"""GPTQ: round column by column, and let the columns that are still free make good the error.

What
    A layer is judged by its output, not by its weights: min ||W X - Ŵ X||² over the calibration inputs X. All rows of W
    see the same X, so they share one Hessian H = X Xᵀ. GPTQ rounds one input column after another; the error of each is
    spread over the columns not yet rounded, in the way that costs least.

Formula (Frantar et al. 2022, arXiv 2210.17323, algorithm 1; here q are codes and ŵ values)
    U = Cholesky(H⁻¹), upper triangular: H⁻¹ = Uᵀ U          the order of elimination, once for all rows
    for column j:  ŵ_j = grid(w_j),   e = (w_j - ŵ_j) / U_jj,   w_k -= e U_jk  for all k > j

    The grid of a group (s, z) is chosen from its minimum and maximum; with `scale_search` from the best of 25 narrower
    ranges, measured by sum_j H_jj (w_j - ŵ_j)².
    `refit_scales`: at the end, with the codes fixed, the best scales of a row are a linear least squares problem in H.
    match_original: earlier layers are quantized already, so this layer sees x where the original saw x₀. The best real
    weight for the inputs it will have is not W but  W + W D (X Xᵀ)⁻¹,  D = sum (x₀ - x) xᵀ: that one is rounded.
    (Asymmetric calibration: GPTAQ, arXiv 2504.02692; Qronos, arXiv 2505.11695.)

Choices, and why
    The solve is in float64: the same codes on every machine, and the fast and the slow version agree to the last one.
    damp is added to the diagonal in units of its mean. Where Cholesky still fails, it is multiplied by 10 until it does
    not, and the report says so. shrink adds to each entry of the diagonal a share of itself: what the calibration text
    says of how inputs go together is believed a little less, however large or small a channel is.
    An input that was never different from zero says nothing about its weights: they are rounded to nearest
        (the published code sets them to zero, which costs whoever does use that input).

Trade-off
    It fits the calibration text. Where that does not look like what the model will read, plain rounding can be better.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from qkit import ops
from qkit.methods.grids import search_grid
from qkit.methods.schemes import FLOATS, GPTQ
from qkit.model.calibration import InputStatistics
from qkit.numerics.mapping import choose_scale, dequantize, grouped, integer_range, quantize, value_range
from qkit.numerics.qtensor import QTensor

LAZY = 128  # columns that are finished before the rest of the matrix is updated (the paper's B)


@dataclass(frozen=True, eq=False)
class GPTQSolution:
    """What came out: the weight, and the damping it took (a share of the mean of the Hessian's diagonal)."""

    q: QTensor
    damp: float


def gptq(weight: Tensor, inputs: InputStatistics | None, scheme: GPTQ, name: str = "the weight") -> GPTQSolution:
    """Quantize `weight` [out, in] for inputs with these statistics; without any, this is rounding to nearest."""
    return _solve(weight, inputs, scheme, name, _columns)


def gptq_slow(weight: Tensor, inputs: InputStatistics | None, scheme: GPTQ, name: str = "the weight") -> GPTQSolution:
    """The same, column by column as algorithm 1 says it before it batches: to be read, and to test the fast one against."""
    return _solve(weight, inputs, scheme, name, _columns_one_by_one)


def _solve(weight: Tensor, inputs: InputStatistics | None, scheme: GPTQ, name: str, columns) -> GPTQSolution:
    w = weight.detach().double()
    if inputs is None:
        inputs = InputStatistics.empty(w.shape[1], w.device, frozenset({"square"}))
    inputs.check(name)
    hessian = inputs.hessian.double()
    dead = hessian.diagonal() == 0
    average = 1.0 if dead.all() else hessian.diagonal()[~dead].mean()  # so that the unit of the inputs does not matter
    hessian = hessian + torch.diag(dead * average)
    if scheme.match_original and inputs.drift is not None:
        w = matched(w, damped(hessian, scheme.damp, scheme.shrink), inputs.drift.double() / max(inputs.tokens, 1))

    importance = hessian.diagonal() if scheme.scale_search else torch.ones_like(w[0])
    order = torch.arange(w.shape[1], device=w.device)
    if scheme.act_order:
        order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    upper, damp = inverse_cholesky(hessian[order][:, order], scheme.damp, scheme.shrink)
    codes, scale, zero = columns(w, upper, order, importance, scheme, name)
    if scheme.refit_scales:
        scale = refit(w, damped(hessian, damp, scheme.shrink), codes, scale, zero)
    zero_points = None if scheme.symmetric else zero
    return GPTQSolution(QTensor.from_codes(codes, scale, scheme.bits, zero_points=zero_points), damp)


def damped(hessian: Tensor, damp: float, shrink: float) -> Tensor:
    """H + shrink diag(H) + damp mean(diag H) I."""
    diagonal = hessian.diagonal()
    return hessian + torch.diag(shrink * diagonal + damp * diagonal.mean())


def matched(w: Tensor, hessian: Tensor, drift: Tensor) -> Tensor:
    """W + W D H⁻¹: the weight whose outputs on the drifted inputs are closest to the original outputs."""
    return w + torch.linalg.solve(hessian, (w @ drift).T).T  # H is symmetric


def refit(w: Tensor, hessian: Tensor, codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """The scales that fit best once the codes are fixed: least squares, for all groups of a row at once.

    With c = q - z, row w is approximated by the sum over its groups of s_g c_g. Minimising (w - ŵ) H (w - ŵ)ᵀ over s is
    one linear system a row:  A s = b,  A_gk = c_g H_gk c_kᵀ,  b_g = c_g H wᵀ.
    """
    rows, groups = scale.shape
    size = w.shape[1] // groups
    c = codes.double().reshape(rows, groups, size) - zero.double()[..., None]
    ch = torch.stack([c[:, g] @ hessian[g * size : (g + 1) * size] for g in range(groups)], 1)  # [rows, groups, in]
    a = (ch.reshape(rows, groups, groups, size) * c[:, None]).sum(-1)
    b = (ch * w[:, None]).sum(-1)
    old = scale.double()
    weak = torch.diag_embed((1e-4 * a.diagonal(dim1=1, dim2=2).mean(1, keepdim=True) + 1e-30).expand(rows, groups))
    new = torch.linalg.solve(a + weak, b + (weak @ old[..., None])[..., 0])  # where nothing decides, the old scale
    return torch.where((new > old / 2) & (new < 2 * old), new, old).to(scale.dtype)


def inverse_cholesky(hessian: Tensor, damp: float, shrink: float = 0.0) -> tuple[Tensor, float]:
    """U, upper triangular, with the inverse of the damped H = Uᵀ U; and the damping that made it possible."""
    while True:
        lower, failed = torch.linalg.cholesky_ex(damped(hessian, damp, shrink))
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                return upper, damp
        damp = max(10 * damp, 1e-6)


def choose_grid(groups: Tensor, importance: Tensor, scheme: GPTQ) -> tuple[Tensor, Tensor]:
    """Scale and zero point of each group: of its range, or of the narrower one with the least weighted squared error.

    Args:
        groups: [out, groups, g].
        importance: [groups, g], what an error on each column costs: the Hessian's diagonal.
    """
    dtype = FLOATS[scheme.scale_dtype]
    if not scheme.scale_search:
        return choose_scale(*value_range(groups), scheme.bits, scheme.symmetric, scale_dtype=dtype)
    importance = importance.float()

    def cost(error: Tensor) -> Tensor:
        return (error.square() * importance).sum(-1, keepdim=True)

    return search_grid(groups, scheme.bits, scheme.symmetric, dtype, cost)


def _columns(
    w: Tensor, upper: Tensor, order: Tensor, importance: Tensor, scheme: GPTQ, name: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [out, in], scales and zero points [out, groups]: by a kernel where there is one, else in lazy batches."""
    fixed = scheme.static_groups or scheme.group_size is None
    kernel = ops.fast("gptq", w.device) if fixed else None
    if kernel is None:
        return _columns_lazily(w, upper, order, importance, scheme, name)
    scale, zero = _static_grid(w, importance, scheme, name)
    group = order // (scheme.group_size or w.shape[1])
    codes = torch.empty_like(w, dtype=torch.uint8)
    codes[:, order] = kernel(w[:, order], upper, group, scale, zero, integer_range(scheme.bits)[1])
    return codes, scale, zero


def _columns_lazily(
    w: Tensor, upper: Tensor, order: Tensor, importance: Tensor, scheme: GPTQ, name: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [out, in], scales and zero points [out, groups]; `order[j]` is the column that is rounded j-th."""
    limits = integer_range(scheme.bits)
    size = scheme.group_size or w.shape[1]
    scale, zero = _static_grid(w, importance, scheme, name)
    codes = torch.empty_like(w, dtype=torch.uint8)
    w, importance, places = w[:, order], importance[order], order.tolist()
    for start in range(0, w.shape[1], LAZY):
        end = min(start + LAZY, w.shape[1])
        block = w[:, start:end].clone()
        errors = torch.empty_like(block)
        for j in range(start, end):
            group = places[j] // size
            if not scheme.static_groups and j % size == 0:
                s, z = choose_grid(w[:, None, j : j + size], importance[None, j : j + size], scheme)
                scale[:, group], zero[:, group] = s[:, 0, 0], z[:, 0, 0]
            column = block[:, j - start]
            q = quantize(column, scale[:, group], zero[:, group], *limits)
            error = (column - dequantize(q, scale[:, group], zero[:, group])) / upper[j, j]
            block[:, j - start + 1 :] -= error[:, None] * upper[j, j + 1 : end]
            codes[:, places[j]] = q.to(torch.uint8)
            errors[:, j - start] = error
        w[:, end:] -= errors @ upper[start:end, end:]
    return codes, scale, zero


def _columns_one_by_one(
    w: Tensor, upper: Tensor, order: Tensor, importance: Tensor, scheme: GPTQ, name: str
) -> tuple[Tensor, Tensor, Tensor]:
    """What `_columns_lazily` computes, without batches: every column updates all that follow, one at a time."""
    limits = integer_range(scheme.bits)
    size = scheme.group_size or w.shape[1]
    scale, zero = _static_grid(w, importance, scheme, name)
    codes = torch.empty_like(w, dtype=torch.uint8)
    w, importance, places = w[:, order], importance[order], order.tolist()
    for j in range(w.shape[1]):
        group = places[j] // size
        if j % LAZY == 0:
            seen = (
                w.clone()
            )  # a moving group takes its grid from what the last finished batch left, as in the papers' code
        if not scheme.static_groups and j % size == 0:
            s, z = choose_grid(seen[:, None, j : j + size], importance[None, j : j + size], scheme)
            scale[:, group], zero[:, group] = s[:, 0, 0], z[:, 0, 0]
        q = quantize(w[:, j], scale[:, group], zero[:, group], *limits)
        error = (w[:, j] - dequantize(q, scale[:, group], zero[:, group])) / upper[j, j]
        for k in range(j + 1, w.shape[1]):
            w[:, k] -= error * upper[j, k]
        codes[:, places[j]] = q.to(torch.uint8)
    return codes, scale, zero


def _static_grid(w: Tensor, importance: Tensor, scheme: GPTQ, name: str) -> tuple[Tensor, Tensor]:
    """Scales and zero points [out, groups] from the weights before any is rounded."""
    groups = grouped(w, scheme.group_size, name)
    scale, zero = choose_grid(groups, importance.reshape(groups.shape[1:]), scheme)
    return scale[..., 0], zero[..., 0]
