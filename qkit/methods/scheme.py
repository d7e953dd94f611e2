"""What a scheme is: a small frozen record of what is wanted, and the handful of questions that everybody asks of it.

A scheme is one file of this folder. It holds the record that a user writes, checked when it is made, and the pure functions
that carry it out; whoever quantizes, compares, saves, draws or advises asks the record, and never which class it is:

    how is it called        `name`, `to_dict`, `parse` and `spellings` (the command line), `colour` (figures)
    what does it need       `calibrated`, `observes`, `wants`, `sequential`; `scales` and `search_scale` where it scales first
    what does it do         `round` a weight, `layer` that holds the result
    what does it cost       `weight_bits`, `stored_bits`
    what of it goes here    `fitted`, `check`

A new one is a file with these, its tests, and a line in `qkit.methods.registry`. This file knows none of them.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from qkit.methods.statistics import InputStatistics
from qkit.nn.qlinear import QLinear
from qkit.numerics.activations import activations_from
from qkit.numerics.mapping import GroupSize, check_finite
from qkit.numerics.stored import StoredWeight

NOTHING: frozenset[str] = frozenset()
SMALLEST_GROUP = 16  # of a scheme that is fitted: with less its scales and zero points outweigh what they gain
LARGEST = torch.finfo(torch.float32).max / 4  # of a weight: differences and sums of two stay inside float32


@dataclass(frozen=True, eq=False)
class Solution:
    """What became of one weight.

    Attributes:
        q: the weight as it is stored.
        notes: facts that this method alone reports, for JSON.
        warnings: what a careful reader should know, sentences.
    """

    q: StoredWeight
    notes: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class ScaleSearch:
    """What a search for the scale of some input channels found.

    Attributes:
        scale: float32 [width], what the weights are multiplied by; ones where no scaling was best.
        alpha: of the scale; None for no scaling.
        alphas, losses: all that were tried, and the output error of each, relative to ||W X||²; None is no scaling. Empty
            where alpha was given.
        salience: float32 [in], what made channels matter: the mean or the largest |x| of each.
    """

    scale: Tensor
    alpha: float | None
    alphas: tuple[float | None, ...]
    losses: tuple[float, ...]
    salience: Tensor


@dataclass(frozen=True)
class Scheme(ABC):
    """What all schemes have in common. Those of a kind are equal when their fields are.

    Fields are what JSON holds unchanged (numbers, words, None) or other schemes, and each has a default: the scheme that is
    made without arguments is the usual one.

    Attributes:
        calibrated: it needs a calibration text.
        observes: it needs none, but looks at one that is offered.
        scales: it folds scales out of the inputs before it rounds (`search_scale`).
        colour: in every figure, "#RRGGBB" in capitals, no other scheme's.
        spellings: examples of what `parse` understands and no other scheme does, for help and error messages.
    """

    calibrated: ClassVar[bool] = False
    observes: ClassVar[bool] = False
    scales: ClassVar[bool] = False
    colour: ClassVar[str]
    spellings: ClassVar[tuple[str, ...]]

    @property
    @abstractmethod
    def name(self) -> str:
        """As tables and legends print it: the method first, then bits and grouping, e.g. "Name W4 g128"."""

    @classmethod
    @abstractmethod
    def parse(cls, word: str) -> "Scheme | None":
        """The scheme that `word` (lower case) spells on the command line; None if it is another's."""

    @property
    @abstractmethod
    def weight_bits(self) -> int:
        """Bits of one code."""

    @abstractmethod
    def stored_bits(self, shape: tuple[float, float]) -> float:
        """Bits that a weight takes of a layer [out, in]: its code and its share of scales and zero points."""

    @abstractmethod
    def round(self, weight: Tensor, inputs: InputStatistics | None = None, name: str = "the weight") -> Solution:
        """Quantize `weight` [out, in], any float dtype.

        Args:
            inputs: statistics of what the layer is given, with what it `wants`. None: there are none; a method that learns
                from data rounds to nearest then.
            name: how errors call the weight.

        Raises:
            ValueError: a weight that this scheme cannot quantize.
        """

    def layer(
        self,
        q: StoredWeight,
        bias: nn.Parameter | None,
        inputs: InputStatistics | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> QLinear:
        """The module that holds what `round` returned.

        Args:
            inputs: as for `round`.
            dtype: of the weight that was rounded.
        """
        return QLinear(q, bias, getattr(self, "activations", None), dtype=dtype)

    @property
    def wants(self) -> frozenset[str]:
        """The costly statistics (`qkit.methods.statistics.WANTS`) of its inputs that a layer needs to be rounded."""
        return NOTHING

    @property
    def sequential(self) -> bool:
        """Whether layers are rounded one after the other, each on what those rounded before it put out."""
        return False

    @property
    def scale_wants(self) -> frozenset[str]:
        """The costly statistics that the search for scales needs."""
        return NOTHING

    def search_scale(
        self, weight: Tensor, inputs: InputStatistics, index: Tensor, width: int, name: str = "the layers"
    ) -> ScaleSearch:
        """The scale that some input channels are multiplied by before rounding; only of a scheme that `scales`.

        Args:
            weight: float32 [out, in], the weights of all layers that share these inputs, one below the other.
            inputs: their statistics, with what `scale_wants` names.
            index, width: input k uses scale index[k] of `width` (`qkit.model.folding.Fold`).
            name: how errors call them.
        """
        raise TypeError(f"{self.name} folds no scales; only a scheme whose `scales` is True does")

    def check(self, weight: Tensor, name: str = "the weight") -> None:
        """Refuse a weight that this scheme cannot quantize, before any work is done.

        Raises:
            TypeError, ValueError: naming the weight.
        """
        check_weight(weight, name)

    def fitted(self, widths: Iterable[int]) -> "Scheme":
        """The same with groups that go into rows of all these `widths` (in_features), for who takes a scheme that nobody chose
        for this very model: a group size that does not divide them is halved until it does, as 128 to 64 for rows of 576; below
        `SMALLEST_GROUP` a row is one group.
        """
        width, changes = math.gcd(*widths), {}
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, Scheme):
                changes[one.name] = value.fitted([width])
            elif one.name == "group_size" and isinstance(value, int):
                while width % value and value > SMALLEST_GROUP:
                    value //= 2
                changes[one.name] = None if width % value else value
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the fields, and the scheme's own name as "scheme"."""
        record = {field.name: getattr(self, field.name) for field in fields(self)}
        nested = {key: value.to_dict() for key, value in record.items() if isinstance(value, Scheme)}
        return {"scheme": type(self).__name__, **record, **nested}


