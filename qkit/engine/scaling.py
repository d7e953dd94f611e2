"""Scales that are moved from one layer into the one before it: the half of AWQ and SmoothQuant that changes no output.

>>> scaling = qkit.search_scales(model, qkit.AWQ(4, 128), calibration=text, tokenizer=tokenizer)
>>> scaling[0].alpha, scaling[0].losses
>>> scaling.save("scales.safetensors")
>>> scaling.apply(model)          # the same function; now every rounding loses less
"""

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qkit.checkpoints.files import make_folder
from qkit.checkpoints.tensors import read_tensors, write_tensors
from qkit.engine.prepare import check_model
from qkit.model.folding import Fold, fold
from qkit.model.surgery import clone, set_parameter
from qkit.nn.layers import quantized_layers
from qkit.text.resources import expanded


@dataclass(frozen=True, eq=False)
class LayerScale:
    """The scale of one fold, and how it was found.

    Attributes:
        block: the name of the block in the model.
        fold: which module is divided, which layers are multiplied; names within the block.
        scale: float32 [width of the fold].
        alpha: the exponent it was made with; None: no scaling was best.
        alphas, losses: what was tried, and the relative output error of each; empty where alpha was given.
        salience: float32 [in], the mean |x| (AWQ) or the largest |x| (SmoothQuant) of each input channel.
    """

    block: str
    fold: Fold
    scale: Tensor
    alpha: float | None
    alphas: tuple[float | None, ...]
    losses: tuple[float, ...]
    salience: Tensor

    def __repr__(self) -> str:
        low, high = float(self.scale.min()), float(self.scale.max())
        layers = ", ".join(self.fold.consumers)
        return (
            f"LayerScale({self.block}: {self.fold.producer} -> {layers}, alpha {self.alpha}, {low:.3g} to {high:.3g})"
        )


@dataclass(frozen=True, eq=False, repr=False)
class Scaling:
    """All scales of a model, in order."""

    scales: tuple[LayerScale, ...] = ()

    def __iter__(self) -> Iterator[LayerScale]:
        return iter(self.scales)

    def __len__(self) -> int:
        return len(self.scales)

    def __getitem__(self, position: int) -> LayerScale:
        return self.scales[position]

    def __repr__(self) -> str:
        return f"Scaling({len(self)} scales in {len({one.block for one in self})} blocks)"

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Fold all scales into `model`, in place, or none: its function stays what it is, to rounding.

        Raises:
            ValueError: a module is missing, is quantized, or has another shape than where the scales were found.
        """
        check_model(model)
        copy = clone(model)
        for one in self:
            names = [f"{one.block}.{name}" for name in (one.fold.producer, *one.fold.consumers)]
            if done := next((name for name in names if name in quantized_layers(model)), None):
                raise ValueError(f"{done} is quantized already; apply scales to the model in float, then quantize it")
            try:
                fold(copy.get_submodule(one.block), one.fold, one.scale.to(next(model.parameters()).device))
            except (AttributeError, IndexError, RuntimeError) as error:
                raise ValueError(f"{one!r} does not fit this model ({error}); use the model it was found on") from error
        before = dict(model.named_parameters())
        for name, parameter in copy.named_parameters():
            if parameter is not before[name]:
                set_parameter(model, name, parameter)

    def save(self, path: str | os.PathLike) -> Path:
        """Write one safetensors file, whole or not at all; its folder is made if need be."""
        path = expanded(path)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, f"{path} is a folder; give the name of a file")
        make_folder(path.parent)
        write_tensors(path, *pack_scales(self.scales))
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Scaling":
        """Read what `save` wrote.

        Raises:
            ValueError: the file is damaged, or holds no scales.
        """
        mend = "give a file that Scaling.save wrote"
        return cls(unpack_scales(*read_tensors(expanded(path), "scales", mend, older="qkit.scaling")))


def pack_scales(scales: Sequence[LayerScale]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Tensors by name, and for JSON what is not a tensor."""
    tensors, records = {}, []
    for i, one in enumerate(scales):
        parts = {"scale": one.scale, "salience": one.salience, "index": one.fold.index, "rows": one.fold.rows}
        tensors |= {f"{i}.{part}": tensor.contiguous().cpu() for part, tensor in parts.items()}
        names = {"block": one.block, "producer": one.fold.producer, "consumers": one.fold.consumers}
        records.append({**names, "alpha": one.alpha, "alphas": one.alphas, "losses": one.losses})
    return tensors, records


def unpack_scales(tensors: Mapping[str, Tensor], records: list[dict[str, Any]]) -> tuple[LayerScale, ...]:
    """The inverse of `pack_scales`."""
    scales = []
    for i, one in enumerate(records):
        part = {name: tensors[f"{i}.{name}"] for name in ("scale", "salience", "index", "rows")}
        fold = Fold(one["producer"], tuple(one["consumers"]), part["index"], part["rows"])
        search = (one["alpha"], tuple(one["alphas"]), tuple(one["losses"]))
        scales.append(LayerScale(one["block"], fold, part["scale"], *search, part["salience"]))
    return tuple(scales)
