"""RTN, round to nearest: the method that every other one must beat.

What
    Each group of weights gets the range it needs (its minimum and maximum), the range gets 2^b evenly spaced values, and
    each weight goes to the nearest of them. No calibration data, no search, one pass.

Formula
    s, z from min and max of the group, q = clamp(round(w / s) + z): see `qkit.numerics.mapping`.

Trade-off
    On the grid that it is given it minimises the error of each weight. But minimum and maximum need not make the best grid
    (a slightly narrower range clips a few weights and serves all others), and it is blind to what a weight is multiplied
    with: an error on a weight whose input is always zero costs nothing, and the errors of a row may add up instead of
    cancelling. GPTQ and AWQ spend data and time on just that.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qkit.methods.scheme import Scheme, Solution, check_weight, check_weight_only, parse_grid, width_name
from qkit.methods.statistics import InputStatistics
from qkit.numerics.mapping import (
    GroupSize,
    check_bits,
    check_group_size,
    choose_offset,
    choose_scale,
    granularity_name,
    grouped,
    integer_range,
    quantize,
    scale_dtype,
    value_range,
)
from qkit.numerics.qtensor import QTensor, stored_bits


@dataclass(frozen=True)
class RTN(Scheme):
    """Round to nearest: every weight goes to the closest step of its group's grid. No data needed, done in milliseconds.

    Attributes:
        bits: bits of one code, 2 .. 8.
        group_size: how many weights of a row share a scale; None: the whole row; "tensor": the whole tensor.
        symmetric: the same reach on both sides of zero, no zero points to store.
        include_zero: False lays an asymmetric range on [min, max] alone and stores the minimum instead of a zero point.
        scale_dtype: "float16" (rounded up; float32 when the scales leave its range) or "float32".
        activations: "int8": a layer rounds each token it is given to INT8 as well (W4A8 and so on), and multiplies integers;
            faster, and less exact. None: floats.
    """

    colour: ClassVar[str] = "#0072B2"
    spellings: ClassVar[tuple[str, ...]] = ("w8", "w4g128", "w4g128sym", "w4a8g128")
    bits: int = 4
    group_size: GroupSize = None
    symmetric: bool = False
    include_zero: bool = True
    scale_dtype: str = "float16"
    activations: str | None = None

    def __post_init__(self) -> None:
        check_bits(self.bits)
        check_group_size(self.group_size)
        if self.symmetric and not self.include_zero:
            raise ValueError(
                "symmetric=True with include_zero=False contradict each other: a symmetric range always includes zero; "
                "leave one of them out"
            )
        scale_dtype(self.scale_dtype)
        check_weight_only(self.activations)

    @property
    def name(self) -> str:
        """For example "RTN W4 g128"."""
        marks = [" sym"] * self.symmetric + [" min-max"] * (not self.include_zero)
        marks += [f" {self.scale_dtype} scales"] * (self.scale_dtype != "float16")
        return f"RTN {width_name(self.bits, self.activations)} {granularity_name(self.group_size)}{''.join(marks)}"

    @classmethod
    def parse(cls, word: str) -> "RTN | None":
        """w8, w4g128, w4g128sym, w4a8g128, w8tensor; but w8a8 alone is `W8A8`, which has its own layer."""
        grid = parse_grid(word) if word != "w8a8" else None
        return None if grid is None else cls(**grid)

    @property
    def weight_bits(self) -> int:
        """Bits of one code."""
        return self.bits

    def stored_bits(self, shape: tuple[float, float]) -> float:
        """The code, and a share of the scale and the zero point of its group."""
        return stored_bits(shape, self.bits, self.group_size, self.symmetric, self.include_zero, self.scale_dtype)

    def check(self, weight: Tensor, name: str = "the weight") -> None:
        """Refuse a weight that is none, or whose rows the groups do not divide."""
        check_weight(weight, name)
        check_group_size(self.group_size, weight.shape[1], name)

    def round(self, weight: Tensor, inputs: InputStatistics | None = None, name: str = "the weight") -> Solution:
        """By `rtn`; inputs make no difference."""
        return Solution(rtn(weight, self, name))


def rtn(weight: Tensor, scheme: RTN, name: str = "the weight") -> QTensor:
    """Quantize `weight` [out, in], any float dtype, by rounding to nearest.

    Raises:
        ValueError: the group size does not divide in_features.
    """
    groups = grouped(weight.detach().float(), scheme.group_size, name)
    lo, hi = value_range(groups)
    q_min, q_max = integer_range(scheme.bits)
    dtype = scale_dtype(scheme.scale_dtype)
    if scheme.include_zero:
        scale, zero = choose_scale(lo, hi, scheme.bits, scheme.symmetric, scale_dtype=dtype)
        codes, offset = quantize(groups, scale, zero, q_min, q_max), None
    else:
        scale, offset = choose_offset(lo, hi, scheme.bits, dtype)
        codes, zero = (
            quantize(groups - offset.float(), scale, torch.zeros_like(scale), q_min, q_max),
            None,
        )
    return QTensor.from_codes(
        codes.reshape(weight.shape),
        scale[..., 0],
        scheme.bits,
        zero_points=None if scheme.symmetric or zero is None else zero[..., 0],
        offsets=None if offset is None else offset[..., 0],
    )
