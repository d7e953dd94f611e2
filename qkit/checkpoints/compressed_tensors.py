"""compressed-tensors, the format of llm-compressor and vLLM: pack-quantized weights, and INT8 on both sides (int-quantized).

Of a layer [out N, in K] with b bits and G groups, pack-quantized:

    weight_packed        int32 [N, ceil(K b / 32)]     codes packed along K, as one stream of bits (since version 0.13; before,
                                                       a word held no part of a code: 3, 5, 6 and 7 bits differ)
    weight_scale         [N, G]; [N, 1] for a scale a row
    weight_zero_point    int32 [ceil(N b / 32), G], packed along N; left out where all is symmetric
    weight_shape         int64 [2]
    weight_g_idx         int32 [K], of act-order in groups

Codes and zero points are signed in the library and stored plus 2^(b-1), which is what `QTensor` has. int-quantized:

    weight               int8 [N, K]
    weight_scale         [N, 1]
    input_scale          [1], where inputs have one fixed scale; with a scale a token nothing is stored

    ŵ = weight_scale (q - z)

Inputs: compressed-tensors lays a token's absmax on 127.5 and takes -128 .. 127, qkit (as LLM.int8 and SmoothQuant) lays it on
127. Both are right, and they round differently: one layer's output differs by about as much as rounding costs at all, though
weights and scales are the same. With a fixed scale there is no such choice, and nothing differs but -128.
"""

import re
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from qkit.checkpoints.act_order import group_of_each, in_order, sorted_by_group
from qkit.checkpoints.folder import FolderFormat, check_no_conv1d
from qkit.checkpoints.steps import FLOATS, check_known, grouped, rounded_inputs
from qkit.checkpoints.words import require_part, unpack_words, word_count, words
from qkit.nn.int8_linear import Int8Linear
from qkit.nn.qlinear import QLinear
from qkit.nn.steps import spread, steps, why_not_steps
from qkit.numerics.integers import int8_codes
from qkit.numerics.packing import pack
from qkit.numerics.qtensor import QTensor

PACKED, INTEGERS = "pack-quantized", "int-quantized"
DYNAMIC = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
STATIC = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "tensor", "dynamic": False}


