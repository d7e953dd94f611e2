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

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from qkit import ops
from qkit.backends.torch import LAZY
from qkit.methods.grids import search_grid
from qkit.methods.scheme import Scheme, Solution, check_weight, check_weight_only, parse_grid, width_name
from qkit.methods.statistics import InputStatistics
from qkit.numerics.arithmetic import divided
from qkit.numerics.mapping import (
    check_bits,
    check_finite,
    check_group_size,
    choose_scale,
    dequantize,
    granularity_name,
    grouped,
    integer_range,
    quantize,
    scale_dtype,
    value_range,
)
from qkit.numerics.qtensor import QTensor, stored_bits

REFIT = 2**27  # numbers of float64, a gigabyte, that `refit` holds at a time
MOST_DAMP = 1e6  # times the mean of the diagonal: more than that is no Hessian any more


@dataclass(frozen=True)
class GPTQ(Scheme):
    """GPTQ: rounds column by column and lets the columns that follow make good the error (2210.17323).

    Attributes:
        bits: 2 .. 8.
        group_size: weights of a row that share a scale; None: the whole row.
        symmetric: no zero points.
        act_order: columns with the largest Hessian diagonal first.
        damp: share of the mean of the Hessian's diagonal that is added to it (0.01 in the paper).
        shrink: share of each entry of the diagonal that is added to itself (0 in the paper). Both keep GPTQ from learning
            the calibration text by heart; measured in lesson 04.
        static_groups: scales from the original weights, groups of neighbours whatever the order; needed by act_order,
            because groups of columns that are not neighbours could not be stored.
        scale_search: shrink each group's range where that lowers the error weighted by the Hessian's diagonal.
        match_original: aim at the outputs that the original model gave, from the inputs that the quantized model sees
            (asymmetric calibration: GPTAQ, 2504.02692; Qronos, 2505.11695).
        refit_scales: when all codes are fixed, fit the scales to them once more, by least squares.
        scale_dtype: "float16" (rounded up) or "float32".
        activations: "int8": a layer rounds each token it is given to INT8 as well (W4A8 and so on), and multiplies integers;
            faster, and less exact. None: floats.
    """

    calibrated: ClassVar[bool] = True
    colour: ClassVar[str] = "#D55E00"
    spellings: ClassVar[tuple[str, ...]] = ("gptq-w4g128",)
    bits: int = 4
    group_size: int | None = 128
    symmetric: bool = False
    act_order: bool = True
    damp: float = 0.05
    static_groups: bool = True
    scale_search: bool = True
    match_original: bool = True
    refit_scales: bool = True
    shrink: float = 0.3
    scale_dtype: str = "float16"
    activations: str | None = None

    def __post_init__(self) -> None:
        check_bits(self.bits)
        check_group_size(self.group_size)
        if self.group_size == "tensor":
            raise ValueError('GPTQ solves row by row; group_size="tensor" is for RTN, use None (one scale a row)')
        for name, value in (("damp", self.damp), ("shrink", self.shrink)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name}={value!r} is not a share of the Hessian's diagonal; use 0.05")
        if self.act_order and self.group_size is not None and not self.static_groups:
            raise ValueError(
                "act_order=True with static_groups=False makes groups of columns that are not neighbours, which no "
                "QTensor stores; leave static_groups=True"
            )
        scale_dtype(self.scale_dtype)
        check_weight_only(self.activations)

    @property
    def name(self) -> str:
        """For example "GPTQ W4 g128"."""
        grid = f"{width_name(self.bits, self.activations)} {granularity_name(self.group_size)}{' sym' * self.symmetric}"
        paper = self.paper(self.bits, self.group_size, self.symmetric, self.act_order)
        if self == replace(paper, activations=self.activations):
            return f"GPTQ paper {grid}{' act-order' * self.act_order}"
        usual = GPTQ(self.bits, self.group_size, self.symmetric)
        marks = {
            "act_order": " in order",
            "damp": f" damp {self.damp:g}",
            "static_groups": " moving groups",
            "scale_search": " min-max",
            "match_original": " own inputs",
            "refit_scales": " no refit",
            "shrink": f" shrink {self.shrink:g}",
            "scale_dtype": f" {self.scale_dtype} scales",
        }
        changed = (mark for field, mark in marks.items() if getattr(self, field) != getattr(usual, field))
        return f"GPTQ {grid}{''.join(changed)}"

    @classmethod
    def paper(
        cls, bits: int = 4, group_size: int | None = None, symmetric: bool = False, act_order: bool = False
    ) -> "GPTQ":
        """GPTQ as published, and nothing of what came after.

        The paper rounds on "standard uniform per-row asymmetric quantization on the min-max grid" (arXiv 2210.17323v2,
        section 5, Setup), and in groups where it says so. Symmetric grids and act-order are options of the authors' program
        (`--sym`, `--act-order`); most libraries take symmetric ones unless told otherwise.
        """
        plain = {"scale_search": False, "match_original": False, "refit_scales": False, "shrink": 0.0}
        return cls(bits, group_size, symmetric, act_order, 0.01, static_groups=act_order, **plain)

    @classmethod
    def parse(cls, word: str) -> "GPTQ | None":
        """gptq-w4g128, gptq-w3g64sym, gptq-w4a8g128."""
        grid = parse_grid(word.removeprefix("gptq-")) if word.startswith("gptq-") else None
        return None if grid is None else cls(**grid)

    @property
    def weight_bits(self) -> int:
        """Bits of one code."""
        return self.bits

    def stored_bits(self, shape: tuple[float, float]) -> float:
        """The code, and a share of the scale and the zero point of its group."""
        return stored_bits(shape, self.bits, self.group_size, self.symmetric, scale_dtype=self.scale_dtype)

    def check(self, weight: Tensor, name: str = "the weight") -> None:
        """Refuse a weight that is none, or whose rows the groups do not divide."""
        check_weight(weight, name)
        check_group_size(self.group_size, weight.shape[1], name)

    @property
    def wants(self) -> frozenset[str]:
        """The Hessian, and how far the inputs have drifted from the original's."""
        return frozenset({"square", "drift"} if self.match_original else {"square"})

    @property
    def sequential(self) -> bool:
        """True: a layer makes good what the layers before it have done."""
        return True

    def round(self, weight: Tensor, inputs: InputStatistics | None = None, name: str = "the weight") -> Solution:
        """By `gptq`; its damping is a note, and a warning where the Hessian asked for more than the scheme did."""
        solution = gptq(weight, inputs, self, name)
        if inputs is None:
            return Solution(solution.q)
        more = solution.damp > self.damp
        warnings = (f"the Hessian of {name} had to be damped by {solution.damp:g}",) if more else ()
        return Solution(solution.q, {"damp": solution.damp, "damped_more": more}, warnings)


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


