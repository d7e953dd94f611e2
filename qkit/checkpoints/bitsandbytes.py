"""bitsandbytes' formats, as transformers keeps them: NF4 and FP4 with or without double quantization, and LLM.int8.

Of a layer [out N, in K], n = N K weights row after row, in blocks of B:

    weight                                    uint8 [ceil(n / 2), 1]     two codes a byte, the first in the high half
    weight.absmax                             float32 [ceil(n / B)]; uint8 with double quantization
    weight.quant_map                          float32 [16], the table
    weight.nested_absmax                      float32 [ceil(blocks / 256)], with double quantization, as are
    weight.nested_quant_map                   float32 [256]
    weight.quant_state.bitsandbytes__nf4      uint8: JSON with shape, block sizes, dtype, and the offset of the absmax

or, of 8 bits,

    weight                                    int8 [N, K]
    SCB                                       float32 [N], the absmax of each row: ŵ = weight SCB / 127
    weight_format                             uint8 [], 0: row after row

`CodebookQTensor` holds the same numbers; only the halves of a byte stand the other way, and here rows are not filled up to
whole bytes.
"""

import json
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from qkit.checkpoints.folder import FolderFormat
from qkit.checkpoints.layers import COMPUTED_IN
from qkit.checkpoints.steps import check_known
from qkit.checkpoints.words import require_part
from qkit.nn.int8_linear import Int8Linear
from qkit.nn.qlinear import QLinear
from qkit.numerics.arithmetic import divided
from qkit.numerics.codebook_qtensor import CodebookQTensor
from qkit.numerics.codebooks import codebook, dynamic_map
from qkit.numerics.integers import int8_codes
from qkit.numerics.packing import pack
from qkit.numerics.qtensor import QTensor
from qkit_kernels.formats import NESTED_BLOCK

BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
STATE = "weight.quant_state.bitsandbytes__"
TABLES = ("nf4", "fp4")


