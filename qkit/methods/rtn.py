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

import torch
from torch import Tensor

from qkit.methods.schemes import FLOATS, RTN
from qkit.numerics.mapping import choose_offset, choose_scale, grouped, integer_range, quantize, value_range
from qkit.numerics.qtensor import QTensor


def rtn(weight: Tensor, scheme: RTN, name: str = "the weight") -> QTensor:
    """Quantize `weight` [out, in], any float dtype, by rounding to nearest.

    Raises:
        ValueError: the group size does not divide in_features.
    """
    groups = grouped(weight.detach().float(), scheme.group_size, name)
    lo, hi = value_range(groups)
    q_min, q_max = integer_range(scheme.bits)
    dtype = FLOATS[scheme.scale_dtype]
    if scheme.include_zero:
        scale, zero = choose_scale(lo, hi, scheme.bits, scheme.symmetric, scale_dtype=dtype)
        codes, offset = quantize(groups, scale, zero, q_min, q_max), None
    else:
        scale, offset = choose_offset(lo, hi, scheme.bits, dtype)
        codes, zero = quantize(groups - offset.float(), scale, torch.zeros(()), q_min, q_max), None
    return QTensor.from_codes(
        codes.reshape(weight.shape),
        scale[..., 0],
        scheme.bits,
        zero_points=None if scheme.symmetric or zero is None else zero[..., 0],
        offsets=None if offset is None else offset[..., 0],
    )
