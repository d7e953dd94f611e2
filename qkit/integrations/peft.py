"""Adapters of PEFT on quantized layers: get_peft_model takes QLinear as it takes Linear, and merges for good.

    model = get_peft_model(quantized, LoraConfig(target_modules="all-linear"))
    merged = model.merge_and_unload();  qkit.integrations.peft.merge_losses(merged)

The codes stay as they are and an adapter learns beside them. Gradients go through a layer whose inputs are floats as they are,
and straight through what rounds its inputs to INT8. Merging is not exact, as it is with floats: the weight is dequantized, the
adapter added, and the sum quantized again on a grid of the same kind. What that took away is kept on the layer: an adapter
smaller than half a step of the grid may be lost altogether, and one has to be told.
"""

import inspect
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners import tuners_utils
from peft.tuners.lora import model as lora_model
from peft.tuners.lora.layer import Linear
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from qkit.checkpoints.layers import BESIDE
from qkit.methods.codebook import FP4, NF4
from qkit.methods.int8 import int8_rows
from qkit.methods.rtn import RTN
from qkit.model.facts import output_embedding
from qkit.nn.int8_linear import Int8Linear
from qkit.nn.layers import quantized_layers
from qkit.nn.qlinear import QLinear
from qkit.numerics.codebook_qtensor import CodebookQTensor
from qkit.numerics.error import ErrorStatistics, error_statistics
from qkit.numerics.qtensor import QTensor
from qkit.numerics.stored import StoredWeight

CODEBOOKS = {scheme.table: scheme for scheme in (NF4, FP4)}
BEGINNINGS = (True, False, "gaussian", "eva", "orthogonal", "mica")  # of adapters that leave the weight as it is
ALL_LINEAR = "all-linear"  # PEFT's word for every linear layer but the head


@dataclass(frozen=True)
class MergeLoss:
    """What quantizing again took from a layer that an adapter was merged into.

    Attributes:
        error: of the new weight against the old one plus the adapter.
        kept: how much of the adapter's change the weight made: 1 is all of it, 0 nothing.
    """

    error: ErrorStatistics
    kept: float


