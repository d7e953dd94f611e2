"""The colour, marker and line of a scheme in every figure: its method has the colour, the bits of its codes the rest."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from qkit.methods.registry import scheme_from_dict
from qkit.plots.base import BITS_STYLES, EXAMPLES, METHOD_COLOURS


class Mark(NamedTuple):
    """How something is drawn, in matplotlib's words."""

    colour: str
    marker: str
    line: str


ORIGINAL = Mark(METHOD_COLOURS["FP32"], "D", "-")
OTHER = Mark("#555555", "P", "-")  # no single scheme: a plan by layers, a name of one's own


def mark_of(scheme: Mapping[str, Any] | None) -> Mark:
    """That of a report, from the dictionary of its scheme or plan; None: the original."""
    if scheme is None:
        return ORIGINAL
    if scheme["scheme"] == "by layer":
        return OTHER
    found = scheme_from_dict(dict(scheme))
    return _mark(found.colour, found.weight_bits)


def mark_named(name: str) -> Mark:
    """That of a scheme of which only the name is known, e.g. "GPTQ W4 g128"."""
    method = name.partition(" ")[0]
    if method == "FP32":
        return ORIGINAL
    if method not in EXAMPLES:
        return OTHER
    width = re.search(r"\bW(\d)", name)
    return _mark(EXAMPLES[method].colour, int(width[1]) if width else EXAMPLES[method].weight_bits)


def _mark(colour: str, bits: int) -> Mark:
    return Mark(colour, *BITS_STYLES.get(bits, ("D", "-")))
