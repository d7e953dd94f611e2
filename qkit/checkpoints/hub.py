"""What config.json says of a model in qkit's own format, so that transformers loads it when qkit is there, and only then.

Without qkit transformers knows no quant_method "qkit", warns, and goes on as if the weights were floats. It must not find them:
config.json names a file of weights that is none, whose name says what is to be done. qkit (`qkit.integrations.transformers`)
reads in the quantization_config which file it is.
"""

import json
from pathlib import Path
from typing import Any

from torch import nn

from qkit.checkpoints.layers import layer_record
from qkit.nn.layers import quantized_layers

METHOD = "qkit"  # config.json's quant_method
LOCK = "this model was quantized by qkit, import qkit before from_pretrained.safetensors"
FILE = "transformers_weights"  # where a config.json may name its file of weights
QUANTIZATION = "quantization_config"


def overwritten(folder: Path) -> bool:
    """Whether a folder of `qkit.save` was saved into by others since: there are weights under transformers' name, and the
    config.json is none that `qkit.save` wrote.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    if not isinstance(config, dict) or not any(folder.glob("model*.safetensors")):
        return False
    said = config.get(QUANTIZATION)
    return FILE not in config or (isinstance(said, dict) and "weights" not in said)


def layer_records(model: nn.Module) -> dict[str, dict[str, Any]]:
    """The record of each quantized layer of a model, by name, for JSON."""
    return {name: layer_record(layer) for name, layer in quantized_layers(model).items()}


def quantization_config(
    layers: dict[str, Any], derived: list[str] | None = None, weights: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The quantization_config of a model.

    Args:
        layers: `layer_records`.
        derived: buffers that the file holds and a state dict leaves out.
        weights: name, size and sha256 of the file; None: model.safetensors, or the shards of its index.
    """
    optional = {"derived": derived, "weights": weights}
    return {"quant_method": METHOD, "layers": layers, **{key: value for key, value in optional.items() if value}}
