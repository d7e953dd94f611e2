"""After rounding: let scales, norms and the codes themselves learn to predict what the original predicts.

What
    Rounding decides layer by layer. Here the whole model is judged at once, by how far its next-token distribution is from
    the original's:  min KL(p_original || p_quantized)  by gradient descent. What moves are numbers that are stored anyway:
    one scale a group, the gains of the norms, the biases, and (unless codes=False) the codes. Not one bit is added.

Formula
    ŵ = s (1 + t) (q - z),   q = clamp(round(u), 0, 2^b - 1)
    u is the latent code, a real number: it starts where the original weight lies inside the bin of its code, w / s + z, so
    that at first every code is what it was. Rounding has no slope; the gradient of q is handed to u as if it had slope 1
    (the straight-through estimator). Many small pushes in one direction carry u over the edge of its bin: the code changes.
    Zero points and offsets stay. A group that holds only zeros stays, its scale says nothing of what a step would cost.

Where from
    The straight-through estimator is from Bengio et al. 2013 (arXiv 1308.3432). Choosing codes by gradient instead of by
    distance: AdaRound (Nagel et al. 2020, arXiv 2004.10568) and SignRound (Cheng et al. 2023, arXiv 2309.05516), which keep
    u within half a step of where it began; here nothing needs to hold it, for it goes no further in so few steps. Only step
    sizes, codes fixed (codes=False): the second phase of EfficientQAT (Chen et al. 2024, arXiv 2407.11062); only norms:
    Norm Tweaking (Li et al. 2023, arXiv 2309.02784). `own_text`, the original's own writing as calibration text: LLM-QAT
    (Liu et al. 2023, arXiv 2305.17888).

Trade-off
    It needs gradients through the whole model (several times the memory of inference; for the codes 16 bytes a weight more:
    u, its gradient and what Adam remembers of it), minutes instead of seconds, and it learns the calibration text: the loss
    it reports falls far below the divergence on other text. More text is the cure, and the original can write it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qkit.engine.prepare import check_model, model_ids
from qkit.engine.progress import progress_bar
from qkit.model.calibration import batches_of
from qkit.model.facts import check_ids, why_no_text
from qkit.model.hooks import evaluating
from qkit.model.linear import weight_of
from qkit.model.surgery import clone, set_parameter, swap
from qkit.nn.layers import quantized_layers
from qkit.nn.qlinear import QLinear
from qkit.numerics.packing import pack
from qkit.numerics.qtensor import QTensor
from qkit.text.tokens import CHUNKS


@dataclass(frozen=True)
class TuneReport:
    """What tuning did on the calibration text."""

    losses: tuple[float, ...]  # mean KL (nats per token) of each pass over the text, while it learned
    parameters: int  # how many scales, gains and biases were moved
    codes: int = 0  # how many codes could change
    changed: int = 0  # how many did

    def __repr__(self) -> str:
        codes = f"{self.changed / self.codes:.1%} of {self.codes:,} codes, " if self.codes else ""
        losses = " -> ".join(f"{loss:.4f}" for loss in self.losses)
        return f"TuneReport({self.parameters:,} scales, gains and biases, {codes}KL {losses} nats)"


def _straight_through(x: Tensor, value: Tensor) -> Tensor:
    """`value` going forward, the gradient of `x` going back. Exact where value is x rounded: x + (value - x) = value."""
    return x + (value - x).detach()


def _unfolded(weight: Tensor, rounded: Tensor) -> Tensor:
    """What was rounded, if it was not `weight` itself: AWQ and SmoothQuant fold factors into columns and rows first.

    The factors are fitted to the rounded weight by least squares, columns and rows in turn. Where they explain less than
    half of the squared distance there was no folding, and `weight` is taken as it is.
    """
    fitted = weight
    for axis in (0, 1, 0, 1):
        square = fitted.square().sum(axis, keepdim=True)
        fitted = fitted * torch.where(square > 0, (fitted * rounded).sum(axis, keepdim=True) / square, 1.0)
    folded = (fitted - rounded).square().sum() < (weight - rounded).square().sum() / 2
    return fitted if folded else weight


class _Tunable(nn.Module):
    """A QLinear that can learn: the scales are s (1 + t), t = 0 at the start, the codes round(u).

    `weight` is what the layer was before it was quantized, [out, in]: it tells where inside its bin each u starts. None:
    in the middle, from where few codes get anywhere.
    """

    def __init__(self, layer: QLinear, codes: bool, weight: Tensor | None) -> None:
        super().__init__()
        q = layer.qtensor
        rows, groups = q.scales.shape
        self.shape, self.q, self.bias, self.dtype = q.shape, q, layer.bias, layer.dtype
        self.start = q.codes().reshape(rows, groups, -1).float()
        self.zeros = q.zeros()[..., None]
        self.offsets = 0.0 if q.offsets is None else q.offsets.float()[..., None]
        self.t = nn.Parameter(torch.zeros_like(q.scales, dtype=torch.float32))
        self.u = None
        if codes:
            self.empty = (self.start == self.zeros).all(-1, keepdim=True)
            self.u = nn.Parameter(self.start + self._places(weight))

    def _places(self, weight: Tensor | None) -> Tensor:
        """Where the original weights lie in the bins of their codes, -0.49 .. 0.49; at the edge if they lie outside."""
        if weight is None:
            return torch.zeros_like(self.start)
        w = weight.detach().to(self.start.device).float()
        w = _unfolded(w, self.q.dequantize()).reshape(self.start.shape)
        exact = (w - self.offsets) / self.q.scales.float()[..., None] + self.zeros
        return (exact - self.start).clamp(-0.49, 0.49)

    def scales(self) -> Tensor:
        """As they will be stored."""
        scales = self.q.scales.float() * (1 + self.t)
        return _straight_through(scales, scales.to(self.q.scales.dtype).float())

    def codes(self) -> Tensor:
        if self.u is None:
            return self.start
        codes = _straight_through(self.u, self.u.round().clamp(0, 2**self.q.bits - 1))
        return torch.where(self.empty, self.start, codes)

    @property
    def weight(self) -> Tensor:
        """ŵ as it is now, [out, in]: Mamba and others multiply with the weight of a layer themselves."""
        weight = self.scales()[..., None] * (self.codes() - self.zeros) + self.offsets
        return weight.reshape(self.shape).to(self.dtype)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.to(input.dtype), self.bias)

    @torch.no_grad()
    def learned(self) -> QTensor:
        scales = self.scales().to(self.q.scales.dtype)
        packed = pack(self.codes().reshape(self.shape).to(torch.uint8), self.q.bits)
        return QTensor(**{**self.q.tensors(), "scales": scales, "packed": packed}, **self.q.meta())

    @torch.no_grad()
    def changed(self) -> int:
        """How many codes are not what they were."""
        return int((self.codes() != self.start).sum())


def tune(
    model: nn.Module,
    original: nn.Module,
    *,
    calibration: str | Sequence[str] | Tensor,
    tokenizer=None,
    max_chunks: int = CHUNKS,
    codes: bool = True,
    epochs: int = 12,
    learning_rate: float = 2e-3,
    code_rate: float = 2e-3,
    progress: bool | None = None,
) -> TuneReport:
    """Tune the codes, scales, norm gains and biases of a quantized model, in place; its size stays.

    Args:
        model: quantized by qkit. An error or Ctrl-C leaves it as it was.
        original: what it was quantized from; a clone or another copy, not the same module.
        calibration, tokenizer, max_chunks: as for `qkit.quantize`.
        codes: False keeps the codes.
        epochs: passes over the text.
        learning_rate: of Adam, in shares of a scale; falls to 0 on a straight line.
        code_rate: the same for the latent codes, in steps of the grid.

    Raises:
        ValueError: nothing in the model can be tuned; `original` is not what it was made from; or the loss, or what was
            learned, is not finite.
    """
    check_model(model)
    check_model(original)
    if torch.is_inference_mode_enabled():
        raise ValueError("inside torch.inference_mode nothing can learn; call tune outside of it")
    if not isinstance(epochs, int) or epochs < 1:
        raise ValueError(f"epochs={epochs!r} is no number of passes over the text; use 12")
    for name, rate in (("learning_rate", learning_rate), ("code_rate", code_rate)):
        if not isinstance(rate, int | float) or not 0 <= rate < math.inf:
            raise ValueError(f"{name}={rate!r} is no rate to learn at; use 2e-3")
    for one in (model, original):
        if any(tensor.is_inference() for tensor in (*one.parameters(), *one.buffers())):
            raise ValueError(
                f"the {type(one).__name__} was made inside torch.inference_mode, where nothing can learn from it; make it "
                f"under torch.no_grad"
            )
        if (why := why_no_text(one)) is not None:
            raise ValueError(f"{type(one).__name__} cannot be asked for the next token: {why}; tune a decoder of text")
    if original is model:
        raise ValueError(
            "original is the quantized model itself; give the model that it was made from, or another copy"
        )
    layers = {name: layer for name, layer in quantized_layers(model).items() if _has_scales(layer)}
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no weight-only quantized layer whose scales could learn (codebooks and INT8 "
            f"layers cannot); quantize it with one that stores scales first, e.g. qkit.RTN(4, 128)"
        )
    ids = model_ids(model, calibration, tokenizer, max_chunks)
    check_ids(original, ids)
    copy = clone(model).eval()
    tunables = {layer: _Tunable(layer, codes, _weight(original, name, layer)) for name, layer in layers.items()}
    swap(copy, {name: tunables[layer] for name, layer in layers.items()})  # one layer under two names stays one
    vectors = _own_vectors(copy, set(tunables.values()))
    parameters = [*dict.fromkeys(vectors.values()), *(tunable.t for tunable in tunables.values())]
    latents = [tunable.u for tunable in tunables.values() if tunable.u is not None]
    for parameter in parameters:
        parameter.requires_grad_(True)

    rates = [{"params": parameters, "lr": learning_rate}]
    if latents:
        rates.append({"params": latents, "lr": code_rate})
    used = " and ".join(f"{rate['lr']:g}" for rate in rates)  # at first: they fall to 0
    with evaluating(original), torch.enable_grad():
        losses = _descend(copy, original, rates, ids, used, epochs, progress)

    finished = {layer: _finished(layer, tunable) for layer, tunable in tunables.items()}
    scales = {name: finished[layer].qtensor.tensors()["scales"] for name, layer in layers.items()}
    for name, numbers in {**scales, **vectors}.items():
        if not numbers.isfinite().all():
            raise ValueError(f"{name} has learned NaN or infinity; use smaller learning rates than {used}")
    own = {parameter: nn.Parameter(parameter.detach(), requires_grad=False) for parameter in vectors.values()}
    moved = {name: own[parameter] for name, parameter in vectors.items()}
    changed = sum(tunable.changed() for tunable in tunables.values())
    swap(model, {name: finished[layer] for name, layer in layers.items()})
    for name, parameter in moved.items():
        if name.rpartition(".")[0] not in layers:
            set_parameter(model, name, parameter)
    return TuneReport(tuple(losses), sum(p.numel() for p in parameters), sum(u.numel() for u in latents), changed)


def _weight(original: nn.Module, name: str, layer: QLinear) -> Tensor | None:
    """The weight of the layer before it was quantized, where `original` has it as floats."""
    try:
        weight = weight_of(original.get_submodule(name))
    except AttributeError:
        return None
    if weight is not None and weight.shape != (layer.out_features, layer.in_features):
        raise ValueError(
            f"{name} is {tuple(weight.shape)} in the original and {layer.out_features, layer.in_features} in the model; "
            f"give the model that it was made from"
        )
    return weight


def _finished(layer: QLinear, tunable: _Tunable) -> QLinear:
    bias = None if tunable.bias is None else nn.Parameter(tunable.bias.detach(), requires_grad=False)
    return QLinear(tunable.learned(), bias, layer.activations, dtype=layer.dtype).train(layer.training)


def _has_scales(layer: QLinear) -> bool:
    return type(layer) is QLinear and layer.qtensor.table() is None


def _own_vectors(copy: nn.Module, tunables: set[nn.Module]) -> dict[str, nn.Parameter]:
    """Gains and biases: every floating parameter with one axis, replaced by one of the copy's own; the rest is frozen.

    A parameter that has several names, a tied embedding for one, is replaced under all of them: else the model's own would
    be learning.
    """
    own, replacements = {}, {}
    for name, parameter in list(copy.named_parameters(remove_duplicate=False)):
        owner, _, leaf = name.rpartition(".")
        if leaf in ("t", "u") and copy.get_submodule(owner) in tunables:
            continue
        vector = parameter.dim() == 1 and parameter.is_floating_point()
        if parameter not in replacements:
            data = parameter.detach().clone() if vector else parameter.detach()
            replacements[parameter] = nn.Parameter(data, requires_grad=False)
        set_parameter(copy, name, replacements[parameter])
        if vector:
            own[name] = replacements[parameter]
    return own


def _descend(
    copy: nn.Module,
    original: nn.Module,
    rates: list[dict],
    ids: Tensor,
    used: str,
    epochs: int,
    progress: bool | None,
) -> list[float]:
    batches = batches_of(ids)
    optimizer = torch.optim.Adam(rates)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=epochs * len(batches))
    device = rates[0]["params"][0].device
    losses = []
    with progress_bar(progress, "tuning", "step", epochs * len(batches)) as bar:
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
                        f"the loss became {loss.item()} in pass {epoch + 1}; use smaller learning rates than {used}, "
                        f"and check the model with qkit.perplexity"
                    )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.item()
                bar.update()
            losses.append(total / len(batches))
    return losses
