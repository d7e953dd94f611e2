"""A quantized layer as a record for JSON beside its tensors, and back."""

from typing import Any

import torch
from torch import Tensor, nn

from qkit.nn.layers import LAYERS
from qkit.nn.qlinear import QLinear
from qkit.numerics.kinds import stored_from

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
COMPUTED_IN = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}

BESIDE = ("input_scale", "order")  # buffers of a layer that are no parts of its weight


def layer_record(layer: QLinear) -> dict[str, Any]:
    """A quantized layer without its tensors; `layer_from` is the inverse."""
    stored = layer.qtensor
    return {
        "module": type(layer).__name__,
        "kind": stored.kind,
        **stored.meta(),
        "parts": list(layer.parts),
        "bias": layer.bias is not None,
        **({} if layer.dtype == torch.float32 else {"dtype": str(layer.dtype).removeprefix("torch.")}),
        **({"settings": settings} if (settings := layer.settings()) else {}),
    }


def layer_from(record: dict[str, Any], state: dict[str, Tensor], name: str) -> QLinear:
    """The layer `name` of a record and the tensors of the file; the bias has no memory yet.

    Version 1 of the format knew neither modules nor settings, version 2 no kinds: a table was a codebook's.

    Raises:
        ValueError: parts that do not belong together, or of which numbers are NaN or infinite.
        LookupError: a part is missing, or a module or dtype is unknown.
    """
    meta = dict(record)
    module, settings = LAYERS[meta.pop("module", "QLinear")], meta.pop("settings", {})
    parts, bias = {part: state[f"{name}.{part}"] for part in meta.pop("parts")}, meta.pop("bias")
    dtype = COMPUTED_IN[meta.pop("dtype", "float32")]
    for part, tensor in parts.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{part} of {name} hold NaN or infinity; quantize the layer again")
    q = stored_from(parts, meta)
    beside: dict[str, Any] = {key: state[f"{name}.{key}"] for key in BESIDE if f"{name}.{key}" in state}
    return module(
        q, nn.Parameter(torch.empty(q.shape[0], device="meta")) if bias else None, dtype=dtype, **settings, **beside
    )
