"""Linear layers as operations of an ONNX graph: their codes as they are.

Weights of few bits are one `MatMulNBits` (a contributed operation of onnxruntime): ŵ = s (q - z), blocks of a power of two of
columns along each row, codes of 2, 4 or 8 bits packed lowest bits first, which is how they are packed here. Nothing is repacked
and nothing quantized again; a scale that serves more than one block is repeated.

Layers that multiply integers (`Int8Linear`) are QDQ, plain operations that say what is rounded how: QuantizeLinear and
DequantizeLinear of the inputs, DequantizeLinear of the weight by its scale a row, MatMul. onnxruntime makes of the four one
product of integers (`MatMulIntegerToFloat`), summed in int32. Both sides are uint8 with the zero point 128: on x86 without VNNI
onnxruntime adds two products of uint8 and int8 in 16 bits, where they do not fit (its session.x64quantprecision is for that).

    a fixed scale s       Max(x, -127 s), for QuantizeLinear would go down to -128; then steps of s
    a scale a token       QuantizeLinear has none whose tokens are not counted beforehand. So a token is divided by its own scale
                          s = max|x| / 127, goes through with steps of 1, and the product is multiplied by s

Both compute what `qkit.ops.int8_linear` computes, save for NaN, which INT8 does not have: a layer turns it into some number (in a
decoder the sum around the layer, and with it that token's logits, stays NaN). `DynamicQuantizeLinear` would be shorter, and has
one scale for all tokens.

LLM.int8 keeps outliers apart, by columns that only the inputs show, and is written as its weight alone.
"""

from typing import Any, TypeGuard, cast

import numpy as np
from torch import Tensor, nn

from qkit.export.graph import CONTRIBUTED, Graph, floats
from qkit.nn.int8_linear import Int8Linear
from qkit.nn.qlinear import QLinear
from qkit.nn.steps import spread, steps, why_not_steps
from qkit.numerics.integers import int8_codes
from qkit.numerics.qtensor import QTensor

BITS = (2, 4, 8)
SMALLEST, LARGEST = 16, 256  # columns of a block
TINY = np.finfo(np.float32).tiny


def why_not(layer: QLinear) -> str | None:
    """Why the graph cannot hold a layer, as the end of a sentence that begins with its name; None: it can."""
    if (why := why_not_steps(layer, BITS)) is not None:
        return why
    q = steps(layer)
    if block_of(q) == 0:
        return (
            f"has groups of {q.shape[1] // q.row_groups} columns, in which no block of {SMALLEST} columns or more fits"
        )
    return None


def block_of(q: QTensor) -> int:
    """The largest block of columns that MatMulNBits knows and that lies in one group; 0: there is none.

    A row with one scale may be cut anywhere, for the last block is filled up.
    """
    if q.row_groups == 1:
        return min(LARGEST, max(SMALLEST, 1 << (q.shape[1] - 1).bit_length()))
    size = q.shape[1] // q.row_groups
    block = min(LARGEST, size & -size)  # the power of two in it
    return block if block >= SMALLEST else 0


def integers(layer: QLinear) -> TypeGuard[Int8Linear]:
    """Whether a layer's inputs are INT8 in the graph as well."""
    return isinstance(layer, Int8Linear) and not layer.threshold


def linear(graph: Graph, x: str, layer: nn.Module, name: str, accuracy_level: int) -> str:
    """x ŵᵀ + bias, of codes or of floats."""
    module = cast(Any, layer)
    if isinstance(layer, QLinear):
        graph.used |= {f"{name}.{part}" for part, _ in layer.named_buffers()}
        y = qdq(graph, x, layer, name) if integers(layer) else matmul_nbits(graph, x, layer, name, accuracy_level)
    else:
        graph.used.add(f"{name}.weight")
        weight = graph.tensor(f"{name}.weight", floats(module.weight).T)
        y = graph.op("MatMul", [x, weight], f"{name}.product")
    if module.bias is None:
        return y
    graph.used.add(f"{name}.bias")
    return graph.op("Add", [y, graph.tensor(f"{name}.bias", floats(module.bias))], f"{name}.sum")


