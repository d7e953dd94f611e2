"""The schemes a user writes: small frozen records of *what* is wanted, checked when they are made.

How a scheme is carried out stands in `qkit/methods/`, one file a method.
"""

import re
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch

from qkit.numerics.mapping import GroupSize, check_bits, check_group_size, granularity_name

FLOATS = {"float16": torch.float16, "float32": torch.float32}
ACTIVATIONS = ("per-token", "per-tensor")
RANGES = ("min-max", "percentile", "mse")


@dataclass(frozen=True)
class Scheme:
    """What all schemes have in common: a name for tables, a dictionary for JSON, and whether they need data."""

    calibrated: ClassVar[bool] = False  # True: quantize needs calibration=

    @property
    def name(self) -> str:
        """As tables and legends print it, e.g. "RTN W4 g128"."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the fields, and the scheme's own name as "scheme"."""
        record = {field.name: getattr(self, field.name) for field in fields(self)}
        nested = {key: value.to_dict() for key, value in record.items() if isinstance(value, Scheme)}
        return {"scheme": type(self).__name__, **record, **nested}


def _check_scale_dtype(scale_dtype: str) -> None:
    if scale_dtype not in FLOATS:
        raise ValueError(f'scale_dtype={scale_dtype!r} is not one of {", ".join(FLOATS)}; use "float16"')


def _check_activations(activations: str | None) -> None:
    if activations not in (None, "int8"):
        raise ValueError(f'activations={activations!r} is not known; use None or "int8"')


def _width(bits: int, activations: str | None) -> str:
    """Bits of weights and activations as tables print them: "W4", "W4A8"."""
    return f"W{bits}{'A8' * (activations is not None)}"


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, choices))}; use {choices[0]!r}")


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
        _check_scale_dtype(self.scale_dtype)
        _check_activations(self.activations)

    @property
    def name(self) -> str:
        marks = [" sym"] * self.symmetric + [" min-max"] * (not self.include_zero)
        marks += [f" {self.scale_dtype} scales"] * (self.scale_dtype != "float16")
        return f"RTN {_width(self.bits, self.activations)} {granularity_name(self.group_size)}{''.join(marks)}"


@dataclass(frozen=True)
class LLMInt8(Scheme):
    """LLM.int8(): INT8 weights by row, INT8 activations by token, outlier columns in floating point (2208.07339, eq. 8).

    Attributes:
        threshold: an input column with any |x| >= threshold is an outlier; 0 keeps none in floating point.
    """

    threshold: float = 6.0

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < float("inf"):
            raise ValueError(
                f"threshold={self.threshold!r} is not a size of activations; use 6.0, or 0 for no outliers"
            )

    @property
    def name(self) -> str:
        return "LLM.int8" + f" t{self.threshold:g}" * (self.threshold != 6.0)


@dataclass(frozen=True)
class _Codebook(Scheme):
    """The arguments that NF4 and FP4 share."""

    block_size: int = 64
    double_quant: bool = True

    def __post_init__(self) -> None:
        if self.block_size not in (32, 64, 128, 256, 512, 1024, 2048, 4096):
            raise ValueError(f"block_size={self.block_size!r} is not a power of two from 32 to 4096; use 64")

    @property
    def name(self) -> str:
        return f"{type(self).__name__} b{self.block_size}{' dq' * self.double_quant}"


@dataclass(frozen=True)
class NF4(_Codebook):
    """NormalFloat: 16 levels at quantiles of a normal distribution, one absmax a block (QLoRA, 2305.14314, section 3).

    Attributes:
        block_size: consecutive weights (row after row) that share an absmax, a power of two from 32 to 4096.
        double_quant: store the absmax values in 8 bits themselves: 0.127 instead of 0.5 bits a weight at block size 64.
    """


