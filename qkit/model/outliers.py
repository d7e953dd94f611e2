"""Planting activation outliers: a small model gets the trouble of a large one, and computes the same function.

What
    In large models a few channels of the hidden state are tens of times larger than the rest, in every layer and for
    every token; one scale for the whole activation then has little resolution left for the others. Small models have no
    such channels. Here they are planted: the gain of each norm is multiplied at some channels, and the linear layers that
    follow have those input columns divided.

Formula
    (f x) (w / f) = x w, per channel. With f a power of two neither product rounds, so in float32 the model computes the
    same numbers up to the order of summation.

Source: Dettmers et al., LLM.int8(), arXiv:2208.07339, section 4 (outlier features, up to 60 and more in magnitude).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from qkit.model.facts import vocabulary_size
from qkit.model.folding import fold, model_folds
from qkit.model.linear import weight_of
from qkit.nn.layers import is_quantized


@dataclass(frozen=True)
class Planted:
    """What `plant_outliers` changed, by full name."""

    channels: tuple[int, ...]
    factor: float
    norms: tuple[str, ...]  # their gain and bias are multiplied at these channels
    layers: tuple[str, ...]  # their columns are divided


def plant_outliers(model: nn.Module, channels: Sequence[int], factor: float = 64.0) -> Planted:
    """Multiply `channels` of what each block norm gives to linear layers by `factor`, and keep the function. In place.

    Planting with 1 / factor takes them out again. If anything fails, the model is as it was.

    Args:
        model: a decoder of transformers in float; its norms must each feed linear layers and nothing else.
        channels: numbers of hidden channels; a repeated one counts once.
        factor: finite and positive. With a power of two the planting itself rounds nothing.

    Raises:
        TypeError: a channel that is no int.
        ValueError: a channel or a factor out of range, a quantized model, or one without such norms.
    """
    done = [name for name, m in model.named_modules() if is_quantized(m)]
    if done:
        raise ValueError(f"{done[0]} is quantized already; plant the outliers in the model in float, then quantize it")
    if not (math.isfinite(factor) and factor > 0):
        raise ValueError(f"factor={factor} must be finite and greater than 0, e.g. 64.0")
    for channel in channels:
        if not isinstance(channel, int) or isinstance(channel, bool):
            raise TypeError(f"channel {channel!r} is a {type(channel).__name__}; channels are ints, e.g. [3, 17]")
    ids = torch.arange(16).reshape(2, 8) % (vocabulary_size(model) or 1)
    work, reasons = [], {}
    for name, (folds, unfolded) in model_folds(model, ids).items():
        block = model.get_submodule(name)
        work += [(name, block, f) for f in folds if weight_of(block.get_submodule(f.producer)) is None]
        reasons |= {f"{name}.{layer}": why for layer, why in unfolded.items()}
    if not work:
        why = next((f"; {layer}: {why}" for layer, why in reasons.items()), "")
        raise ValueError(f"{type(model).__name__} has no norm that feeds linear layers and nothing else{why}")
    width = min(f.width for _, _, f in work)
    wrong = [channel for channel in channels if not 0 <= channel < width]
    if wrong or not channels:
        what = f"channel {wrong[0]} does not exist" if wrong else "there are no channels to plant"
        raise ValueError(
            f"{what}; the norms of {type(model).__name__} have channels 0 to {width - 1}: give some of these"
        )

    before = [(m, dict(m.named_parameters(recurse=False))) for m in model.modules()]
    try:
        for _, block, f in work:
            scale = torch.ones(f.width, dtype=torch.float64)
            scale[list(channels)] = 1 / factor
            fold(block, f, scale)
    except BaseException:
        for module, parameters in before:
            for name, parameter in parameters.items():
                setattr(module, name, parameter)
        raise
    return Planted(
        tuple(sorted(set(channels))),
        float(factor),
        tuple(f"{name}.{f.producer}" for name, _, f in work),
        tuple(f"{name}.{layer}" for name, _, f in work for layer in f.consumers),
    )
