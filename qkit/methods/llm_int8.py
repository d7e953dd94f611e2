"""LLM.int8(): INT8 on both sides of the product, but for the few input columns that are outliers.

What
    Weights have a scale a row, activations one a token. In large models a handful of columns hold values so large that their
    token's scale leaves nothing for the others: those columns, found anew for each input, are multiplied in floating point.

Formula (Dettmers et al. 2022, arXiv 2208.07339, eq. 8)
    O = {columns with any |x| >= threshold}         y = x_O ŵ_Oᵀ + s_x s_w (q_x q_wᵀ over the other columns)

Trade-off
    Nothing is calibrated, and 8 bits lose next to nothing. But the weight takes twice the bytes of 4 bits, and to look for
    outliers and to multiply them apart costs time at every call.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from qkit.methods.int8 import int8_rows, stored_bits
from qkit.methods.scheme import Scheme, Solution
from qkit.methods.statistics import InputStatistics
from qkit.nn.int8_linear import Int8Linear
from qkit.numerics.qtensor import QTensor


@dataclass(frozen=True)
class LLMInt8(Scheme):
    """LLM.int8(): INT8 weights by row, INT8 activations by token, outlier columns in floating point (2208.07339, eq. 8).

    Attributes:
        threshold: an input column with any |x| >= threshold is an outlier; 0 keeps none in floating point.
    """

    observes: ClassVar[bool] = True  # to count the columns that would be outliers
    colour: ClassVar[str] = "#CC79A7"
    spellings: ClassVar[tuple[str, ...]] = ("llm.int8",)
    threshold: float = 6.0

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < float("inf"):
            raise ValueError(
                f"threshold={self.threshold!r} is not a size of activations; use 6.0, or 0 for no outliers"
            )

    @property
    def name(self) -> str:
        """For example "LLM.int8"."""
        return "LLM.int8" + f" t{self.threshold:g}" * (self.threshold != 6.0)

    @classmethod
    def parse(cls, word: str) -> "LLMInt8 | None":
        """llm.int8 or llmint8."""
        return cls() if word in ("llm.int8", "llmint8") else None

    @property
    def weight_bits(self) -> int:
        """8."""
        return 8

    def stored_bits(self, shape: tuple[float, float]) -> float:
        """8, and a share of a float32 scale a row."""
        return stored_bits(shape)

    def round(self, weight: Tensor, inputs: InputStatistics | None = None, name: str = "the weight") -> Solution:
        """By `int8_rows`; a note says how many input columns reach the threshold on the calibration text."""
        q = int8_rows(weight, name)
        if inputs is None:
            return Solution(q)
        inputs.check(name)
        return Solution(q, {"outlier_columns": int((inputs.absmax >= self.threshold).sum())})

    def layer(
        self,
        q: QTensor,
        bias: nn.Parameter | None,
        inputs: InputStatistics | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Int8Linear:
        """One that looks for outliers in whatever it is given."""
        return Int8Linear(q, bias, threshold=self.threshold, dtype=dtype)
