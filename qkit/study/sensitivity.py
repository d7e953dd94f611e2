"""Which layers suffer most: each quantized alone, by several schemes.

Two measures. "error" is cheap: the relative error of the layer's own output, ||ΔW X||² / ||W X||², from the Hessian of one
calibration pass. "kl" is dear and means what it says: the whole model with one layer quantized, KL to the original on the
calibration text. A layer can err much and matter little; only "kl" can tell.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qkit import ops
from qkit.engine.prepare import calibrating, model_ids, prepare
from qkit.engine.progress import progress_bar
from qkit.engine.report import html_table
from qkit.engine.solve import solve_layer
from qkit.engine.walk import walk
from qkit.methods.scheme import NOTHING, Scheme
from qkit.methods.statistics import InputStatistics
from qkit.model.calibration import collect
from qkit.model.linear import bias_of
from qkit.model.surgery import Globs, Target, clone, swap
from qkit.study.reference import Reference
from qkit.text.tokens import CHUNKS

MEASURES = ("error", "kl")
KL_CHUNKS = 4  # of the calibration text, for a measure that runs the model once a layer and scheme


@dataclass(frozen=True)
class Choice:
    """One layer under one scheme."""

    layer: str
    scheme: Scheme
    nbytes: int
    loss: float  # relative output error, or KL in nats per token


@dataclass(frozen=True)
class Sensitivity:
    """Every layer under every scheme."""

    measure: str
    weights: dict[str, int]  # how many each layer has
    choices: tuple[Choice, ...]

    def of(self, layer: str) -> list[Choice]:
        """The choices for one layer, smallest first."""
        return sorted((c for c in self.choices if c.layer == layer), key=lambda c: (c.nbytes, c.loss))

    def worst(self, scheme: Scheme, count: int = 5) -> list[Choice]:
        """The layers that lose most under `scheme`."""
        mine = (choice for choice in self.choices if choice.scheme == scheme)
        return sorted(mine, key=lambda choice: -choice.loss)[:count]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        rows = [{**vars(choice), "scheme": choice.scheme.to_dict()} for choice in self.choices]
        return {"measure": self.measure, "weights": self.weights, "choices": rows}

    def __repr__(self) -> str:
        schemes = dict.fromkeys(choice.scheme.name for choice in self.choices)
        return f"Sensitivity({self.measure}: {len(self.weights)} layers, {', '.join(schemes)})"

    def _repr_html_(self) -> str:
        schemes = list(dict.fromkeys(choice.scheme for choice in self.choices))
        losses = {(choice.layer, choice.scheme): f"{choice.loss:.3g}" for choice in self.choices}
        rows = [[layer, *(losses[layer, scheme] for scheme in schemes)] for layer in self.weights]
        return html_table(["layer", *(scheme.name for scheme in schemes)], rows, repr(self))


@torch.no_grad()
def sensitivity(
    model: nn.Module,
    schemes: Sequence[Scheme],
    *,
    calibration: str | Sequence[str] | Tensor,
    tokenizer=None,
    measure: str = "error",
    max_chunks: int = CHUNKS,
    include: Globs = None,
    exclude: Globs = None,
    progress: bool | None = None,
) -> Sensitivity:
    """Quantize each layer alone by each scheme, and say what it costs. The model is left as it is.

    Args:
        schemes: without scaling: one that folds scales is taken as the rounding it ends with.
        measure: "error" (the layer's output) or "kl" (the model's predictions, on the first 4 calibration chunks; what the
            original says of them is kept meanwhile, 8 kB for each word of its vocabulary).
        calibration, tokenizer, max_chunks, include, exclude, progress: as for `qkit.quantize`.
    """
    if measure not in MEASURES:
        raise ValueError(f"measure={measure!r} is not one of {', '.join(MEASURES)}; use 'error'")
    if isinstance(schemes, Scheme):
        raise TypeError(f"schemes is {schemes.name} alone; give a list of schemes, [scheme, ...]")
    if not schemes:
        raise ValueError("there are no schemes to try; give at least one, e.g. [qkit.RTN(4, 128)]")
    for scheme in schemes:
        if not isinstance(scheme, Scheme):
            raise TypeError(
                f"scheme={scheme!r} is not a scheme; sensitivity tries each scheme on each layer: give single ones, e.g. "
                f"[qkit.RTN(4, 128), qkit.RTN(8)], and no plan by layers"
            )
    ids = model_ids(model, calibration, tokenizer, max_chunks)
    works = [prepare(model, scheme, ids, include=include, exclude=exclude) for scheme in schemes]
    targets = works[0].targets
    # What the original feeds a layer has not drifted; "error" is measured with the Hessian.
    wants = NOTHING.union({"square"}, *(scheme.wants for scheme in schemes)) - {"drift"}
    choices: list[Choice] = []
    original = Reference.of(model, None, ids, KL_CHUNKS, limit=None, progress=False) if measure == "kl" else None
    with progress_bar(progress, "sensitivity", total=len(targets) * len(schemes)) as bar, calibrating(model):
        for target, inputs in _with_inputs(model, targets, ids, wants):
            for scheme in schemes:
                solved = solve_layer(target.weight, bias_of(target.module), scheme, inputs, target.name)
                if original is None:
                    loss = _output_error(target.weight, ops.dequantize(solved.q), inputs)
                else:
                    copy = clone(model)
                    swap(copy, {target.name: solved.layer})
                    loss = original.evaluate({"one": copy}, progress=False)["one"].kl
                choices.append(Choice(target.name, scheme, solved.q.nbytes, loss))
                bar.update()
    return Sensitivity(measure, {t.name: t.weight.numel() for t in targets}, tuple(choices))


def _with_inputs(
    model: nn.Module, targets: list[Target], ids: Tensor, wants: frozenset[str]
) -> Iterator[tuple[Target, InputStatistics | None]]:
    """Each layer with the statistics of what the original model feeds it; block by block, so that few are held."""
    inside: set[str] = set()
    for stop in walk(model, ids, [target.name for target in targets]):
        mine = [target for target in targets if target.name.startswith(f"{stop.block.name}.")]
        names = stop.names([target.name for target in mine])
        known = collect(stop.block, stop.block.module, stop.hidden, names, wants, stop=False) if names else {}
        for target, name in zip(mine, names, strict=True):
            inside.add(target.name)
            yield target, known.get(name)
    yield from ((target, None) for target in targets if target.name not in inside)


def _output_error(weight: Tensor, approximation: Tensor, inputs: InputStatistics | None) -> float:
    """||ΔW X||² / ||W X||²; without inputs, as if they were uncorrelated and equally large."""
    weight, error = weight.float(), approximation - weight.float()
    if inputs is None:
        return float(error.square().sum() / weight.square().sum().clamp(min=1e-30))
    square = inputs.known("square")
    exact = ((weight @ square) * weight).sum()
    return float(((error @ square) * error).sum() / exact.clamp(min=1e-30))
