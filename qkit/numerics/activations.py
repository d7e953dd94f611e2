"""Activations as integers: what is rounded of the numbers that a model computes, rather than of those that it keeps.

What
    A token is a row of numbers. INT8 activations lay its largest magnitude on 127 and round the rest: with a scale each
    token, found while computing ("per-token"), or with one scale for all, found in calibration ("per-tensor").

Formula (LLM.int8(), 2208.07339, eq. 3; SmoothQuant, 2211.10438, section 2)
    q = clamp(round(x / s), -127, 127),   s = absmax / 127          x̂ = s q

`Activations` is the one word for it: schemes, layers and kernels are handed such a value, and so can be whatever else keeps
activations in few bits (keys and values, for one).
"""

from dataclasses import dataclass
from typing import Literal, overload

import torch
from torch import Tensor

from qkit.numerics.mapping import choose_scale, integer_range, quantize


@dataclass(frozen=True)
class Activations:
    """How activations are rounded.

    Attributes:
        bits: of a code.
        static: one scale for all tokens, fixed beforehand; False: a scale each token.
    """

    bits: int = 8
    static: bool = False

    @property
    def granularity(self) -> str:
        """ "per-token" or "per-tensor"."""
        return "per-tensor" if self.static else "per-token"


INT8 = Activations()
STATIC_INT8 = Activations(static=True)
SPELLINGS = {"int8": INT8, "per-token": INT8, "per-tensor": STATIC_INT8}


@overload
def activations_from(spelling: str, known: tuple[str, ...] = ..., optional: Literal[False] = ...) -> Activations: ...


@overload
def activations_from(
    spelling: str | None, known: tuple[str, ...] = ..., optional: bool = ...
) -> Activations | None: ...


def activations_from(
    spelling: str | None, known: tuple[str, ...] = tuple(SPELLINGS), optional: bool = True
) -> Activations | None:
    """What a word of a scheme or a layer means; None where activations stay floats.

    Args:
        known: the words that are taken here.
        optional: may there be none.

    Raises:
        ValueError: another word.
    """
    if spelling is None and optional:
        return None
    if spelling not in known:
        words = " or ".join((["None"] if optional else []) + [f'"{word}"' for word in known])
        raise ValueError(f"activations={spelling!r} is not known; use {words}")
    return SPELLINGS[spelling]


def quantize_activations(x: Tensor) -> Tensor:
    """Fake INT8: each token (row of the last axis) to 255 symmetric levels -127 .. 127 of its own absmax, and back."""
    reach = x.detach().float().abs().amax(-1, keepdim=True)
    scale, zero = choose_scale(-reach, reach, bits=8, symmetric=True, signed=True, narrow=True)
    return (quantize(x, scale, zero, *integer_range(8, signed=True, narrow=True)) * scale).to(x.dtype)


def quantize_activations_int8(x: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """INT8 codes -127 .. 127 of activations, and what one step of them is worth.

    Args:
        x: float [tokens, in].
        scale: float32 [], the same for all tokens, and larger values are clamped; None: absmax / 127 of each token.

    Returns:
        codes int8 [tokens, in], scales float32 [tokens, 1]. int8 has no NaN, so a token that holds NaN gets the scale NaN
        and comes out of a product as NaN; so does one that holds infinity, unless `scale` is given, which clamps it.
    """
    x = x.float()
    if scale is None:
        reach = x.abs().amax(-1, keepdim=True)
        scales, _ = choose_scale(-reach, reach, bits=8, symmetric=True, signed=True, narrow=True)
        bad = ~reach.isfinite()
    else:
        bad = x.isnan().any(-1, keepdim=True)
        scales = scale.float().expand(bad.shape)
    codes = torch.round(x / scales).clamp(-127, 127).nan_to_num(0).to(torch.int8)
    return codes, scales.masked_fill(bad, torch.nan)


def outlier_columns(x: Tensor, threshold: float) -> Tensor:
    """Which input columns hold any |x| >= threshold in any token: bool [in] of x [..., in]."""
    return (x.abs() >= threshold).reshape(-1, x.shape[-1]).any(0)
