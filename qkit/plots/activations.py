"""Maps of what each channel reaches in each layer: where outliers stand, and what smoothing makes of them."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.colors import LogNorm
from torch import Tensor

from qkit.plots.base import STYLE, Picture

CELLS = 192  # across a map: as many as are told apart on a projector
SHADES = (0.5, 50.0)  # what the colours reach to, in medians


def channel_maps(maps: Mapping[str, Sequence[Tensor]], title: str) -> Picture:
    """One map a model: a row for each layer, a column for each channel, shaded by how many times the median it is.

    Of more channels than can be told apart, neighbours share a cell, and the largest is drawn. Channels stand where they stand in
    the model, so a channel that is large in every layer is a line from top to bottom.

    Its data: each map by its name, the cells [layers, cells] in medians of their layer.

    Args:
        maps: for each layer float [channels], positive: the largest |x| of each channel, or the largest |w| of each column.

    Raises:
        ValueError: no map, one without layers, or one of layers of different widths.
    """
    if not maps or not all(map(len, maps.values())):
        raise ValueError(f"{title!r} has a map without layers; give one [channels] for each layer")
    with rc_context({**STYLE, "axes.grid": False}):
        heights = [max(len(layers), 10) for layers in maps.values()]
        picture = Picture(11, 1.1 + sum(0.35 + 0.045 * height for height in heights))
        picture.data = data = {name: _cells(name, layers) for name, layers in maps.items()}
        picture.suptitle(title, fontsize=12, x=0.01, ha="left")
        axes, words = picture.subplots(len(maps), 1, height_ratios=heights, squeeze=False)[:, 0], []
        for one, (name, layers) in zip(axes, maps.items(), strict=True):
            extent = (-0.5, len(layers[0]) - 0.5, len(layers) - 0.5, -0.5)
            image = one.imshow(
                data[name], aspect="auto", cmap="magma_r", norm=LogNorm(*SHADES), interpolation="nearest", extent=extent
            )
            most = data[name].max(1)
            said = f"the largest channel of a layer is {most.min():.0f} to {most.max():.0f} times its median"
            one.set_title(f"{name}: {said}", fontsize=11, loc="left")
            one.set(ylabel="layer", yticks=[0, len(layers) - 1])
            words.append(f"{name}, {len(layers)} layers of {len(layers[0])} channels: {said}")
        axes[-1].set(xlabel="channel")
        picture.colorbar(
            image, ax=list(axes), pad=0.01, label="times the median", extend="both", ticks=[0.5, 1, 5, 50], format="%g"
        )
    picture.alt = f"{title}. {'; '.join(words)}."
    return picture


def _cells(name: str, layers: Sequence[Tensor]) -> np.ndarray:
    """The largest of each few neighbours, in medians of the layer, float64 [layers, cells]."""
    widths = {len(layer) for layer in layers}
    if len(widths) > 1:
        raise ValueError(f"the layers of {name!r} have {', '.join(map(str, sorted(widths)))} channels; draw them apart")
    values = np.stack([layer.double().numpy() for layer in layers])
    values = values / np.maximum(np.median(values, 1, keepdims=True), 1e-30)
    width = values.shape[1]
    starts = np.arange(0, width, -(-width // CELLS))
    return np.maximum.reduceat(values, starts, axis=1)
