"""Every scheme of the registry, as made without arguments and as its own examples spell it, on a model of 48 and 100 inputs."""

from dataclasses import fields, replace

from qkit.methods.registry import SCHEMES
from qkit.methods.scheme import Scheme


def sized(scheme: Scheme) -> Scheme:
    """The same with groups of 4, where it has groups: 128 do not divide the rows of the tests' models."""
    return replace(scheme, group_size=4) if isinstance(getattr(scheme, "group_size", None), int) else scheme


def every_scheme() -> list[Scheme]:
    """At least one of each class, none twice."""
    spelled = [cls.parse(word) for cls in SCHEMES.values() for word in cls.spellings]
    return list(dict.fromkeys(map(sized, [*(cls() for cls in SCHEMES.values()), *spelled])))


def fields_of(scheme: Scheme) -> dict:
    """What it was made with."""
    return {field.name: getattr(scheme, field.name) for field in fields(scheme)}
