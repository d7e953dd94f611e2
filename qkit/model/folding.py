"""Folding: moving a scale from the input of linear layers into whatever computes that input.

What
    A linear layer does not mind if its input is divided by s and its columns are multiplied by s. If the module before it
    (a norm, or a linear layer) can do the division in its own parameters, the scale costs nothing when the model runs.
    AWQ and SmoothQuant choose such scales to make weights or activations easier to round.

Formula
    (x / s) (W diag(s))^T = x W^T, for s > 0 per channel; the gain (or the rows) and the bias that make x are divided by s.

How the folds are found
    By asking the block, with no table of architectures. In a copy, norms and linear layers compute nothing: each notes
    its input and returns noise, always the same. So what a linear layer sees says only how the block is wired. Then the
    output of one of them, P, is multiplied by a different s for each channel. If that multiplies the inputs of some
    linear layers by s, and changes nothing else, P folds into these: they can undo s before it spreads. Weights that
    happen to be zero and units that happen to be silent cannot deceive the test, and it multiplies no weight matrices.

Trade-off
    Between P and its consumers may stand only what commutes with a positive scale: attention (for values), the product
    with a gate, ReLU. GELU and SiLU do not, and the layer after them keeps its input as it is.

Sources: Lin et al., AWQ, arXiv:2306.00978, section 3.2; Xiao et al., SmoothQuant, arXiv:2211.10438, section 4.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from qkit.model.blocks import capture
from qkit.model.linear import output_axis, weight_of
from qkit.model.surgery import clone, set_parameter

Run = Callable[[nn.Module], Tensor]


@dataclass(frozen=True, eq=False)
class Fold:
    """Where a scale can go: out of the input of `consumers`, into `producer`. Names are relative to the block."""

    producer: str  # a norm or a linear layer
    consumers: tuple[str, ...]  # the linear layers, in the order of their calls
    index: Tensor  # int64 [in]: input channel k of every consumer takes scale[index[k]]
    rows: (
        Tensor  # int64 [width]: scale[j] belongs to output channel rows[j] of the producer; all, or the values of a qkv
    )

    @property
    def width(self) -> int:
        """How many scales there are."""
        return len(self.rows)


@torch.no_grad()
def find_folds(
    block: nn.Module, run: Run, shared: Mapping[str, str] = MappingProxyType({})
) -> tuple[list[Fold], dict[str, str]]:
    """Where scales can go in `block`, and why not elsewhere.

    Args:
        block: one decoder block, any float dtype; it is not changed.
        run: runs a copy of the block on a sample of at least two tokens (eight are plenty, their values do not matter)
            and returns its hidden output [..., length, width].
        shared: submodules whose parameters the model has elsewhere too, and where (`Block.shared`): nothing is folded into
            them, because what is there would be scaled with them, or no more be shared.

    Returns:
        The folds, in the order in which the producers run; and for each Linear or Conv1D that consumes none of them the
        reason, a sentence. A layer consumes at most one fold: of two that would do, the first.

    Raises:
        ValueError: the sample has fewer than two tokens in a row.
    """
    try:
        probe = _Probe(block, run, torch.float64)
    except (RuntimeError, TypeError):  # a device or a kernel without float64
        probe = _Probe(block, run, torch.float32)
    silent = [name for name in probe.linears if name not in probe.inputs]
    if silent:  # an expert that no token was sent to: it may take its input from anywhere
        return [], dict.fromkeys(probe.linears, f"the sample did not reach {silent[0]}, so what feeds it is unknown")
    folds: list[Fold] = []
    reasons: dict[str, list[str]] = {name: [] for name in probe.linears}
    for producer, width in probe.widths.items():
        found, why = _ask(probe, producer, torch.arange(width))
        slices = () if found or len(why) != 1 else _slices(width, probe.inputs[next(iter(why))][0].shape[-1])
        found = found or next((part for rows in slices if (part := _ask(probe, producer, rows)[0])), None)
        taken = [name for earlier in folds for name in earlier.consumers if found and name in found.consumers]
        if taken:
            why = dict.fromkeys(
                found.consumers, f"{producer} also feeds {taken[0]}, which is scaled with another producer"
            )
        elif found and (tied := [name for name in (producer, *found.consumers) if name in shared]):
            why = dict.fromkeys(found.consumers, f"{tied[0]} is shared with {shared[tied[0]]}")
        elif found:
            folds.append(found)
        for name, reason in why.items():
            reasons[name].append(reason)
    consumers = {name for found in folds for name in found.consumers}
    unfed = "its input comes from no norm with a gain and from no linear layer of the block"
    return folds, {name: "; ".join(why) or unfed for name, why in reasons.items() if name not in consumers}


@torch.no_grad()
def fold(block: nn.Module, where: Fold, scale: Tensor) -> None:
    """Divide the output of the producer by `scale` [where.width], and multiply the consumers' columns to match.

    Parameters are replaced, never written into, so that a clone can be folded without its original; all of them or none.
    They keep their dtype and requires_grad; the products are computed in float32 or better.

    Raises:
        ValueError: a scale that is not finite and positive, the wrong number of them, or a product that the dtype of a
            parameter cannot hold.
    """
    if scale.shape != (where.width,):
        raise ValueError(
            f"the scale for {where.producer} has shape {list(scale.shape)}; "
            f"it needs one number per channel of its output: shape [{where.width}]"
        )
    bad = ~(torch.isfinite(scale) & (scale > 0))
    if bad.any():
        k = int(bad.nonzero()[0])
        raise ValueError(
            f"the scale for {where.producer} is {scale[k].item()} at channel {k}; "
            f"scales must be finite and greater than 0: clamp them"
        )
    producer, scale = block.get_submodule(where.producer), scale.double()
    own = [name for name in ("weight", "bias") if getattr(producer, name, None) is not None]
    new = {(where.producer, name): _times(producer, name, where.rows, 1 / scale, 0) for name in own}
    for name in where.consumers:
        new[name, "weight"] = _times(
            block.get_submodule(name), "weight", slice(None), scale[where.index.to(scale.device)], 1
        )
    for (layer, name), parameter in new.items():
        if not torch.isfinite(parameter).all():
            raise ValueError(
                f"{layer}.{name} would leave the range of {parameter.dtype} when {where.producer} is divided by "
                f"{scale.min().item():g} to {scale.max().item():g}; use milder scales, or a model in float32"
            )
    for (layer, name), parameter in new.items():
        set_parameter(block, f"{layer}.{name}", parameter)


@torch.no_grad()
def model_folds(model: nn.Module, ids: Tensor) -> dict[str, tuple[list[Fold], dict[str, str]]]:
    """What `find_folds` says of each block of a decoder, by the name of the block.

    Args:
        model: a decoder of transformers, in eval mode, as `qkit.model.blocks.capture` wants it.
        ids: a sample, int64 [sequences, length]; which ids does not matter.
    """
    blocks, (hidden,) = capture(model, [ids])
    return {b.name: find_folds(b.module, lambda copy, b=b: b.run(hidden, 0, copy), b.shared) for b in blocks}


def _times(module: nn.Module, name: str, channels: Tensor | slice, factor: Tensor, dim: int) -> nn.Parameter:
    """A parameter with some of its output channels (dim 0) or input channels (dim 1) multiplied by `factor`."""
    old = getattr(module, name)
    new = old.detach().to(torch.promote_types(old.dtype, torch.float32), copy=True)
    if new.dim() == 1:
        new[channels] *= factor.to(new)
    else:
        view = new if output_axis(module) == dim else new.T  # Conv1D stores [in, out]
        view[channels] *= factor.to(new)[:, None]
    return nn.Parameter(new.to(old.dtype), requires_grad=old.requires_grad)


class _Probe:
    """A copy of a block in which norms and linear layers return noise, and what they are given when it runs."""

    def __init__(self, block: nn.Module, run: Run, dtype: torch.dtype):
        self.run, self.dtype = run, dtype
        self.generator = torch.Generator().manual_seed(0)
        self.noise: dict[tuple[str, int], Tensor] = {}
        self.widths: dict[str, int] = {}  # of the outputs of what was called, in the order of the calls
        self.stubborn: set[str] = set()  # norms whose output does not follow their parameters
        self.scaled: tuple[str, Tensor | None] = ("", None)
        self.heard: dict[str, list[Tensor]] = {}
        self.copy = clone(block).eval()
        self.linears = [name for name, m in self.copy.named_modules() if weight_of(m) is not None]
        for name, module in self.copy.named_modules():
            if name in self.linears:
                module.forward = self._source(name, module, len(weight_of(module)))
                continue
            for key, p in module.named_parameters(recurse=False):
                setattr(module, key, nn.Parameter(p.to(dtype), requires_grad=False) if p.is_floating_point() else p)
            if _is_norm(module):
                module.forward = self._source(name, module, None)
        self.copy.register_forward_pre_hook(
            lambda _, args, kwargs: tree_map(self._cast, (args, kwargs)), with_kwargs=True
        )
        self.inputs, self.output = self()

    def __call__(self, producer: str = "", scale: Tensor | None = None) -> tuple[dict[str, list[Tensor]], Tensor]:
        """What each norm and linear layer is given, in the order of their calls, and what the block returns."""
        self.heard, self.scaled = {}, (producer, scale)
        output = self.run(self.copy)
        if output.shape[-2] < 2:
            raise ValueError(
                f"the sample that the block runs on has {output.shape[-2]} token in a row; one token attends to itself "
                f"alone, and that looks like a fold: give two or more"
            )
        return self.heard, output

    def _source(self, name: str, module: nn.Module, width: int | None) -> Callable:
        """What stands for the forward of a linear layer of this output width, or of a norm (None)."""
        real = module.forward

        def forward(*args, **kwargs):
            calls = self.heard.setdefault(name, [])
            key = (name, len(calls))
            calls += [t.clone() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            if key not in self.noise:
                shape = (*calls[-1].shape[:-1], width) if width else real(*args, **kwargs).shape
                self.noise[key] = self._draw(shape).to(calls[-1].device)
                self.widths[name] = shape[-1]
                if width is None and not _follows(module, real, args, kwargs):
                    self.stubborn.add(name)
            producer, scale = self.scaled
            return self.noise[key] * (scale.to(self.noise[key]) if producer == name else 1)

        return forward

    def _draw(self, shape: tuple[int, ...]) -> Tensor:
        """Noise that has both signs in every channel, and now and then a token a hundred times as large.

        So that no unit behind a ReLU is always off, and nothing that clips large values goes unseen.
        """
        noise = torch.randn(shape, generator=self.generator, dtype=torch.float64).abs_()
        token = torch.arange(noise[..., 0].numel()).reshape(*shape[:-1], 1)
        return (noise * torch.where(token % 2 == 0, 1, -1) * torch.where(token % 8 < 6, 1, 100)).to(self.dtype)

    def _cast(self, value: Any) -> Any:
        return value.to(self.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _is_norm(module: nn.Module) -> bool:
    """Whether a module has a gain per channel, and a bias or none, and nothing else."""
    own = dict(module.named_parameters())
    return "weight" in own and set(own) <= {"weight", "bias"} and all(p.dim() == 1 for p in own.values())


def _follows(module: nn.Module, real: Callable, args: tuple, kwargs: dict) -> bool:
    """Whether scaling the parameters of a norm scales its output. Gemma's, with a gain of 1 + weight, does not."""
    own, before = dict(module.named_parameters()), real(*args, **kwargs)
    scale = _scales(own["weight"].numel()).to(before)
    for key, p in own.items():
        setattr(module, key, nn.Parameter(p * scale, requires_grad=False))
    after = real(*args, **kwargs)
    for key, p in own.items():
        setattr(module, key, p)
    return before.shape[-1] == len(scale) and torch.allclose(after, before * scale, rtol=1e-4, atol=1e-6)