@dataclass(frozen=True)
class FP4(_Codebook):
    """A 4-bit float (sign, 2 bits of exponent, 1 of mantissa) times one absmax a block. Arguments as for `NF4`."""


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
        _check_scale_dtype(self.scale_dtype)
        _check_activations(self.activations)

    @property
    def name(self) -> str:
        grid = f"{_width(self.bits, self.activations)} {granularity_name(self.group_size)}{' sym' * self.symmetric}"
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
        cls, bits: int = 4, group_size: int | None = 128, symmetric: bool = True, act_order: bool = False
    ) -> "GPTQ":
        """GPTQ as published and as the other libraries run it: nothing of what came after."""
        plain = {"scale_search": False, "match_original": False, "refit_scales": False, "shrink": 0.0}
        return cls(bits, group_size, symmetric, act_order, 0.01, static_groups=act_order, **plain)


@dataclass(frozen=True)
class AWQ(Scheme):
    """AWQ: scales the input channels that matter up before rounding, and folds the scale away (2306.00978).

    Attributes:
        bits: 2 .. 8.
        group_size: weights of a row that share a scale; None: the whole row.
        symmetric: no zero points.
        grid: how many alphas from 0 to 1 are tried.
        clip: search the clipping range too.
        rounding: what rounds the scaled weights, None: to nearest; or a `GPTQ` of your choice.
        activations: "int8": a layer rounds each token it is given to INT8 as well (W4A8 and so on), and multiplies integers;
            faster, and less exact. None: floats.
    """

    calibrated: ClassVar[bool] = True
    bits: int = 4
    group_size: int | None = 128
    symmetric: bool = False
    grid: int = 20
    clip: bool = True
    rounding: GPTQ | None = None
    activations: str | None = None

    def __post_init__(self) -> None:
        check_bits(self.bits)
        _check_activations(self.activations)
        check_group_size(self.group_size)
        if self.group_size == "tensor":
            raise ValueError('AWQ clips group by group; group_size="tensor" is for RTN, use None (one scale a row)')
        if not isinstance(self.grid, int) or self.grid < 1:
            raise ValueError(f"grid={self.grid!r} tries no alpha; use a whole number from 1, 20 is usual")
        if self.rounding is not None:
            if not isinstance(self.rounding, GPTQ):
                raise TypeError(f"rounding={self.rounding!r} is no GPTQ scheme; use GPTQ(...) or None")
            mine = (self.bits, self.group_size, self.symmetric)
            if mine != (self.rounding.bits, self.rounding.group_size, self.rounding.symmetric):
                raise ValueError(
                    f"AWQ and its rounding disagree on bits, group_size or symmetric ({self.name} and "
                    f"{self.rounding.name}); give both the same"
                )

    @property
    def name(self) -> str:
        marks = [" sym"] * self.symmetric + [" no clip"] * (not self.clip) + [" + GPTQ"] * (self.rounding is not None)
        return f"AWQ {_width(self.bits, self.activations)} {granularity_name(self.group_size)}{''.join(marks)}"


@dataclass(frozen=True)
class W8A8(Scheme):
    """INT8 weights by row and INT8 activations, multiplied as integers.

    Attributes:
        activations: "per-token": a scale for each token, found while computing; "per-tensor": one scale a layer, found in
            calibration and fixed, so that nothing is measured while computing.
        activation_range: how the fixed range is chosen: "min-max", "percentile" (99.99 % of all values) or "mse" (the
            range of least squared error). Of no effect on "per-token".
    """

    activations: str = "per-token"
    activation_range: str = "min-max"

    def __post_init__(self) -> None:
        _check_choice("activations", self.activations, ACTIVATIONS)
        _check_choice("activation_range", self.activation_range, RANGES)

    @property
    def calibrated(self) -> bool:  # type: ignore[override]
        """Static activations need data."""
        return self.activations == "per-tensor"

    @property
    def name(self) -> str:
        static = f"static{'' if self.activation_range == 'min-max' else ' ' + self.activation_range}"
        return f"W8A8 {'dynamic' if self.activations == 'per-token' else static}"