def check_weight(weight: Tensor, name: str = "the weight") -> None:
    """Refuse what is no weight [out, in] of finite floats that float32 arithmetic can take."""
    if not isinstance(weight, Tensor):
        raise TypeError(f"{name} is a {type(weight).__name__}; give a torch tensor [out, in]")
    if weight.dim() != 2 or not weight.is_floating_point() or not weight.numel():
        raise ValueError(
            f"{name} is {weight.dtype} of shape {tuple(weight.shape)}; give a float weight [out, in] that is not empty"
        )
    if weight.is_meta:
        raise ValueError(f"{name} has no data (device meta); load the model without device_map and without offloading")
    check_finite(weight, name)
    if (reach := float(weight.detach().abs().max())) > LARGEST:
        raise ValueError(
            f"{name} reaches {reach:.2g}, float32 arithmetic needs |w| <= {LARGEST:.2g}; divide the weight by it"
        )


# ---- what several schemes share: words for grids of b bits in groups


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse a word that is none of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, choices))}; use {choices[0]!r}")


def check_weight_only(activations: str | None) -> None:
    """Refuse what the `activations` of a weight-only scheme cannot be."""
    activations_from(activations, ("int8",))


def width_name(bits: int, activations: str | None) -> str:
    """Bits of weights and activations as tables print them: "W4", "W4A8"."""
    return f"W{bits}{'A8' * (activations is not None)}"


def parse_grid(word: str) -> dict[str, Any] | None:
    """Arguments of a scheme from "w4", "w4g128", "w4a8g128sym" or "w8tensor"; None for any other word."""
    match = re.fullmatch(r"w(\d+)(a8)?(?:g(\d+)|(tensor))?(sym)?", word)
    if match is None:
        return None
    bits, a8, group, tensor, symmetric = match.groups()
    group_size: GroupSize = int(group) if group else "tensor" if tensor else None
    return {
        "bits": int(bits),
        "group_size": group_size,
        "symmetric": symmetric is not None,
        "activations": "int8" if a8 else None,
    }
