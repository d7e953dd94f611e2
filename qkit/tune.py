"""After rounding: let the scales and the norms learn to predict what the original predicts.

What
    The codes stay as they are, so not one bit is added. What is left to choose are numbers that are stored anyway: one
    scale a group, the gains of the norms, the biases. All of them are moved together, by gradient descent, to where the
    quantized model's next-token distribution is closest to the original's:  min KL(p_original || p_quantized).

Where from
    Training only step sizes, codes fixed, is the second phase of EfficientQAT (Chen et al. 2024, arXiv 2407.11062); adapting
    only norms is Norm Tweaking (Li et al. 2023, arXiv 2309.02784). Both weigh the error of a layer by what it does to the
    output of the model, which no layer-by-layer method can see.

Trade-off
    It needs gradients through the whole model (several times the memory of inference), minutes instead of seconds, and it
    learns the calibration text. At 4 bits it gains little, at 2 bits much.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from qkit.calibration import CHUNKS, batches_of, calibration_chunks
from qkit.codebook_qtensor import CodebookQTensor
from qkit.modules import Int8Linear, QLinear, quantized_layers
from qkit.qtensor import QTensor
from qkit.surgery import clone, swap
from qkit.tokens import chunk_length


@dataclass(frozen=True)
class TuneReport:
    """What tuning did on the calibration text."""

    losses: tuple[float, ...]  # mean KL (nats per token) of each pass over the text, while it learned
    parameters: int  # how many numbers were moved

    def __repr__(self) -> str:
        losses = " -> ".join(f"{loss:.4f}" for loss in self.losses)
        return f"TuneReport({self.parameters:,} scales, gains and biases, KL {losses} nats)"


class _Tunable(nn.Module):
    """A QLinear whose scales can learn: s (1 + t), with t = 0 at the start."""

    def __init__(self, layer: QLinear) -> None:
        super().__init__()
        q = layer.qtensor
        rows, groups = q.scales.shape
        self.shape, self.q, self.bias = q.shape, q, layer.bias
        self.steps = q.codes().reshape(rows, groups, -1).float() - q.zeros()[..., None]
        self.offsets = 0.0 if q.offsets is None else q.offsets.float()[..., None]
        self.t = nn.Parameter(torch.zeros_like(q.scales, dtype=torch.float32))

    def scales(self) -> Tensor:
        return self.q.scales.float() * (1 + self.t)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.scales()[..., None] * self.steps + self.offsets
        return F.linear(x, weight.reshape(self.shape).to(x.dtype), self.bias)

    def learned(self) -> QTensor:
        scales = self.scales().detach().to(self.q.scales.dtype)
        parts = {**self.q.tensors(), "scales": scales}
        return QTensor(**parts, **self.q.meta())


def tune(
    model: nn.Module,
    original: nn.Module,
    *,
    calibration: str | Sequence[str] | Tensor,
    tokenizer=None,
    max_chunks: int = CHUNKS,
    epochs: int = 4,
    learning_rate: float = 2e-3,
    progress: bool | None = None,
) -> TuneReport:
    """Tune the scales, norm gains and biases of a quantized model, in place; the codes stay.

    Args:
        model: quantized by qkit. An error or Ctrl-C leaves it as it was.
        original: what it was quantized from; a clone or another copy, not the same module.
        calibration, tokenizer, max_chunks: as for `qkit.quantize`.
        epochs: passes over the text.
        learning_rate: of Adam, in shares of a scale; falls to 0 on a straight line.

    Raises:
        ValueError: nothing in the model can be tuned, or the loss is not finite.
    """
    layers = {name: layer for name, layer in quantized_layers(model).items() if _has_scales(layer)}
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no weight-only quantized layer whose scales could learn (codebooks and INT8 "
            f"layers cannot); quantize it with RTN, GPTQ or AWQ first"
        )
    ids = calibration_chunks(calibration, tokenizer, chunk_length(model), max_chunks)
    copy = clone(model).eval()
    tunables = {name: _Tunable(layer) for name, layer in layers.items()}
    swap(copy, tunables)
    vectors = _own_vectors(copy)
    parameters = [*vectors.values(), *(tunable.t for tunable in tunables.values())]
    for parameter in parameters:
        parameter.requires_grad_(True)

    losses = _descend(copy, original, parameters, ids, epochs, learning_rate, progress)

    for name, tunable in tunables.items():
        bias = None if tunable.bias is None else nn.Parameter(tunable.bias.detach(), requires_grad=False)
        swap(model, {name: QLinear(tunable.learned(), bias, layers[name].activations).train(layers[name].training)})
    for name, parameter in vectors.items():
        owner, _, leaf = name.rpartition(".")
        if owner not in tunables:
            setattr(model.get_submodule(owner), leaf, nn.Parameter(parameter.detach(), requires_grad=False))
    return TuneReport(tuple(losses), sum(parameter.numel() for parameter in parameters))


def _has_scales(layer: QLinear) -> bool:
    return not isinstance(layer, Int8Linear) and not isinstance(layer.qtensor, CodebookQTensor)


def _own_vectors(copy: nn.Module) -> dict[str, nn.Parameter]:
    """Gains and biases: every floating parameter with one axis, replaced by one of the copy's own; the rest is frozen."""
    own = {}
    for name, parameter in list(copy.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        if leaf == "t":
            continue
        vector = parameter.dim() == 1 and parameter.is_floating_point()
        data = parameter.detach().clone() if vector else parameter.detach()
        replacement = nn.Parameter(data, requires_grad=False)
        setattr(copy.get_submodule(owner), leaf, replacement)
        if vector:
            own[name] = replacement
    return own


def _descend(
    copy: nn.Module,
    original: nn.Module,
    parameters: list[nn.Parameter],
    ids: Tensor,
    epochs: int,
    learning_rate: float,
    progress: bool | None,
) -> list[float]:
    batches = batches_of(ids)
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=epochs * len(batches))
    device = parameters[0].device
    losses = []
    bar = tqdm(
        total=epochs * len(batches), desc="tuning", unit="step", disable=None if progress is None else not progress
    )
    with bar:
        for epoch in range(epochs):
            total = 0.0
            order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(epoch))
            for batch in (batches[i].to(device) for i in order.tolist()):
                with torch.no_grad():
                    log_p = original(input_ids=batch, use_cache=False).logits.float().log_softmax(-1)
                log_q = copy(input_ids=batch, use_cache=False).logits.float().log_softmax(-1)
                loss = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
                if not math.isfinite(loss.item()):
                    raise ValueError(
                        f"the loss became {loss.item()} in pass {epoch + 1}; use a smaller learning_rate than "
                        f"{learning_rate}, and check the model with qkit.perplexity"
                    )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.item()
                bar.update()
            losses.append(total / len(batches))
    return losses