class QLoraLinear(Linear):
    """PEFT's LoRA layer around a QLinear."""

    def __init__(self, base_layer: nn.Module, adapter_name: str, **arguments: Any) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Unsupported layer type")  # it finds in_features all the same
            super().__init__(base_layer, adapter_name, **arguments)
        self.before: list[QLinear] = []  # not a submodule: what was there when an adapter was merged, to go back to

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the active adapters, or those named, to the weight, and quantize it again.

        Raises:
            ValueError: the sum holds NaN or infinity, or an adapter has a bias and the layer none; nothing is changed.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.lora_A]
        if not names:
            return
        layer: Any = self.get_base_layer()
        old = layer.weight.float()
        weight, bias = old.clone(), None if layer.bias is None else layer.bias.detach().clone()
        for name in names:
            if name in self.lora_variant:
                weight = self.lora_variant[name].merge_safe(self, name, weight)
            else:
                weight = weight + self.get_delta_weight(name).to(weight)
            if self.lora_bias[name]:
                if bias is None:
                    raise ValueError(
                        f"adapter {name!r} has a bias and the quantized layer has none to add it to; use lora_bias=False"
                    )
                bias += self.lora_B[name].bias.to(bias) * self.scaling[name]
        merged: Any = _with_weight(layer, weight, bias)
        change, made = (weight - old).double(), (merged.weight.float() - old).double()
        size = float((change * change).sum())
        kept = float((change * made).sum()) / size if size else 1.0
        merged.merge_loss = MergeLoss(error_statistics(weight, merged.weight.float()), kept)
        if kept < 0.5:
            warnings.warn(
                "an adapter was smaller than the steps of the grid it was merged into, and less than half of it is left; "
                "qkit.integrations.peft.merge_losses(model) says of which layers: keep it beside the codes, or take more bits",
                stacklevel=2,
            )
        self.before.append(layer)
        self.base_layer = merged
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Put back the layer that was there, exactly."""
        if not self.merged:
            warnings.warn("nothing is merged", stacklevel=2)
            return
        self.base_layer = self.before[0]
        self.before.clear()
        self.merged_adapters.clear()


def merge_losses(model: nn.Module) -> dict[str, MergeLoss]:
    """What merging cost, by layer; empty where nothing was merged into a quantized layer."""
    layers: dict[str, Any] = dict(quantized_layers(model))
    return {name: layer.merge_loss for name, layer in layers.items() if hasattr(layer, "merge_loss")}


def _with_weight(layer: QLinear, weight: Tensor, bias: Tensor | None) -> QLinear:
    """A layer like this one, with `weight` [out, in] quantized on a grid of the same kind."""
    beside: dict[str, Any] = {name: tensor for name in BESIDE if (tensor := layer._buffers.get(name)) is not None}
    if "order" in beside:
        weight = weight[:, beside["order"]]
    q: Any = int8_rows(weight, "the merged weight") if isinstance(layer, Int8Linear) else _again(weight, layer.qtensor)
    parameter = None if bias is None or layer.bias is None else nn.Parameter(bias, bool(layer.bias.requires_grad))
    return type(layer)(q, parameter, dtype=layer.dtype, **layer.settings(), **beside).train(layer.training)


def _again(weight: Tensor, q: StoredWeight) -> StoredWeight:
    """`weight` rounded to nearest as `q` is stored.

    Raises:
        ValueError: NaN or infinity in the weight.
    """
    if isinstance(q, CodebookQTensor):
        scheme: Any = CODEBOOKS[q.codebook](block_size=q.block_size, double_quant=q.nested_scales is not None)
    elif isinstance(q, QTensor):
        scale_dtype = str(q.scales.dtype).removeprefix("torch.")
        scheme = RTN(q.bits, q.group_size, q.symmetric, q.offsets is None, scale_dtype)
    else:
        raise TypeError(f"{q!r} is of a kind that adapters cannot be merged into; unload them, or merge in float")
    scheme.check(weight, "the merged weight")
    return scheme.round(weight, name="the merged weight").q


def _dispatch(dispatch_others: Any) -> Any:
    """PEFT's choice of an adapter for a layer, which knows ours."""

    def dispatch(target: nn.Module, adapter_name: str, config: Any, **kwargs: Any) -> nn.Module | None:
        layer = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if not isinstance(layer, QLinear) or kwargs.get("parameter_name") is not None:
            return dispatch_others(target, adapter_name, config=config, **kwargs)
        if (begin := config.init_lora_weights) not in BEGINNINGS:
            raise ValueError(
                f"init_lora_weights={begin!r} takes the adapter's beginning out of the weight, and codes stay as they are; "
                f"take one of {', '.join(map(repr, BEGINNINGS))}, or begin with floats and quantize what it leaves"
            )
        config.fan_in_fan_out = False  # a Conv1D that was quantized is [out, in]
        return QLoraLinear(target, adapter_name, config=config, **kwargs)

    vars(dispatch)["qkit"] = True  # that it is ours
    return dispatch


def _include(include_others: Any) -> Any:
    """PEFT's "all-linear", which counts ours."""

    def include(peft_config: Any, model: nn.Module) -> Any:
        wanted = getattr(peft_config, "target_modules", None)
        config = include_others(peft_config, model)
        if isinstance(wanted, str) and wanted.lower() == ALL_LINEAR:
            head = output_embedding(model)
            inside = tuple(f"{name}." for name, m in model.named_modules() if isinstance(m, BaseTunerLayer))
            layers = {name for name, m in quantized_layers(model).items() if m is not head}
            config.target_modules = set(config.target_modules) | {
                n for n in layers if not n.startswith(inside or ("\0",))
            }
        return config

    vars(include)["qkit"] = True
    return include


def register() -> None:
    """Let PEFT ask us first. May be called again. A PEFT before 0.19.1 asks in other words and is left as it is."""
    if "config" not in inspect.signature(lora_model.dispatch_default).parameters:
        return
    if not hasattr(lora_model.dispatch_default, "qkit"):
        lora_model.dispatch_default = _dispatch(lora_model.dispatch_default)
    if not hasattr(tuners_utils._maybe_include_all_linear_layers, "qkit"):
        tuners_utils._maybe_include_all_linear_layers = _include(tuners_utils._maybe_include_all_linear_layers)


register()  # whoever imports this; and `qkit.integrations` sees to it that it is imported with PEFT's choice of layers