class BitsAndBytesFormat(FolderFormat):
    """NF4, FP4 and LLM.int8 of bitsandbytes."""

    name: ClassVar[str] = "bitsandbytes"
    holds: ClassVar[str] = "NF4, FP4 and LLM.int8"

    def why_not(self, layer: QLinear) -> str | None:
        """By its table; or by how it rounds its inputs."""
        q = layer.qtensor
        if isinstance(q, CodebookQTensor):
            return None if q.block_size in BLOCKS else f"has blocks of {q.block_size}, not a power of 2 from 32 to 4096"
        if not isinstance(layer, Int8Linear):
            return f"has steps of {q.bits} bits and float inputs"
        return None if layer.input_scale is None else "rounds its inputs with a fixed scale"

    def check(self, model: nn.Module, layers: dict[str, QLinear]) -> None:
        """One kind of layer, for the config says it once."""
        kinds = {name: _kind(layer) for name, layer in layers.items()}
        (first, kind), *others = kinds.items()
        for name, other in others:
            if other != kind:
                raise ValueError(
                    f"format 'bitsandbytes' has one kind of layer a model; {first} is {_words(kind)} and {name} {_words(other)}: "
                    f"quantize them alike"
                )

    def lost(self, layers: dict[str, QLinear]) -> tuple[str, ...]:
        """LLM.int8 is computed in float16 there, and its kernel for 4 bits on a CPU wants whole blocks a row."""
        if any(isinstance(layer, Int8Linear) for layer in layers.values()):
            return (
                "bitsandbytes rounds inputs and outputs of its 8-bit layers to float16, qkit leaves them as they are",
            )
        across = sum(layer.qtensor.row_groups is None for layer in layers.values())
        if not across:
            return ()
        return (
            f"in {across} layers blocks run over the ends of rows, as the format has it; bitsandbytes 0.50.2 stops at those on a "
            f"CPU with AVX-512, or dequantizes them wrongly",
        )

    def config(self, layers: dict[str, QLinear], left: list[str], heads: list[str]) -> dict[str, Any]:
        """What BitsAndBytesConfig says of such a model."""
        layer = next(iter(layers.values()))
        eight = isinstance(layer, Int8Linear)
        said: dict[str, Any] = {
            "quant_method": "bitsandbytes",
            "load_in_4bit": not eight,
            "load_in_8bit": eight,
            "llm_int8_skip_modules": [*left, *heads],
            "llm_int8_threshold": layer.threshold if isinstance(layer, Int8Linear) else 6.0,
        }
        if not eight:
            q = cast(CodebookQTensor, layer.qtensor)
            said["bnb_4bit_quant_type"] = q.codebook
            said["bnb_4bit_use_double_quant"] = q.nested_scales is not None
            said["bnb_4bit_compute_dtype"] = str(layer.dtype).removeprefix("torch.")
            said["bnb_4bit_quant_storage"] = "uint8"
        return said

    def tensors(self, layer: QLinear, config: dict[str, Any]) -> dict[str, Tensor]:
        """As the head of this file has it."""
        q = layer.qtensor
        if isinstance(q, QTensor):
            return {
                "weight": int8_codes(q).cpu().contiguous(),
                "SCB": row_absmax(q.scales.cpu().float().expand(q.shape[0], 1)[:, 0]),
                "weight_format": torch.tensor(0, dtype=torch.uint8),
            }
        q = cast(CodebookQTensor, q)
        says: dict[str, Any] = {
            "quant_type": q.codebook,
            "blocksize": q.block_size,
            "dtype": str(layer.dtype).removeprefix("torch."),
            "shape": list(q.shape),
        }
        parts = {
            "weight": high_half_first(q.codes().cpu()),
            "weight.absmax": q.scales[0].cpu(),
            "weight.quant_map": codebook(q.codebook),
        }
        if q.nested_scales is not None and q.scale_offset is not None:
            parts["weight.nested_absmax"] = q.nested_scales.cpu()
            parts["weight.nested_quant_map"] = dynamic_map()
            says |= {
                "nested_blocksize": NESTED_BLOCK,
                "nested_dtype": "float32",
                "nested_offset": q.scale_offset.item(),
            }
        parts[STATE + q.codebook] = torch.tensor(list(json.dumps(says).encode()), dtype=torch.uint8)
        return parts

    def check_config(self, config: dict[str, Any]) -> None:
        """Four bits or eight."""
        if bool(config.get("load_in_4bit")) == bool(config.get("load_in_8bit")):
            raise ValueError(
                f"says load_in_4bit={config.get('load_in_4bit')!r} and load_in_8bit={config.get('load_in_8bit')!r}; "
                f"one of them is true in bitsandbytes' folders"
            )
        threshold = config.get("llm_int8_threshold", 6.0)
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold < float("inf"):
            raise ValueError(f"says llm_int8_threshold={threshold!r}, which is no size of activations")

    def parts(self, present: set[str]) -> bool:
        """Told by what stands beside the codes."""
        return any(part == "SCB" or part.startswith("weight.") for part in present)

    def layer(
        self,
        parts: dict[str, Tensor],
        bias: nn.Parameter | None,
        shape: tuple[int, int],
        config: dict[str, Any],
        name: str,
    ) -> QLinear:
        """A table's codes with their halves the other way; or INT8 with outliers."""
        if config.get("load_in_8bit"):
            return _eight_bits(parts, bias, shape, config)
        kinds = [part.removeprefix(STATE) for part in parts if part.startswith(STATE)]
        if len(kinds) != 1 or kinds[0] not in TABLES:
            raise ValueError(f"names its table {' and '.join(kinds) or 'nowhere'}, and qkit reads nf4 or fp4")
        says = _says(parts[STATE + kinds[0]])
        size, double = says.get("blocksize"), "nested_offset" in says
        known = {"weight", "weight.absmax", "weight.quant_map", STATE + kinds[0]}
        check_known(parts, known | ({"weight.nested_absmax", "weight.nested_quant_map"} if double else set()))
        if list(shape) != says.get("shape") or type(size) is not int or size < 1:
            raise ValueError(
                f"says shape={says.get('shape')!r} and blocksize={size!r} in its quant_state where the model's config gives "
                f"{list(shape)}"
            )
        if says.get("quant_type", kinds[0]) != kinds[0] or says.get("dtype", "float32") not in COMPUTED_IN:
            raise ValueError(
                f"says quant_type={says.get('quant_type')!r} and dtype={says.get('dtype')!r} in its quant_state, which is called "
                f"{kinds[0]}'s and takes one of {', '.join(COMPUTED_IN)}"
            )
        numbers = shape[0] * shape[1]
        blocks = -(-numbers // size)
        weight = require_part("weight", parts, (-(-numbers // 2), 1), torch.uint8)
        absmax = require_part("weight.absmax", parts, (blocks,), torch.uint8 if double else torch.float32)
        if not torch.equal(require_part("weight.quant_map", parts, (16,), torch.float32), codebook(kinds[0])):
            raise ValueError(f"has a quant_map that is not {kinds[0]}'s, which qkit's layers multiply with")
        codes = torch.stack([weight[:, 0] >> 4, weight[:, 0] & 15], 1).reshape(-1)[:numbers].reshape(shape)
        nested, offset = None, None
        if double:
            if says.get("nested_dtype", "float32") != "float32":
                raise ValueError(
                    f"says nested_dtype={says['nested_dtype']!r}, and the scales of its scales are float32"
                )
            if says.get("nested_blocksize") != NESTED_BLOCK or not isinstance(says["nested_offset"], float):
                raise ValueError(
                    f"says nested_blocksize={says.get('nested_blocksize')!r} and nested_offset={says['nested_offset']!r}, "
                    f"and qkit reads blocks of {NESTED_BLOCK} and a number"
                )
            nested = require_part("weight.nested_absmax", parts, (-(-blocks // NESTED_BLOCK),), torch.float32)
            table = require_part("weight.nested_quant_map", parts, (256,), torch.float32)
            if not torch.equal(table, dynamic_map()):
                raise ValueError(
                    "has a nested_quant_map that is not the dynamic map, which qkit's layers multiply with"
                )
            offset = torch.tensor(says["nested_offset"], dtype=torch.float32)
            if not offset.isfinite():
                raise ValueError(f"says nested_offset={says['nested_offset']!r}, which is no number")
        return QLinear(CodebookQTensor(pack(codes, 4), absmax[None], 4, shape, kinds[0], size, nested, offset), bias)


def _eight_bits(
    parts: dict[str, Tensor], bias: nn.Parameter | None, shape: tuple[int, int], config: dict[str, Any]
) -> Int8Linear:
    check_known(parts, {"weight", "SCB", "weight_format"})
    weight = require_part("weight", parts, shape, torch.int8)
    absmax = require_part("SCB", parts, (shape[0],), torch.float32, torch.float16, torch.bfloat16).float()
    if "weight_format" in parts and require_part("weight_format", parts, (), torch.uint8).item() != 0:
        raise ValueError(
            "has weight_format other than 0, the layout of a card's kernel: save it again with bitsandbytes"
        )
    if not (absmax >= 0).all():
        raise ValueError("has SCB below 0 where it is the largest magnitude of a row")
    q = QTensor(weight.view(torch.uint8) ^ 128, divided(absmax[:, None], 127), 8, shape)
    return Int8Linear(q, bias, threshold=float(config.get("llm_int8_threshold", 6.0)))


def high_half_first(codes: Tensor) -> Tensor:
    """Codes of 4 bits, row after row, two a byte: uint8 [ceil(n / 2), 1]; the last half may be empty."""
    flat = torch.nn.functional.pad(codes.reshape(-1), (0, codes.numel() % 2))
    return ((flat[0::2] << 4) | flat[1::2])[:, None].contiguous()


def row_absmax(scales: Tensor) -> Tensor:
    """The float32 that, divided by 127, gives each scale again, bit for bit; where there is none, the nearest."""
    middle = scales * 127
    for step in (torch.inf, -torch.inf):
        other = torch.nextafter(scales * 127, torch.tensor(step))
        closer = (divided(other, 127) - scales).abs() < (divided(middle, 127) - scales).abs()
        middle = torch.where(closer, other, middle)
    return middle


def _kind(layer: QLinear) -> tuple[Any, ...]:
    q = layer.qtensor
    if isinstance(q, CodebookQTensor):
        return q.codebook, q.nested_scales is not None
    return "LLM.int8", layer.threshold if isinstance(layer, Int8Linear) else None


def _words(kind: tuple[Any, ...]) -> str:
    return f"{kind[0]} with {kind[1]!r}"


def _says(state: Tensor) -> dict[str, Any]:
    """The JSON of a quant_state."""
    if state.dtype != torch.uint8 or state.dim() != 1 or state.numel() > 4096:
        raise ValueError("has a quant_state that is no row of bytes")
    try:
        says = json.loads(bytes(state.tolist()).decode())
    except (ValueError, RecursionError) as error:
        raise ValueError("has a quant_state that is no JSON") from error
    if not isinstance(says, dict):
        raise ValueError("has a quant_state that is no JSON object")
    return says