@dataclass(frozen=True)
class SmoothQuant(Scheme):
    """SmoothQuant: moves the difficulty of activations into the weights, then W8A8 (2211.10438, eq. 4).

    Attributes:
        alpha: 1 moves all difficulty to the weights, 0 all to the activations; None searches it for each smoothed group,
            no smoothing included.
        activations, activation_range: those of `W8A8`.
        rounding: what rounds the smoothed weights, None: to nearest; or `GPTQ(8, None, symmetric=True)`.
    """

    calibrated: ClassVar[bool] = True
    alpha: float | None = 0.5
    activations: str = "per-token"
    activation_range: str = "min-max"
    rounding: GPTQ | None = None

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha!r} is outside [0, 1]; use 0.5, or None to search it")
        W8A8(self.activations, self.activation_range)
        if self.rounding is not None:
            if not isinstance(self.rounding, GPTQ):
                raise TypeError(f"rounding={self.rounding!r} is no GPTQ scheme; use GPTQ(8, None, symmetric=True)")
            if (self.rounding.bits, self.rounding.group_size, self.rounding.symmetric) != (8, None, True):
                raise ValueError(
                    f"rounding={self.rounding.name} does not give INT8 weights by row; use GPTQ(8, None, symmetric=True)"
                )

    @property
    def name(self) -> str:
        alpha = "searched" if self.alpha is None else f"{self.alpha:g}"
        rounding = " + GPTQ" * (self.rounding is not None)
        return f"SmoothQuant {alpha} {W8A8(self.activations, self.activation_range).name[5:]}{rounding}"


SCHEMES: dict[str, type[Scheme]] = {
    scheme.__name__: scheme for scheme in (RTN, LLMInt8, NF4, FP4, GPTQ, AWQ, W8A8, SmoothQuant)
}


def scheme_from_dict(record: dict[str, Any]) -> Scheme:
    """The inverse of `to_dict`."""
    arguments = dict(record)
    name = arguments.pop("scheme", None)
    if name not in SCHEMES:
        raise ValueError(f"scheme={name!r} is not one of {', '.join(SCHEMES)}; was it written by a newer qkit?")
    unknown = set(arguments) - {field.name for field in fields(SCHEMES[name])}
    if unknown:
        raise ValueError(f"{name} has no field {', '.join(sorted(unknown))}; was it written by a newer qkit?")
    nested = {key: scheme_from_dict(value) for key, value in arguments.items() if isinstance(value, dict)}
    return SCHEMES[name](**{**arguments, **nested})


def parse_scheme(text: str) -> Scheme:
    """A scheme as the command line spells it.

    w8, w4g128, w4g128sym, w8tensor: rounding; gptq-w4g128, awq-w3g128; nf4, fp4, nf4-b128; llm.int8;
    w8a8, w8a8-static; smoothquant, smoothquant-0.8, smoothquant-0.5-static.
    """
    word = text.lower()
    if match := re.fullmatch(r"w8a8(-static)?", word):
        return W8A8("per-tensor" if match[1] else "per-token")
    if match := re.fullmatch(r"(?:(gptq|awq)-)?w(\d+)(a8)?(?:g(\d+)|(tensor))?(sym)?", word):
        method, bits, a8, group, tensor, symmetric = match.groups()
        scheme = {"gptq": GPTQ, "awq": AWQ, None: RTN}[method]
        activations = "int8" if a8 else None
        return scheme(int(bits), int(group) if group else tensor, symmetric is not None, activations=activations)
    if match := re.fullmatch(r"(nf4|fp4)(?:-b(\d+))?", word):
        return {"nf4": NF4, "fp4": FP4}[match[1]](int(match[2] or 64))
    if word in ("llm.int8", "llmint8"):
        return LLMInt8()
    if match := re.fullmatch(r"smoothquant(?:-(\d(?:\.\d+)?))?(-static)?", word):
        return SmoothQuant(float(match[1] or 0.5), "per-tensor" if match[2] else "per-token")
    raise ValueError(
        f"scheme {text!r} is not understood; write e.g. w8, w4g128, w4g128sym, w4a8g128, gptq-w4g128, awq-w3g128, nf4, fp4, "
        f"llm.int8, w8a8, w8a8-static, smoothquant-0.5"
    )
