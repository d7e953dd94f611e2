"""GPTQ's format, as AutoGPTQ defined it and GPTQModel goes on with it.

Of a layer [out N, in K] with b bits and G groups of g columns:

    qweight   int32 [K b / 32, N]     codes packed along K, lowest bits first; 3 bits straddle words
    qzeros    int32 [G, N b / 32]     zero points packed along N
    scales    float16 [G, N]
    g_idx     int32 [K]               the group of each column; with act-order (`desc_act`) in any order

    ŵ[n, k] = scales[g_idx[k], n] (q[k, n] - z[g_idx[k], n])

The trap: in version 1 ("gptq") qzeros holds z - 1, in version 2 ("gptq_v2") z. AutoGPTQ took the 1 off and packed with OR, which
spoils the neighbours of a zero point 0; GPTQModel takes it off the packed word, where the borrow of a field that was 0 goes on
into the next: it is undone by adding to the word, where the carries meet the borrows, and not field by field. So symmetric
weights, whose zero points are 2^(b-1), are written as version 1, which everybody reads, and all others as version 2. Files that
say version 1 and hold the zero points of version 2 are about: where they say symmetric and each stored zero point is 2^(b-1),
they are that.
"""

import re
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from qkit.checkpoints.act_order import group_of_each, in_order, sorted_by_group
from qkit.checkpoints.folder import FolderFormat, check_replaced
from qkit.checkpoints.steps import (
    FLOATS,
    check_alike,
    check_group,
    check_known,
    check_size,
    common_group,
    grouped,
    rounded_inputs,
    wide_scales,
)
from qkit.checkpoints.words import pack_words, require_part, unpack_words, word_count, words
from qkit.model.blocks import find_blocks
from qkit.nn.permuted_linear import PermutedLinear
from qkit.nn.qlinear import QLinear
from qkit.nn.steps import spread, steps, why_not_steps

BITS = (2, 3, 4, 8)
PARTS = {"qweight", "qzeros", "scales"}
VERSION_FIELDS = ("checkpoint_format", "format")


