"""AWQ taken apart: what each input channel costs, the layers that share a scale, and the scale of each channel at any alpha."""

import torch
from torch import Tensor, nn

from qkit.engine.scaling import LayerScale
from qkit.methods.awq import awq_scale, relative_magnitude
from qkit.model.folding import Fold
from qkit.model.linear import matrix_of
from qkit.numerics.mapping import GroupSize


def stacked_weight(block: nn.Module, fold: Fold) -> Tensor:
    """The weights of the layers that `fold` scales, one below the other, float32 [out, in]."""
    return torch.cat([matrix_of(block.get_submodule(name)).detach().float() for name in fold.consumers])


def consumers_weight(model: nn.Module, one: LayerScale) -> Tensor:
    """The weights of the layers that `one` scales, one below the other, float32 [out, in]."""
    return stacked_weight(model.get_submodule(one.block), one.fold)


def label_of(block: str, fold: Fold) -> str:
    """A fold of the block called `block`, in short: "layers.2: mlp.up_proj → mlp.down_proj"."""
    return f"{block.removeprefix('model.')}: {fold.producer} → {', '.join(fold.consumers)}"


def fold_label(one: LayerScale) -> str:
    """The fold of a scale in short: "layers.2: mlp.up_proj → mlp.down_proj"."""
    return label_of(one.block, one.fold)


def scale_at(weight: Tensor, one: LayerScale, alpha: float | None, group_size: GroupSize = 128) -> Tensor:
    """The scale of every input channel that AWQ tries at `alpha`, float32 [in]; None: no scaling, ones.

    Args:
        weight: that of the layers, before scaling (`consumers_weight`).
        one: from `qkit.search_scales` with an `AWQ` scheme.
        group_size: of that scheme.
    """
    index = one.fold.index
    if alpha is None:
        return torch.ones(len(index))
    count = torch.bincount(index, minlength=one.fold.width)
    x_mean, w_mean = (
        torch.bincount(index, weights=values.double(), minlength=one.fold.width).div(count).float()
        for values in (one.salience, relative_magnitude(weight, group_size))
    )
    return awq_scale(x_mean, w_mean, alpha)[index]


def losses_by_alpha(one: LayerScale) -> dict[float | None, float]:
    """The relative output error at each alpha that was tried, in percent; None is no scaling.

    Raises:
        ValueError: no search with an AWQ scheme made `one`.
    """
    losses = {alpha: 100 * loss for alpha, loss in zip(one.alphas, one.losses, strict=True)}
    if None not in losses:
        raise ValueError(f"{one!r} was not searched by AWQ; use qkit.search_scales(model, qkit.AWQ(...))")
    return losses


def relative_salience(one: LayerScale) -> Tensor:
    """The mean |x| of each channel over that of the median one, float32 [in]."""
    return one.salience / one.salience.median().clamp(min=1e-12)


def channel_errors(weight: Tensor, w_hat: Tensor, x: Tensor) -> Tensor:
    """What the rounding of each input channel costs the output, by itself: ||x_k||² ||ŵ_k - w_k||² / ||X Wᵀ||², float32 [in].

    Together they are the relative output error, but for what channels that go together add or cancel.

    Args:
        weight, w_hat: float32 [out, in], and what its codes stand for.
        x: float32 [tokens, in].
    """
    return x.square().sum(0) * (w_hat - weight).square().sum(0) / (x @ weight.T).square().sum()