class CompressedTensorsFormat(FolderFormat):
    """compressed-tensors: pack-quantized and int-quantized."""

    name: ClassVar[str] = "compressed-tensors"
    holds: ClassVar[str] = "symmetric steps of 3, 4 or 8 bits, and W8A8"

    def why_not(self, layer: QLinear) -> str | None:
        """By width and zero points; LLM.int8 has outliers."""
        if (why := why_not_steps(layer, (3, 4, 8))) is not None:
            return why
        if not steps(layer).symmetric:
            return "has zero points, which its loader in transformers does not take"
        if isinstance(layer, Int8Linear) and layer.threshold:
            return "keeps columns of outliers in float (LLM.int8)"
        return None

    def check(self, model: nn.Module, layers: dict[str, QLinear]) -> None:
        """All layers packed, or all INT8 on both sides."""
        integers = [name for name, layer in layers.items() if isinstance(layer, Int8Linear)]
        if integers and len(integers) < len(layers):
            other = next(name for name in layers if name not in integers)
            raise ValueError(
                f"format {self.name!r} holds layers with INT8 inputs or layers without, and {integers[0]} has them and {other} "
                f"has not: quantize them alike"
            )
        check_no_conv1d(model, layers, self)

    def lost(self, layers: dict[str, QLinear]) -> tuple[str, ...]:
        """How inputs are rounded."""
        dynamic = [one for one in layers.values() if isinstance(one, Int8Linear) and one.input_scale is None]
        if dynamic:
            return (
                f"{len(dynamic)} layers round their inputs to INT8 on both sides, but compressed-tensors lays a token's largest "
                f"value on 127.5 and qkit on 127: logits differ by about what that rounding costs",
            )
        return () if any(isinstance(one, Int8Linear) for one in layers.values()) else rounded_inputs(layers)

    def config(self, layers: dict[str, QLinear], left: list[str], heads: list[str]) -> dict[str, Any]:
        """A group for each kind of layer; one alone speaks of all Linear layers."""
        kinds: dict[str, tuple[dict[str, Any], list[str]]] = {}
        for name, layer in layers.items():
            arguments = _arguments(layer)
            kinds.setdefault(repr(arguments), (arguments, []))[1].append(name)
        alone = len(kinds) == 1
        integers = any(isinstance(layer, Int8Linear) for layer in layers.values())
        return {
            "quant_method": "compressed-tensors",
            "format": INTEGERS if integers else PACKED,
            "quantization_status": "compressed",  # without this the loader takes codes for weights
            "config_groups": {
                f"group_{index}": {"targets": ["Linear"] if alone else names, **arguments}
                for index, (arguments, names) in enumerate(kinds.values())
            },
            "ignore": [*left, *heads],
            "kv_cache_scheme": None,
        }

    def tensors(self, layer: QLinear, config: dict[str, Any]) -> dict[str, Tensor]:
        """As the head of this file has it."""
        q = steps(layer)
        scales = spread(q, q.row_groups)[0].contiguous()
        if isinstance(layer, Int8Linear):
            parts = {"weight": int8_codes(q).cpu().contiguous(), "weight_scale": scales}
            if isinstance(layer.input_scale, Tensor):
                parts["input_scale"] = layer.input_scale.cpu().reshape(1)
            return parts
        return {"weight_packed": words(q.packed.cpu()), "weight_scale": scales, "weight_shape": torch.tensor(q.shape)}

    def check_config(self, config: dict[str, Any]) -> None:
        """Its groups, and what goes beyond weights and inputs."""
        groups = config.get("config_groups")
        if not isinstance(groups, dict) or not groups or not all(isinstance(one, dict) for one in groups.values()):
            raise ValueError("says nothing of its config_groups, so nobody knows how its layers are quantized")
        for group in groups.values():
            form = group.get("format") or config.get("format")
            if form not in (PACKED, INTEGERS):
                raise ValueError(f"says format={form!r}; qkit reads {PACKED!r} and {INTEGERS!r}")
            _check_targets(group.get("targets"))
            _check_weights(group.get("weights"))
            if group.get("output_activations"):
                raise ValueError("rounds the outputs of its layers, which qkit's layers do not")
            if (inputs := group.get("input_activations")) is not None:
                _rounding(inputs)
        for field in ("kv_cache_scheme", "transform_config"):
            if config.get(field):
                raise ValueError(f"has a {field}, so its model computes what qkit's layers do not")
        sparsity = config.get("sparsity_config") or {}
        if not isinstance(sparsity, dict) or sparsity.get("format", "dense") != "dense":
            raise ValueError(f"says sparsity_config={sparsity!r}; qkit reads dense weights")

    def parts(self, present: set[str]) -> bool:
        """Told by the scales."""
        return "weight_scale" in present or "weight_packed" in present

    def layer(
        self,
        parts: dict[str, Tensor],
        bias: nn.Parameter | None,
        shape: tuple[int, int],
        config: dict[str, Any],
        name: str,
    ) -> QLinear:
        """Codes as they are, zero points packed along K."""
        group = _group_of(name, config["config_groups"])
        arguments, inputs = group["weights"], group.get("input_activations")
        (rows, columns), bits = shape, arguments["num_bits"]
        symmetric = arguments.get("symmetric", True)
        strategy = arguments.get("strategy") or ("group" if arguments.get("group_size") else "channel")
        size = min(arguments["group_size"], columns) if strategy == "group" else columns
        groups = -(-columns // size)
        packed = (group.get("format") or config["format"]) == PACKED
        known = (
            {"weight_packed", "weight_shape", "weight_g_idx"}
            if packed
            else {"weight", "input_scale", "input_zero_point"}
        )
        check_known(parts, known | {"weight_scale", "weight_zero_point"})
        if packed:
            said = require_part("weight_shape", parts, (2,), torch.int64, torch.int32).tolist()
            if said != list(shape):
                raise ValueError(f"has weight_shape {said} where the model's config gives {list(shape)}")
            row_words = require_part("weight_packed", parts, (rows, word_count(columns, bits)), torch.int32)
            if arguments.get("actorder") in ("group", True) and "weight_g_idx" not in parts:
                raise ValueError(f"lacks weight_g_idx, which actorder={arguments['actorder']!r} promises")
            index = group_of_each("weight_g_idx", parts, columns, size, torch.int32, torch.int64)
            codes, index, order = sorted_by_group(row_words, bits, index)
        else:
            codes = pack(_unsigned(require_part("weight", parts, shape, torch.int8), bits), bits)
            index, order = torch.arange(columns) // size, None
        scales = _scales(parts, strategy, rows, groups)
        zeros = None if symmetric else _zeros(parts, packed, bits, scales.shape)
        if symmetric and "weight_zero_point" in parts and parts["weight_zero_point"].any():
            zeros = _zeros(parts, packed, bits, scales.shape)
        q = grouped(codes, scales, zeros, index, bits, shape)
        if inputs is not None:
            return _with_inputs(q, bias, order, inputs, parts)
        return in_order(q, bias, order)


def _arguments(layer: QLinear) -> dict[str, Any]:
    """How a layer's weights and inputs are quantized, in the format's words."""
    q = steps(layer)
    grouping = (
        {"strategy": "group", "group_size": q.shape[1] // q.row_groups} if q.row_groups > 1 else {"strategy": "channel"}
    )
    weights = {"num_bits": q.bits, "type": "int", "symmetric": True, "dynamic": False, **grouping}
    inputs = None
    if isinstance(layer, Int8Linear):
        inputs = DYNAMIC if layer.input_scale is None else STATIC
    return {"weights": weights, "input_activations": inputs, "output_activations": None}


def _check_targets(targets: Any) -> None:
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise ValueError(f"says targets={targets!r} of a group, where names of layers belong")
    for target in targets:
        try:
            re.compile(target.removeprefix("re:"))
        except re.error as error:
            raise ValueError(f"says targets={target!r}, which is no pattern ({error})") from error


def _check_weights(arguments: Any) -> None:
    if not isinstance(arguments, dict) or arguments.get("type", "int") != "int":
        raise ValueError(f"says weights={arguments!r}; qkit reads integers")
    bits, size = arguments.get("num_bits"), arguments.get("group_size")
    if type(bits) is not int or not 2 <= bits <= 8:
        raise ValueError(f"says num_bits={bits!r}; qkit reads 2 to 8")
    if not isinstance(arguments.get("symmetric", True), bool):
        raise ValueError(f"says symmetric={arguments['symmetric']!r}, which is true or false")
    strategy = arguments.get("strategy")
    if strategy not in (None, "tensor", "channel", "group"):
        raise ValueError(f"says strategy={strategy!r} of its weights; qkit reads 'tensor', 'channel' and 'group'")
    if strategy == "group" and (type(size) is not int or size < 1):
        raise ValueError(f"says group_size={size!r} and strategy='group', which takes a number of columns")


def _rounding(inputs: Any) -> str:
    """The word of `Int8Linear` for how a file says inputs are rounded."""
    said = (
        {field: inputs.get(field) for field in ("num_bits", "type", "symmetric")}
        if isinstance(inputs, dict)
        else inputs
    )
    if said != {"num_bits": 8, "type": "int", "symmetric": True}:
        raise ValueError(f"rounds its inputs with {said!r}; qkit's layers round them to symmetric INT8")
    if inputs.get("dynamic") is True and inputs.get("strategy") == "token":
        return "per-token"
    if not inputs.get("dynamic") and inputs.get("strategy") in (None, "tensor"):
        return "per-tensor"
    raise ValueError(
        f"rounds its inputs with dynamic={inputs.get('dynamic')!r} and strategy={inputs.get('strategy')!r}; qkit's layers have "
        f"a scale a token, or one fixed scale"
    )


def _group_of(name: str, groups: dict[str, Any]) -> dict[str, Any]:
    """The group that speaks of a layer: by its name, by a pattern, or of all Linear layers."""
    for group in groups.values():
        for target in group["targets"]:
            if target == name or (target.startswith("re:") and re.match(target[3:], name)):
                return group
    for group in groups.values():
        if "Linear" in group["targets"]:
            return group
    raise ValueError("has codes, and no group of the config_groups speaks of it")


def _scales(parts: dict[str, Tensor], strategy: str, rows: int, groups: int) -> Tensor:
    if strategy == "tensor":
        shape = (1,) if "weight_scale" in parts and parts["weight_scale"].dim() == 1 else (1, 1)
        return require_part("weight_scale", parts, shape, *FLOATS).reshape(1, 1)
    return require_part("weight_scale", parts, (rows, groups), *FLOATS)


def _zeros(parts: dict[str, Tensor], packed: bool, bits: int, shape: torch.Size) -> Tensor:
    """Zero points as unsigned codes, uint8, shaped like the scales."""
    rows, groups = shape
    if not packed:
        part = parts.get("weight_zero_point")
        flat = (1,) if part is not None and part.dim() == 1 else (rows, groups)
        return _unsigned(require_part("weight_zero_point", parts, flat, torch.int8).reshape(rows, groups), bits)
    part = require_part("weight_zero_point", parts, (word_count(rows, bits), groups), torch.int32)
    return unpack_words(part.T, bits, rows).T


def _unsigned(signed: Tensor, bits: int) -> Tensor:
    """Signed codes plus 2^(bits - 1): uint8."""
    half = 2 ** (bits - 1)
    low, high = int(signed.min()), int(signed.max())
    if not -half <= low <= high < half:
        raise ValueError(f"has codes from {low} to {high}, and its {bits} bits hold {-half} .. {half - 1}")
    return (signed.short() + half).to(torch.uint8)


def _with_inputs(
    q: QTensor, bias: nn.Parameter | None, order: Tensor | None, inputs: dict[str, Any], parts: dict[str, Tensor]
) -> QLinear:
    """A layer that rounds its inputs; with a scale a row and no zero points it multiplies integers."""
    rounding = _rounding(inputs)
    if rounding == "per-token":
        whole = q.bits == 8 and q.symmetric and q.row_groups == 1 and order is None
        return Int8Linear(q, bias) if whole else in_order(q, bias, order, "int8")
    scale = require_part("input_scale", parts, (1,) if parts.get("input_scale", q.scales).dim() else (), *FLOATS)
    zero = parts.get("input_zero_point")
    if zero is not None and zero.any():
        raise ValueError("has an input_zero_point, and qkit's layers round their inputs symmetrically")
    if not scale > 0:
        raise ValueError(f"has input_scale {scale.item():g}, and a scale is positive")
    return Int8Linear(q, bias, activations="per-tensor", input_scale=scale.float().reshape(()))