def _scales(width: int) -> Tensor:
    """Distinct scales, float64 [width], none of them 1, in an order that neighbours do not give away."""
    order = torch.randperm(width, generator=torch.Generator().manual_seed(0))
    return 1.25 + 1.5 * order.double() / width


def _ask(probe: _Probe, producer: str, rows: Tensor) -> tuple[Fold | None, dict[str, str]]:
    """Whether a scale for these output channels folds; if not, why not, for each linear layer that they reach."""
    chosen = _scales(len(rows))
    scale = torch.ones(probe.widths[producer], dtype=chosen.dtype).index_put((rows,), chosen)
    inputs, output = probe(producer, scale)
    reached = [name for name, before in probe.inputs.items() if not _same(before, inputs.get(name, []))]
    fed = [name for name in reached if name in probe.linears]
    index = {name: _match(probe.inputs[name], inputs[name], chosen) for name in fed}
    stuck = [name for name in fed if index[name] is None]
    others = [name for name in reached if name not in fed or name in stuck]
    if not torch.equal(output, probe.output):
        others.append("something other than linear layers")
    if producer in probe.stubborn:
        why = f"multiplying the parameters of {producer} does not multiply its output"
    elif others:
        why = f"the output of {producer} also reaches {', '.join(others)}"
    elif any(not torch.equal(index[fed[0]], index[name]) for name in fed):
        why = f"{', '.join(fed)} take the output channels of {producer} in different orders"
    else:
        return (Fold(producer, tuple(fed), index[fed[0]], rows) if fed else None), {}
    through = f"its input comes from {producer} through an operation that does not commute with scaling"
    return None, {name: through if name in stuck else why for name in fed}


