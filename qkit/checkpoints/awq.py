"""AWQ's format, version gemm, as AutoAWQ defined it: 4 bits with zero points.

Of a layer [out N, in K] with groups of g columns:

    qweight   int32 [K, N / 8]        codes packed along N, eight a word, in an order of their own
    qzeros    int32 [K / g, N / 8]    zero points, packed alike; as they are, no 1 is taken off
    scales    float16 [K / g, N]

    ŵ[n, k] = scales[k // g, n] (q[k, n] - z[k // g, n])

The order: place i of a word, from the lowest bits, holds column 0 2 4 6 1 3 5 7 of its eight. The CUDA kernel takes two codes at
once out of one word with a shift and a mask, places i and i + 4, and so finds neighbours beside each other.

The versions gemv and gemv_fast pack along the other axis, and are refused by name.
"""

from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from qkit.checkpoints.folder import FolderFormat, check_no_conv1d, check_replaced
from qkit.checkpoints.steps import (
    FLOATS,
    check_group,
    check_known,
    check_size,
    common_group,
    grouped,
    rounded_inputs,
    wide_scales,
)
from qkit.checkpoints.words import pack_words, require_part, unpack_words
from qkit.model.roles import output_heads
from qkit.nn.qlinear import QLinear
from qkit.nn.steps import spread, steps, why_not_steps
from qkit.numerics.packing import pack

PLACES = (0, 2, 4, 6, 1, 3, 5, 7)  # the column of its eight that each place of a word holds
# Of these transformers expects scales of an activation beside the weights ("mlp.act.scales"), as AutoAWQ folded them
SCALED = ("starcoder2", "falcon", "mpt", "gptj", "gpt_neox", "gpt_bigcode", "bloom")
READS = ("gemm", "gemv", "gemv_fast")


class AWQFormat(FolderFormat):
    """AWQ, version gemm."""

    name: ClassVar[str] = "awq"
    holds: ClassVar[str] = "steps of 4 bits with float16 scales"

    def why_not(self, layer: QLinear) -> str | None:
        """By width, by what zero is, by the dtype of its scales."""
        return why_not_steps(layer, (4,)) or wide_scales(layer)

    def check(self, model: nn.Module, layers: dict[str, QLinear]) -> None:
        """One group size, eight codes a word; the head in floats."""
        check_group(layers, self.name)
        check_no_conv1d(model, layers, self)
        heads = output_heads(model)
        check_replaced(layers, [name for name, layer in layers.items() if layer in heads], self)
        if (kind := cast(Any, model).config.model_type) in SCALED:
            raise ValueError(
                f"format 'awq' keeps scales of an activation in models of type {kind!r}, which qkit's have not"
            )
        for name, layer in layers.items():
            if layer.out_features % 8:
                raise ValueError(
                    f"format 'awq' packs 8 outputs in a word and {name} has out_features={layer.out_features}: "
                    f"exclude the layer, or take another format"
                )

    def lost(self, layers: dict[str, QLinear]) -> tuple[str, ...]:
        """Activations stay floats on the other side."""
        return rounded_inputs(layers)

    def config(self, layers: dict[str, QLinear], left: list[str], heads: list[str]) -> dict[str, Any]:
        """Zero points always: those of a symmetric weight are 8."""
        return {
            "quant_method": "awq",
            "bits": 4,
            "group_size": common_group(layers),
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": [*left, *heads],
        }

    def tensors(self, layer: QLinear, config: dict[str, Any]) -> dict[str, Tensor]:
        """As the head of this file has it."""
        q = steps(layer)
        groups = 1 if config["group_size"] == -1 else q.shape[1] // config["group_size"]
        scales, zeros = spread(q, groups)
        return {
            "qweight": interleave(q.codes().cpu().T),
            "qzeros": interleave(zeros.T),
            "scales": scales.T.to(torch.float16).contiguous(),
        }

    def check_config(self, config: dict[str, Any]) -> None:
        """Version, width and group size."""
        version = str(config.get("version") or config.get("format") or "gemm").lower()
        if version != "gemm":
            known = "packs its codes another way" if version in READS else "is unknown"
            raise ValueError(f"says version={version!r}, which {known}; qkit reads gemm: convert it with its library")
        bits = config.get("bits", config.get("w_bit", 4))
        if bits != 4 or isinstance(bits, bool | float):
            raise ValueError(f"says bits={bits!r}, and AWQ's files have 4")
        check_size(group_size(config), "AWQ")

    def parts(self, present: set[str]) -> bool:
        """Told by its codes."""
        return "qweight" in present

    def layer(
        self,
        parts: dict[str, Tensor],
        bias: nn.Parameter | None,
        shape: tuple[int, int],
        config: dict[str, Any],
        name: str,
    ) -> QLinear:
        """Codes and zero points out of their order, then packed along K."""
        rows, columns = shape
        size = columns if group_size(config) == -1 else group_size(config)
        if rows % 8 or columns % size:
            raise ValueError(f"is {rows} x {columns}, which groups of {size} and words of 8 outputs do not fill")
        check_known(parts, {"qweight", "qzeros", "scales"})
        codes = separate(require_part("qweight", parts, (columns, rows // 8), torch.int32)).T
        zeros = separate(require_part("qzeros", parts, (columns // size, rows // 8), torch.int32)).T
        scales = require_part("scales", parts, (columns // size, rows), *FLOATS).T
        index = torch.arange(columns) // size
        return QLinear(grouped(pack(codes.contiguous(), 4), scales, zeros, index, 4, shape), bias)


def group_size(config: dict[str, Any]) -> Any:
    """Columns that share a scale; llm-awq has another name for it."""
    return config.get("group_size", config.get("q_group_size", 128))


def interleave(codes: Tensor) -> Tensor:
    """Codes of 4 bits [rows, columns] in words of eight, in AWQ's order: int32 [rows, columns / 8]."""
    rows, columns = codes.shape
    eights = codes.reshape(rows, columns // 8, 8)
    return pack_words(eights[..., list(PLACES)].reshape(rows, columns), 4)


def separate(packed: Tensor) -> Tensor:
    """The inverse of `interleave`: uint8 [rows, columns]."""
    rows, count = packed.shape
    places = unpack_words(packed, 4, 8 * count).reshape(rows, count, 8)
    eights = torch.empty_like(places)
    eights[..., list(PLACES)] = places
    return eights.reshape(rows, 8 * count)
