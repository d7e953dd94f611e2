"""Open tasks: nothing is right, but one answer is better than another, and a score on this machine says by how much."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

import qkit
from qkit.exercises.core import Verdict, unwritten
from qkit.numerics.stored import StoredWeight
from qkit.text.tokens import calibration_chunks

LAYER = "model.layers.2.mlp.down_proj"  # whose weight lessons 01, 02, 05 and 06 look at, [384, 1024]


@dataclass(frozen=True)
class OpenTask:
    """A loss to beat at a cost that must not be exceeded.

    Attributes:
        name: the lesson, "02".
        measure: takes an answer, gives (cost, loss), or None where nothing was attempted. What is wrong with an answer it says in
            a ValueError.
        budget: the highest cost.
        to_beat: the loss that a lower one beats.
        cost: what is spent, in words, "bits a weight"; `loss` likewise, "% error".
        digits: of the loss, behind the point.
    """

    name: str
    measure: Callable[[Any], tuple[float, float] | None]
    budget: float
    to_beat: float
    cost: str
    loss: str
    digits: int = 2

    def score(self, answer: Any) -> Verdict:
        """Measure `answer`: passed where it beats the loss within the budget, None where there is nothing to measure."""
        measured = None if unwritten(answer) else self.measure(answer)
        aim = f"to beat: {self.to_beat:.{self.digits}f} {self.loss} at {self.budget:g} {self.cost}"
        if measured is None:
            return Verdict(None, f"{self.name} open task, {aim}. Not attempted yet.")
        cost, loss = measured
        said = f"{self.name} open task: {loss:.{self.digits}f} {self.loss} at {cost:.4g} {self.cost}; {aim}"
        if not cost <= self.budget:
            return Verdict(False, f"{said}. That costs too much: stay within {self.budget:g} {self.cost}.")
        if not loss < self.to_beat:
            return Verdict(False, f"{said}. Not beaten yet.")
        return Verdict(True, f"{said}. Beaten, by {100 * (1 - loss / self.to_beat):.1f} %.")


def the_layer() -> Tensor:
    """The weight of `LAYER`, float32 [384, 1024]."""
    return qkit.load("bookworm-14m")[0].get_parameter(f"{LAYER}.weight").detach()


def chunks_to_learn_from(tokenizer) -> Tensor:
    """Token ids [16, 512] of tales that judge nothing."""
    tales = [tale for i, tale in enumerate(qkit.passages("tales")) if i % 6 in (1, 2, 4)]
    return calibration_chunks(tales, tokenizer, max_chunks=16)


def check_calibration(calibration: Any, judges: list[str]) -> None:
    """Refuse texts that contain a passage that judges; tokens are not read.

    Raises:
        ValueError: one does.
    """
    texts = [calibration] if isinstance(calibration, str) else calibration if isinstance(calibration, list) else []
    if any(judge.strip() in text for judge in judges for text in texts):
        raise ValueError(
            "the calibration contains a tale that judges; learn from others, qkit.passages('tales')[1::6] say"
        )


def check_stored(q: object) -> StoredWeight:
    """The answer, if its bits can be counted.

    Raises:
        TypeError: they cannot.
    """
    if not isinstance(q, StoredWeight):
        raise TypeError(
            f"the answer is {type(q).__name__}, whose bits cannot be counted; give a stored weight, as "
            f"qkit.quantize_tensor and qkit.QTensor.from_codes make them"
        )
    return q


def percent_off(weight: Tensor, approximation: Tensor) -> float:
    """The norm of the error over the norm of the weight, in percent.

    Raises:
        ValueError: the approximation has another shape, or is not finite.
    """
    if approximation.shape != weight.shape:
        raise ValueError(
            f"the answer stands for a weight of {list(approximation.shape)}; the layer is {list(weight.shape)}"
        )
    if not approximation.isfinite().all():
        raise ValueError("the answer stands for weights that are NaN or infinite; look for a scale of 0")
    return 100 * float((approximation.double() - weight.double()).norm() / weight.double().norm())


def check_factors(f: Tensor, columns: int) -> None:
    """Refuse factors that cannot be folded into the layer before.

    Raises:
        ValueError: they are not one for each column, or not all above 0.
    """
    if f.shape != (columns,) or not (f > 0).all() or not f.isfinite().all():
        raise ValueError(f"the factors are {list(f.shape)}, or not all above 0; give {columns}, one for each input")
