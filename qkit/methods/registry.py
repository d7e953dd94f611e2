"""All schemes there are. A new one is a file beside this one, and a line here."""

from dataclasses import fields
from typing import Any

from qkit.methods.awq import AWQ
from qkit.methods.codebook import FP4, NF4
from qkit.methods.gptq import GPTQ
from qkit.methods.llm_int8 import LLMInt8
from qkit.methods.rtn import RTN
from qkit.methods.scheme import Scheme
from qkit.methods.smoothquant import SmoothQuant
from qkit.methods.w8a8 import W8A8

SCHEMES: dict[str, type[Scheme]] = {
    scheme.__name__: scheme for scheme in (RTN, LLMInt8, NF4, FP4, GPTQ, AWQ, W8A8, SmoothQuant)
}


def scheme_from_dict(record: dict[str, Any]) -> Scheme:
    """The inverse of `Scheme.to_dict`."""
    arguments = dict(record)
    name = arguments.pop("scheme", None)
    if name not in SCHEMES:
        raise ValueError(f"scheme={name!r} is not one of {', '.join(SCHEMES)}; was it written by a newer qkit?")
    unknown = set(arguments) - {field.name for field in fields(SCHEMES[name])}
    if unknown:
        raise ValueError(f"{name} has no field {', '.join(sorted(unknown))}; was it written by a newer qkit?")
    nested = {key: scheme_from_dict(value) for key, value in arguments.items() if isinstance(value, dict)}
    return SCHEMES[name](**{**arguments, **nested})


def spellings() -> str:
    """Examples of all that `parse_scheme` understands."""
    return ", ".join(word for scheme in SCHEMES.values() for word in scheme.spellings)


def parse_scheme(text: str) -> Scheme:
    """A scheme as the command line spells it, e.g. "w4g128", "gptq-w4g128", "nf4-b128", "smoothquant-0.5-static".

    Raises:
        ValueError: no scheme understands it; or one does, and its arguments are out of range.
    """
    for scheme in SCHEMES.values():
        if (found := scheme.parse(text.lower())) is not None:
            return found
    raise ValueError(f"scheme {text!r} is not understood; write e.g. {spellings()}")