def _slices(width: int, n: int) -> Iterator[Tensor]:
    """The output channels of a fused layer [width] that may by themselves be the n inputs of the next one.

    As they are laid out in practice: the last of [q | k | v], or one of two or three parts, side by side or head by head.
    """
    everything, parts = torch.arange(width), width // n
    if parts in (2, 3):
        yield everything[width - (width - n) // 2 :]
    if parts in (2, 3) and width % n == 0:
        for size in (s for s in range(n, 0, -1) if n % s == 0):
            yield from (part.flatten() for part in everything.view(-1, parts, size).unbind(1)[::-1])


def _same(before: list[Tensor], after: list[Tensor]) -> bool:
    return len(before) == len(after) and all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def _match(before: list[Tensor], after: list[Tensor], scale: Tensor) -> Tensor | None:
    """The index with which after == before * scale[index], for every token of every call; None if there is none."""
    if [t.shape for t in before] != [t.shape for t in after]:
        return None
    x, y = (torch.cat([t.flatten(0, -2) for t in calls]) for calls in (before, after))
    scale = scale.to(x)
    ordered, order = scale.sort()
    ratio = (x * y).sum(0) / (x * x).sum(0)  # the best scale for each channel; nan if it is always 0
    index = order[torch.bucketize(ratio, (ordered[1:] + ordered[:-1]) / 2)]
    error = (y - x * scale[index]).abs()
    tolerance = torch.finfo(x.dtype).eps ** 0.5 * (x.abs() + x.abs().median(0).values)
    return index.cpu() if (ratio.isfinite() & (error <= tolerance)).all() else None
