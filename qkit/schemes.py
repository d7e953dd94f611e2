"""The schemes a user writes: small frozen records of *what* is wanted, checked when they are made.

How a scheme is carried out stands in `qkit/methods/`, one file a method.
"""

import re
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from qkit.mapping import GroupSize, check_bits, check_group_size, granularity_name

FLOATS = {"float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class RTN:
    """Round to nearest: every weight goes to the closest step of its group's grid. No data needed, done in milliseconds.

    Attributes:
        bits: bits of one code, 2 .. 8.
        group_size: how many weights of a row share a scale; None: the whole row; "tensor": the whole tensor.
        symmetric: the same reach on both sides of zero, no zero points to store.
        include_zero: False lays an asymmetric range on [min, max] alone and stores the minimum instead of a zero point.
        scale_dtype: "float16" (rounded up; float32 when the scales leave its range) or "float32".
    """

    bits: int = 4
    group_size: GroupSize = None
    symmetric: bool = False
    include_zero: bool = True
    scale_dtype: str = "float16"

    def __post_init__(self) -> None:
        check_bits(self.bits)
        check_group_size(self.group_size)
        if self.symmetric and not self.include_zero:
            raise ValueError(
                "symmetric=True with include_zero=False contradict each other: a symmetric range always includes zero; "
                "leave one of them out"
            )
        if self.scale_dtype not in FLOATS:
            raise ValueError(f'scale_dtype={self.scale_dtype!r} is not one of {", ".join(FLOATS)}; use "float16"')

    @property
    def name(self) -> str:
        """As tables and legends print it, e.g. "RTN W4 g128"."""
        marks = [" sym"] * self.symmetric + [" min-max"] * (not self.include_zero)
        marks += [f" {self.scale_dtype} scales"] * (self.scale_dtype != "float16")
        return f"RTN W{self.bits} {granularity_name(self.group_size)}{''.join(marks)}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the fields, and the scheme's own name as "scheme"."""
        return {"scheme": type(self).__name__, **asdict(self)}


SCHEMES = {"RTN": RTN}


def scheme_from_dict(record: dict[str, Any]) -> RTN:
    """The inverse of `to_dict`."""
    arguments = dict(record)
    name = arguments.pop("scheme", None)
    if name not in SCHEMES:
        raise ValueError(f"scheme={name!r} is not one of {', '.join(SCHEMES)}; was it written by a newer qkit?")
    unknown = set(arguments) - {field.name for field in fields(SCHEMES[name])}
    if unknown:
        raise ValueError(f"{name} has no field {', '.join(sorted(unknown))}; was it written by a newer qkit?")
    return SCHEMES[name](**arguments)


def parse_scheme(text: str) -> RTN:
    """A scheme as the command line spells it: w8, w4g128, w4g128sym, w8tensor, w8tensorsym."""
    match = re.fullmatch(r"w(\d+)(?:g(\d+)|(tensor))?(sym)?", text.lower())
    if match is None:
        raise ValueError(
            f"scheme {text!r} is not understood; write bits, group and symmetry, e.g. w8, w4g128, w4g128sym"
        )
    bits, group, tensor, symmetric = match.groups()
    return RTN(int(bits), int(group) if group else tensor, symmetric is not None)
