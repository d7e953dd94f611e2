"""A quantized layer as a record for JSON beside its tensors, and back."""

from typing import Any

import torch
from torch import Tensor, nn

from qkit.nn.qlinear import MODULES, QLinear
from qkit.numerics.codebook_qtensor import qtensor_from


def layer_record(layer: QLinear) -> dict[str, Any]:
    """A quantized layer without its tensors; `layer_from` is the inverse."""
    stored = layer.qtensor
    return {
        "module": type(layer).__name__,
        "kind": _kind(stored.meta()),
        **stored.meta(),
        "parts": list(layer.parts),
        "bias": layer.bias is not None,
        **({"settings": settings} if (settings := layer.settings()) else {}),
    }


def layer_from(record: dict[str, Any], state: dict[str, Tensor], name: str) -> QLinear:
    """The layer `name` of a record and the tensors of the file; the bias has no memory yet.

    Version 1 of the format knew neither modules nor settings, version 2 no kinds: a table was a codebook's.
    """
    meta = dict(record)
    module, settings = MODULES[meta.pop("module", "QLinear")], meta.pop("settings", {})
    if (kind := meta.pop("kind", _kind(meta))) != _kind(meta):
        raise ValueError(f"kind={kind!r} of {name} is not {_kind(meta)!r}, which its other fields say")
    parts, bias = {part: state[f"{name}.{part}"] for part in meta.pop("parts")}, meta.pop("bias")
    q = qtensor_from(parts, meta)
    if f"{name}.input_scale" in state:
        settings = {**settings, "input_scale": state[f"{name}.input_scale"]}
    return module(q, nn.Parameter(torch.empty(q.shape[0], device="meta")) if bias else None, **settings)


def _kind(meta: dict[str, Any]) -> str:
    return "codebook" if "codebook" in meta else "affine"
