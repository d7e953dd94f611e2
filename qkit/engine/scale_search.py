"""The search for scales, block by block: AWQ's over the output error of rounding, SmoothQuant's over that of W8A8."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from qkit.engine.scaling import LayerScale, Scaling
from qkit.methods.awq import search_scale
from qkit.methods.schemes import AWQ, Scheme, SmoothQuant
from qkit.methods.smoothquant import search_alpha, smoothing_factor, w8a8_loss
from qkit.model.blocks import SAMPLE_TOKENS, Block, capture
from qkit.model.calibration import CHUNKS, InputStatistics, batches_of, calibration_chunks, collect, input_groups
from qkit.model.facts import chunk_length
from qkit.model.folding import Fold, find_folds, fold
from qkit.model.surgery import Globs, clone, find_targets, weight_of

SCALING = AWQ | SmoothQuant  # the schemes that scale before they round


def scale_block(
    block: Block,
    copy: nn.Module,
    original: nn.Module,
    schemes: Mapping[str, Scheme],
    hidden: Sequence[Tensor],
    sample_block: Block,
    sample: Tensor,
) -> tuple[tuple[LayerScale, ...], dict[str, InputStatistics], dict[str, str]]:
    """Search the scales of one block and fold them into `copy` and `original`, two copies of it.

    Only layers with a scaling scheme take part; a fold whose layers have different schemes is left out.

    Returns:
        What was found; the statistics of the layers' inputs as they are after folding; which layers could not be scaled,
        and why.
    """
    names = [name for name, scheme in schemes.items() if isinstance(scheme, SCALING)]
    if not names:
        return (), {}, {}
    folds, left = find_folds(block.module, lambda module: sample_block.run(sample, 0, module), block.shared)
    wants = set()
    for name in names:
        scheme = schemes[name]
        if isinstance(scheme, AWQ):
            wants.add("square")
        elif scheme.alpha is None:
            wants.add("sample")
    groups = input_groups(sample_block, sample, names)
    seen = collect(block, copy, hidden, [group[0] for group in groups], frozenset(wants))
    statistics = {name: seen[group[0]] for group in groups for name in group if group[0] in seen}
    found = []
    for one in folds:
        mine = {schemes.get(name) for name in one.consumers}
        if len(mine) != 1 or not isinstance(scheme := mine.pop(), SCALING) or one.consumers[0] not in statistics:
            left |= {
                name: "the layers that share its input have other schemes, or saw no token" for name in one.consumers
            }
            continue
        inputs = statistics[one.consumers[0]]
        inputs.check(f"{block.name}.{one.consumers[0]}")
        weight = torch.cat([weight_of(copy.get_submodule(name)).detach().float() for name in one.consumers])
        search = _awq if isinstance(scheme, AWQ) else _smooth
        record = search(block.name, one, weight, inputs, scheme)
        found.append(record)
        for target in (copy, original):
            fold(target, one, record.scale)
        for name in one.consumers:
            if name in statistics:
                statistics[name] = statistics[name].scaled(record.scale[one.index])
    return tuple(found), statistics, {name: why for name, why in left.items() if name in names}


def _awq(block: str, one: Fold, weight: Tensor, inputs: InputStatistics, scheme: AWQ) -> LayerScale:
    search = search_scale(weight, inputs, scheme, one.index, one.width)
    return LayerScale(block, one, search.scale, search.alpha, search.alphas, search.losses, inputs.mean)


def _smooth(block: str, one: Fold, weight: Tensor, inputs: InputStatistics, scheme: SmoothQuant) -> LayerScale:
    x_absmax, w_absmax = (_max_by(v, one.index, one.width) for v in (inputs.absmax, weight.abs().amax(0)))
    alpha, losses = scheme.alpha, {}
    if alpha is None:
        static = scheme.activations == "per-tensor"
        nothing = w8a8_loss(
            weight, inputs.sample, torch.ones_like(inputs.absmax), inputs.absmax.max() if static else None
        )
        searched = search_alpha(weight, inputs.sample, x_absmax, w_absmax, static, lambda s: s[one.index])
        losses = {None: nothing, **searched}
        alpha = min(losses, key=losses.get)
    scale = torch.ones_like(x_absmax) if alpha is None else smoothing_factor(x_absmax, w_absmax, alpha)
    return LayerScale(block, one, scale, alpha, tuple(losses), tuple(losses.values()), inputs.absmax)


def _max_by(values: Tensor, index: Tensor, width: int) -> Tensor:
    """The largest of `values` [in] over the inputs of each scale, [width]."""
    return torch.zeros(width, device=values.device).scatter_reduce(0, index.to(values.device), values, "amax")


@torch.no_grad()
def search_scales(
    model: nn.Module,
    scheme: AWQ | SmoothQuant,
    *,
    calibration: str | Sequence[str] | Tensor,
    tokenizer=None,
    max_chunks: int = CHUNKS,
    include: Globs = None,
    exclude: Globs = None,
) -> Scaling:
    """The scales that `scheme` would fold into `model`, which is left as it is: to look at, to plot, to save, to apply.

    Arguments as for `qkit.quantize`. The scales are searched on the inputs that the original model gives.
    """
    targets, _ = find_targets(model, include, exclude)
    ids = calibration_chunks(calibration, tokenizer, chunk_length(model), max_chunks)
    sample_blocks, (sample,) = capture(model, [ids[:1, :SAMPLE_TOKENS]])
    blocks, hidden = capture(model, batches_of(ids))
    found: list[LayerScale] = []
    for sample_block, block in zip(sample_blocks, blocks, strict=True):
        prefix = f"{block.name}."
        mine = {t.name.removeprefix(prefix): scheme for t in targets if t.name.startswith(prefix)}
        copies = clone(block.module), clone(block.module)
        found += scale_block(block, *copies, mine, hidden, sample_block, sample)[0]
        hidden = [block.run(states, batch) for batch, states in enumerate(hidden)]
        sample = sample_block.run(sample, 0)
    return Scaling(tuple(found))
