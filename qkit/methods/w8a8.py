"""W8A8: integers on both sides of the product, nothing else.

What
    INT8 weights with a scale a row, INT8 activations with a scale a token ("per-token": found while computing) or one for all
    ("per-tensor": found in calibration, so that nothing is measured while computing). INT8 x INT8 is summed in INT32.

Formula: `qkit.methods.int8`.

Trade-off
    Fast on hardware that multiplies INT8. One channel that is much larger than the rest takes the levels of all others:
    SmoothQuant divides it away first, LLM.int8() multiplies it apart.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from qkit.methods.int8 import RANGES, int8_rows, static_scale, stored_bits
from qkit.methods.scheme import Scheme, Solution, check_choice
from qkit.methods.statistics import InputStatistics
from qkit.nn.int8_linear import Int8Linear
from qkit.numerics.qtensor import QTensor


@dataclass(frozen=True)
class W8A8(Scheme):
    """INT8 weights by row and INT8 activations, multiplied as integers.

    Attributes:
        activations: "per-token": a scale for each token, found while computing; "per-tensor": one scale a layer, found in
            calibration and fixed, so that nothing is measured while computing.
        activation_range: how the fixed range is chosen: "min-max", "percentile" (99.99 % of all values) or "mse" (the
            range of least squared error). Of no effect on "per-token".
    """

    colour: ClassVar[str] = "#999999"
    spellings: ClassVar[tuple[str, ...]] = ("w8a8", "w8a8-static")
    activations: str = "per-token"
    activation_range: str = "min-max"

    def __post_init__(self) -> None:
        check_choice("activations", self.activations, Int8Linear.inputs)
        check_choice("activation_range", self.activation_range, RANGES)

    @property
    def calibrated(self) -> bool:  # type: ignore[override]
        """Static activations need data."""
        return self.activations == "per-tensor"

    @property
    def name(self) -> str:
        """For example "W8A8 dynamic"."""
        static = f"static{'' if self.activation_range == 'min-max' else ' ' + self.activation_range}"
        return f"W8A8 {'dynamic' if self.activations == 'per-token' else static}"

    @classmethod
    def parse(cls, word: str) -> "W8A8 | None":
        """w8a8, w8a8-static."""
        kinds = {"w8a8": "per-token", "w8a8-static": "per-tensor"}
        return cls(kinds[word]) if word in kinds else None

    @property
    def weight_bits(self) -> int:
        """8."""
        return 8

    def stored_bits(self, shape: tuple[float, float]) -> float:
        """8, and a share of a float32 scale a row."""
        return stored_bits(shape)

    @property
    def wants(self) -> frozenset[str]:
        """A histogram of |x|, where a static range is to be narrower than all of it."""
        narrow = self.activations == "per-tensor" and self.activation_range != "min-max"
        return frozenset({"magnitudes"} if narrow else ())

    def round(self, weight: Tensor, inputs: InputStatistics | None = None, name: str = "the weight") -> Solution:
        """By `int8_rows`; inputs make no difference to the weight."""
        if inputs is not None:
            inputs.check(name)
        return Solution(int8_rows(weight, name))

    def layer(
        self,
        q: QTensor,
        bias: nn.Parameter | None,
        inputs: InputStatistics | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Int8Linear:
        """With static activations the scale is fixed here; where no token came by, each token will find its own."""
        if self.activations == "per-token" or inputs is None:
            return Int8Linear(q, bias, dtype=dtype)
        scale = static_scale(inputs, self.activation_range)
        return Int8Linear(q, bias, activations="per-tensor", input_scale=scale, dtype=dtype)
