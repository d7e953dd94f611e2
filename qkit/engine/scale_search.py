"""The search for scales, block by block: each scheme by its own loss (AWQ that of rounding, SmoothQuant that of W8A8)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from qkit.engine.prepare import calibrating, prepare
from qkit.engine.scaling import LayerScale, Scaling
from qkit.engine.walk import Stop, walk
from qkit.methods.registry import SCHEMES
from qkit.methods.scheme import NOTHING, Scheme
from qkit.methods.statistics import InputStatistics
from qkit.model.calibration import collect, input_groups
from qkit.model.folding import find_folds, fold
from qkit.model.linear import matrix_of
from qkit.model.surgery import Globs, clone
from qkit.text.tokens import CHUNKS


def scale_block(
    stop: Stop, copy: nn.Module, original: nn.Module, schemes: Mapping[str, Scheme]
) -> tuple[tuple[LayerScale, ...], dict[str, InputStatistics], dict[str, str]]:
    """Search the scales of one block and fold them into `copy` and `original`, two copies of it.

    Only layers whose scheme `scales` take part; a fold whose layers have different schemes is left out.

    Args:
        schemes: by the name of the layer within the block.

    Returns:
        What was found; the statistics of the layers' inputs as they are after folding; which layers could not be scaled,
        and why.
    """
    scaled = {name: scheme for name, scheme in schemes.items() if scheme.scales}
    if not scaled:
        return (), {}, {}
    block = stop.block
    folds, left = find_folds(block.module, lambda module: stop.sample_block.run(stop.sample, 0, module), block.shared)
    wants = NOTHING.union(*(scheme.scale_wants for scheme in scaled.values()))
    groups = input_groups(stop.sample_block, stop.sample, list(scaled))
    seen = collect(block, copy, stop.hidden, [group[0] for group in groups], wants)
    statistics = {name: seen[group[0]] for group in groups for name in group if group[0] in seen}
    found = []
    for one in folds:
        mine = {schemes.get(name) for name in one.consumers}
        scheme = mine.pop()
        if mine or scheme is None or not scheme.scales or one.consumers[0] not in statistics:
            why = "the layers that share its input have other schemes, or saw no token"
            left |= dict.fromkeys(one.consumers, why)
            continue
        inputs, name = statistics[one.consumers[0]], f"{block.name}.{one.consumers[0]}"
        inputs.check(name)
        weight = torch.cat([matrix_of(copy.get_submodule(name)).detach().float() for name in one.consumers])
        search = scheme.search_scale(weight, inputs, one.index, one.width, name)
        found.append(
            LayerScale(block.name, one, search.scale, search.alpha, search.alphas, search.losses, search.salience)
        )
        for target in (copy, original):
            fold(target, one, search.scale)
        for name in one.consumers:
            if name in statistics:
                statistics[name] = statistics[name].scaled(search.scale[one.index])
    return tuple(found), statistics, {name: why for name, why in left.items() if name in scaled}


@torch.no_grad()
def search_scales(
    model: nn.Module,
    scheme: Scheme,
    *,
    calibration: str | Sequence[str] | Tensor,
    tokenizer=None,
    max_chunks: int = CHUNKS,
    include: Globs = None,
    exclude: Globs = None,
) -> Scaling:
    """The scales that `scheme` would fold into `model`, which is left as it is: to look at, to plot, to save, to apply.

    Arguments as for `qkit.quantize`. The scales are searched on the inputs that the original model gives.

    Raises:
        ValueError: a scheme that folds no scales, or no layer that could be scaled.
    """
    work = prepare(model, scheme, calibration, tokenizer, max_chunks, include, exclude)
    flat = next((one for one in work.schemes.values() if not one.scales), None)
    if flat is not None:
        able = ", ".join(name for name, cls in SCHEMES.items() if cls.scales)
        raise ValueError(f"{flat.name} folds no scales, so there is nothing to search; use one of: {able}")
    if work.ids is None:
        raise TypeError("scales are searched on data, and no scheme here asks for any")
    found: list[LayerScale] = []
    left: dict[str, str] = {}
    with calibrating(model):
        for stop in walk(model, work.ids, list(work.schemes)):
            mine = {name: work.schemes[f"{stop.block.name}.{name}"] for name in stop.names(list(work.schemes))}
            scales, _, why = scale_block(stop, clone(stop.block.module), clone(stop.block.module), mine)
            found += scales
            left |= {f"{stop.block.name}.{name}": reason for name, reason in why.items()}
    if not found:
        name, reason = next(iter(left.items()), (work.targets[0].name, "it stands in no block"))
        raise ValueError(f"no layer of {type(model).__name__} can be scaled: {name}, for one, because {reason}")
    return Scaling(tuple(found))
