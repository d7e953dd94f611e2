"""The colour, marker and line of a method in every figure."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from qkit.plots.base import BITS_STYLES, GREY, METHOD_COLOURS


class Mark(NamedTuple):
    """How something is drawn, in matplotlib's words."""

    colour: str
    marker: str
    line: str


def mark_of(name: str, scheme: Mapping[str, Any] | None) -> Mark:
    """That of a row of a comparison, by its name and the dictionary of its scheme; None: the original."""
    whole = {"NF4": 4, "FP4": 4, "LLMInt8": 8, "W8A8": 8, "SmoothQuant": 8}
    bits = None if scheme is None else scheme.get("bits", whole.get(scheme["scheme"]))
    return Mark(METHOD_COLOURS.get(name.partition(" ")[0], GREY), *BITS_STYLES.get(bits, ("D", "-")))


def mark_named(name: str) -> Mark:
    """That of a scheme of which only the name is known, e.g. "GPTQ W4 g128"."""
    bits = re.search(r"W(\d)(?!A)", name)
    whole = 4 if name.startswith(("NF4", "FP4")) else 8
    return Mark(
        METHOD_COLOURS.get(name.partition(" ")[0], GREY), *BITS_STYLES.get(int(bits[1]) if bits else whole, ("D", "-"))
    )