class GPTQFormat(FolderFormat):
    """GPTQ, versions 1 and 2."""

    name: ClassVar[str] = "gptq"
    holds: ClassVar[str] = "steps of 2, 3, 4 or 8 bits with float16 scales"
    permutes: ClassVar[bool] = True

    def why_not(self, layer: QLinear) -> str | None:
        """By width, by what zero is, by the dtype of its scales."""
        return why_not_steps(layer, BITS) or wide_scales(layer)

    def check(self, model: nn.Module, layers: dict[str, QLinear]) -> None:
        """One width and one group size, whole words; in the blocks alone, for optimum looks nowhere else."""
        check_alike(layers, self.name)
        check_group(layers, self.name)
        blocks = tuple(f"{name}." for name, _ in find_blocks(model))
        check_replaced(layers, [name for name in layers if not name.startswith(blocks)], self)
        for name, layer in layers.items():
            for what, length in (("in_features", layer.in_features), ("out_features", layer.out_features)):
                if length * layer.bits % 32:
                    raise ValueError(
                        f"format 'gptq' packs whole words of 32 bits and {name} has {what}={length}, which in {layer.bits} bits "
                        f"fill none: exclude the layer, or take another format"
                    )

    def lost(self, layers: dict[str, QLinear]) -> tuple[str, ...]:
        """Activations stay floats on the other side; one reader takes version 2 for version 1."""
        notes = rounded_inputs(layers)
        if not all(steps(layer).symmetric for layer in layers.values()):
            notes += (
                "zero points make it version 2 of the format (gptq_v2): GPTQModel reads it; onnxruntime-genai's builder takes it "
                "for version 1 without a word, each zero point one too high: for onnxruntime save it as 'onnx' or 'awq'",
            )
        return notes

    def config(self, layers: dict[str, QLinear], left: list[str], heads: list[str]) -> dict[str, Any]:
        """Version 1 where all is symmetric, else version 2."""
        symmetric = all(steps(layer).symmetric for layer in layers.values())
        version = "gptq" if symmetric else "gptq_v2"
        skipped: dict[str, Any] = {}
        if left:  # transformers heeds the one field, GPTQModel itself the other
            skipped["modules_in_block_to_quantize"] = [list(layers)]
            skipped["dynamic"] = {f"-:^{re.escape(name)}$": {} for name in left}
        return {
            "quant_method": "gptq",
            "bits": next(iter(layers.values())).bits,
            "group_size": common_group(layers),
            "desc_act": any(isinstance(layer, PermutedLinear) for layer in layers.values()),
            "sym": symmetric,
            "checkpoint_format": version,
            "format": version,
            "pack_dtype": "int32",
            "lm_head": False,  # `check` sees to it
            **skipped,
        }

    def tensors(self, layer: QLinear, config: dict[str, Any]) -> dict[str, Tensor]:
        """As the head of this file has it."""
        q = steps(layer)
        groups = 1 if config["group_size"] == -1 else q.shape[1] // config["group_size"]
        scales, zeros = spread(q, groups)
        index = torch.arange(q.shape[1], dtype=torch.int32) // (q.shape[1] // groups)
        packed = q.packed
        if isinstance(layer, PermutedLinear):
            back = layer.order.argsort().cpu()
            index, packed = index[back], pack_words(q.codes().cpu()[:, back], q.bits)
        else:
            packed = words(packed.cpu())
        stored = zeros - int(config["checkpoint_format"] == "gptq")
        return {
            "qweight": packed.T.contiguous(),
            "qzeros": pack_words(stored.T, q.bits),
            "scales": scales.T.to(torch.float16).contiguous(),
            "g_idx": index,
        }

    def check_config(self, config: dict[str, Any]) -> None:
        """Widths, group size and version."""
        if config.get("bits") not in BITS or isinstance(config["bits"], bool | float):
            raise ValueError(f"says bits={config.get('bits')!r}, and GPTQ's files have {', '.join(map(str, BITS))}")
        check_size(config.get("group_size", 128), "GPTQ")
        for field in VERSION_FIELDS:
            if config.get(field) and config[field] not in ("gptq", "gptq_v2"):
                raise ValueError(
                    f"says {field}={config[field]!r}; qkit reads 'gptq' and 'gptq_v2': convert it with GPTQModel"
                )
        first, second = (config.get(field) or _version(config) for field in VERSION_FIELDS)
        if first != second:
            raise ValueError(
                f"says checkpoint_format={first!r} and format={second!r}, and zero points are read by the version; take out the "
                f"field that is wrong"
            )

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
        """Codes as they are; sorted by group where they are not."""
        (rows, columns), bits = shape, config["bits"]
        size = columns if config.get("group_size", 128) == -1 else config.get("group_size", 128)
        groups = -(-columns // size)
        check_known(parts, PARTS | {"g_idx"})
        weight = require_part("qweight", parts, (word_count(columns, bits), rows), torch.int32)
        packed_zeros = require_part("qzeros", parts, (groups, word_count(rows, bits)), torch.int32)
        scales = require_part("scales", parts, (groups, rows), *FLOATS).T
        zeros = _zeros(packed_zeros, bits, rows, config).T
        if config.get("desc_act") and groups > 1 and "g_idx" not in parts:
            raise ValueError("lacks g_idx, which desc_act=true promises")
        index = group_of_each("g_idx", parts, columns, size, torch.int32)
        packed, index, order = sorted_by_group(weight.T, bits, index)
        return in_order(grouped(packed, scales, zeros, index, bits, shape), bias, order)


def _version(config: dict[str, Any]) -> Any:
    """ "gptq" or "gptq_v2": the field has two names, and was left out before there was a version 2."""
    return next((config[field] for field in VERSION_FIELDS if config.get(field)), "gptq")


def _zeros(packed: Tensor, bits: int, rows: int, config: dict[str, Any]) -> Tensor:
    """The zero points of a file, uint8 [groups, out]."""
    stored, half = unpack_words(packed, bits, rows), 2 ** (bits - 1)
    symmetric_but_one = config.get("sym") is True and bool((stored == half - 1).all())  # as version 1 has them
    if (_version(config) == "gptq_v2" and not symmetric_but_one) or (
        config.get("sym", True) and bool((stored == half).all())
    ):
        return stored
    if bits == 3:  # no field of 3 bits ends with its word: GPTQModel goes field by field here
        return (stored + 1) % 8
    ones = sum(1 << place for place in range(0, 32, bits))
    total = (packed.long() + ones) & 0xFFFFFFFF
    return unpack_words(torch.where(total >= 2**31, total - 2**32, total).to(torch.int32), bits, rows)