def matmul_nbits(graph: Graph, x: str, layer: QLinear, name: str, accuracy_level: int) -> str:
    """x ŵᵀ of codes. See the operator's page of onnxruntime's contributed operators for the packing."""
    q = steps(layer)
    rows, columns = q.shape
    block = block_of(q)
    blocks = -(-columns // block)
    octets = q.packed.cpu().numpy().reshape(rows, -1)
    octets = np.pad(octets, ((0, 0), (0, blocks * block * q.bits // 8 - octets.shape[1])))
    scales, zeros = spread(q, blocks)
    inputs = [
        x,
        graph.tensor(f"{name}.codes", octets.reshape(rows, blocks, block * q.bits // 8)),
        graph.tensor(f"{name}.scales", floats(scales)),
    ]
    if not q.symmetric:
        each = 8 // q.bits
        codes = np.pad(zeros.numpy(), ((0, 0), (0, -blocks % each))).reshape(rows, -1, each)
        packed = (codes << (q.bits * np.arange(each, dtype=np.uint8))).sum(-1, dtype=np.uint8)
        inputs.append(graph.tensor(f"{name}.zeros", packed))
    return graph.op(
        "MatMulNBits", inputs, f"{name}.product", CONTRIBUTED,
        K=columns, N=rows, bits=q.bits, block_size=block, accuracy_level=accuracy_level,
    )  # fmt: skip


def qdq(graph: Graph, x: str, layer: Int8Linear, name: str) -> str:
    """x ŵᵀ of integers on both sides."""
    q = steps(layer)
    codes = graph.tensor(f"{name}.codes", int8_codes(q).cpu().numpy().T.view(np.uint8) ^ 128)  # q + 128
    scales = graph.tensor(f"{name}.scales", floats(spread(q, 1)[0][:, 0]))
    zeros = graph.tensor(f"{name}.zeros", np.full(q.shape[0], 128, np.uint8))
    weight = graph.op("DequantizeLinear", [codes, scales, zeros], f"{name}.weight", axis=1)
    if isinstance(layer.input_scale, Tensor):
        step = np.float32(layer.input_scale.item())
        x = graph.op("Max", [x, graph.scalar(np.float32(-127) * step)], f"{name}.clamped")
        return graph.op("MatMul", [_rounded(graph, x, step), weight], f"{name}.product")
    scale, divided = f"{x}.scale", f"{x}.divided"
    if divided not in graph:  # layers that read the same share it
        reach = graph.op("ReduceMax", [graph.op("Abs", [x], f"{x}.abs"), _last(graph)], f"{x}.reach", keepdims=1)
        graph.op(
            "Max", [graph.op("Div", [reach, graph.scalar(np.float32(127))], f"{x}.step"), graph.scalar(TINY)], scale
        )
        graph.op("Div", [x, scale], divided)
        _rounded(graph, divided, np.float32(1))
    product = graph.op("MatMul", [f"{divided}.rounded", weight], f"{name}.in_steps")
    return graph.op("Mul", [product, scale], f"{name}.product")


def _rounded(graph: Graph, x: str, step: np.float32) -> str:
    """x on whole multiples of a step, from -128 to 127.

    As uint8 with the zero point 128: of int8 onnxruntime (1.32, x86) makes integer products only where no two layers share it.
    """
    of = [graph.scalar(step), graph.scalar(np.uint8(128))]
    return graph.op("DequantizeLinear", [graph.op("QuantizeLinear", [x, *of], f"{x}.codes"), *of], f"{x}.rounded")


def _last(graph: Graph) -> str:
    """The last axis."""
    return "last_axis" if "last_axis" in graph else graph.tensor("last_axis", np.array([-1], dtype=np.int64))