def _solve(
    weight: Tensor, inputs: InputStatistics | None, scheme: GPTQ, name: str, columns: Callable[..., tuple[Tensor, ...]]
) -> GPTQSolution:
    w = weight.detach().double()
    if inputs is None:
        inputs = InputStatistics.empty(w.shape[1], w.device, frozenset({"square"}))
    inputs.check(name)
    hessian = inputs.hessian.double()
    dead = hessian.diagonal() == 0
    average = 1.0 if dead.all() else hessian.diagonal()[~dead].mean()  # so that the unit of the inputs does not matter
    hessian = hessian + torch.diag(dead * average)
    if scheme.match_original and inputs.drift is not None:
        drift = divided(inputs.drift.double(), max(inputs.tokens, 1))
        w = matched(w, damped(hessian, scheme.damp, scheme.shrink), drift)
        check_finite(w, f"{name}, matched to the outputs of the original,")

    importance = hessian.diagonal() if scheme.scale_search else torch.ones_like(w[0])
    order = torch.arange(w.shape[1], device=w.device)
    if scheme.act_order:
        order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    upper, damp = inverse_cholesky(hessian[order][:, order], scheme.damp, scheme.shrink, name)
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

    c_g H has as many numbers as a row has groups times weights: of large layers only so many rows are looked at together.
    """
    at_once = max(1, REFIT // (scale.shape[1] * w.shape[1]))
    parts = zip(*(part.split(at_once) for part in (w, codes, scale, zero)), strict=True)
    return torch.cat([_refit_rows(rows, hessian, *grid) for rows, *grid in parts])


def _refit_rows(w: Tensor, hessian: Tensor, codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
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


def inverse_cholesky(
    hessian: Tensor, damp: float, shrink: float = 0.0, name: str = "the weight"
) -> tuple[Tensor, float]:
    """U, upper triangular, with the inverse of the damped H = Uᵀ U; and the damping that made it possible.

    Raises:
        ValueError: no damping up to `MOST_DAMP` does, naming the layer: H holds infinity, or is no Hessian.
    """
    most = max(damp, MOST_DAMP)
    while damp <= most:
        lower, failed = torch.linalg.cholesky_ex(damped(hessian, damp, shrink))
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed and torch.isfinite(upper).all():
                return upper, damp
        damp = max(10 * damp, 1e-6)
    raise ValueError(
        f"the Hessian of {name} has no Cholesky factor however much it is damped (up to {most:g}); its inputs are too "
        f"large or broken: look at the calibration text, or leave this layer out with exclude="
    )


def choose_grid(groups: Tensor, importance: Tensor, scheme: GPTQ) -> tuple[Tensor, Tensor]:
    """Scale and zero point of each group: of its range, or of the narrower one with the least weighted squared error.

    Args:
        groups: [out, groups, g].
        importance: [groups, g], what an error on each column costs: the Hessian's diagonal.
    """
    dtype = scale_dtype(scheme.scale_dtype)
    if not scheme.scale_search:
        return choose_scale(*value_range(groups), scheme.bits, scheme.symmetric, scale_dtype=dtype)
    importance = importance.float()

    def cost(error: Tensor) -> Tensor:
        return (error.square() * importance).sum(-1, keepdim=True)

    return search_grid(groups, scheme.bits, scheme.symmetric, dtype, cost)


def _columns(
    w: Tensor, upper: Tensor, order: Tensor, importance: Tensor, scheme: GPTQ, name: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [out, in], scales and zero points [out, groups]; `order[j]` is the column that is rounded j-th."""
    scale, zero = _static_grid(w, importance, scheme, name)
    size = scheme.group_size or w.shape[1]
    group, shuffled = order // size, w[:, order]
    if scheme.static_groups or scheme.group_size is None:
        rounded = ops.gptq_columns(shuffled, upper, group, scale, zero, scheme.bits)
    else:
        important = importance[order]

        def regrid(w: Tensor, j: int) -> tuple[Tensor, Tensor] | None:
            if j % size:
                return None
            s, z = choose_grid(w[:, None, j : j + size], important[None, j : j + size], scheme)
            return s[:, 0, 0], z[:, 0, 0]

        rounded = ops.gptq_columns(shuffled, upper, group, scale, zero, scheme.bits, regrid=regrid)
    codes = torch.empty_like(rounded)
    codes[:, order] = rounded
    return codes, scale, zero


def _columns_one_by_one(
    w: Tensor, upper: Tensor, order: Tensor, importance: Tensor, scheme: GPTQ, name: str
) -> tuple[Tensor, Tensor, Tensor]:
    """What `_columns` computes, without batches: every column updates all that follow, one at a time."""
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
