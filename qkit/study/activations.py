"""The activations of a model that nobody here made: what SmolLM2-135M feeds its layers, recorded, so that lessons can draw it.

Outliers that one plants oneself prove that a method removes what was planted. SmolLM2's are its own. `recorded()` reads what
`benchmarks/smollm2_activations.py` measured; `activations(model, tokenizer, text)` measures the same of any model.
"""

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qkit.model.facts import device_of
from qkit.model.inputs import InputMaxima, input_maxima
from qkit.model.linear import weight_of
from qkit.text.resources import folder
from qkit.text.tokens import token_chunks

RECORD = "activations.json"
LENGTH = 255  # tokens of the text, behind the one that begins it


@dataclass(frozen=True, eq=False)
class InputRecord:
    """What goes into the layers of a model that reads one text.

    Attributes:
        model: its name.
        tokens: the text in pieces, the first of which begins it.
        maxima: the largest |input| by token and by channel of every input of linear layers.
        weights: for each input float32 [in], the largest |weight| of each column over the layers that share the input: the
            other half of SmoothQuant's factor.
    """

    model: str
    tokens: tuple[str, ...]
    maxima: InputMaxima
    weights: tuple[Tensor, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: activations with three digits, weights with two."""
        return {
            "model": self.model,
            "tokens": list(self.tokens),
            "layers": [list(names) for names in self.maxima.layers],
            "by_token": [_digits(row, 3) for row in self.maxima.by_token],
            "by_channel": [_digits(row, 3) for row in self.maxima.by_channel],
            "weights": [_digits(row, 2) for row in self.weights],
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "InputRecord":
        """The inverse of `to_dict`, to the digits that it keeps."""
        maxima = InputMaxima(
            tuple(map(tuple, record["layers"])),
            torch.tensor(record["by_token"]),
            tuple(map(torch.tensor, record["by_channel"])),
        )
        return cls(record["model"], tuple(record["tokens"]), maxima, tuple(map(torch.tensor, record["weights"])))


def _digits(values: Tensor, digits: int) -> list[float]:
    return [float(f"{value:.{digits}g}") for value in values.tolist()]


@torch.no_grad()
def activations(model: nn.Module, tokenizer, text: str, name: str) -> InputRecord:
    """Those of `model` when it reads the first 255 tokens of `text`.

    Raises:
        ValueError: a text with fewer tokens; a model with quantized layers, whose weights are not what they were.
    """
    ids = token_chunks(text, tokenizer, LENGTH, 1)
    maxima = input_maxima(model, ids.to(device_of(model)))
    modules, columns = dict(model.named_modules()), []
    for names in maxima.layers:
        found = [weight_of(modules[layer]) for layer in names]
        weights = [weight for weight in found if weight is not None]
        if len(weights) != len(names):
            raise ValueError(f"{names[0]!r} is quantized; measure the model as it was")
        columns.append(torch.stack([weight.detach().abs().amax(0).float() for weight in weights]).amax(0))
    pieces = tuple(tokenizer.decode([token]) for token in ids[0].tolist())
    return InputRecord(name, pieces, maxima, tuple(columns))


def recorded() -> InputRecord:
    """Those of SmolLM2-135M-Instruct on the first of the tales, as `benchmarks/smollm2_activations.py` wrote them."""
    return InputRecord.from_dict(json.loads((folder("data") / "measured" / RECORD).read_text(encoding="utf-8")))
