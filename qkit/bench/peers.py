"""Layers of other libraries, each in the way its own documentation says is fast. All are optional.

Each gets what it likes best: input in its own dtype, weights packed by its own functions, the rounding that fits its format.
Only `make` imports a library; one that is not installed, or cannot do it here, is named as missing.
"""

import logging
import warnings
from collections.abc import Callable
from copy import deepcopy
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qkit.bench.contender import BuiltLayer, Contender
from qkit.engine.quantize import quantize_tensor
from qkit.numerics.packing import pack

ONNX_OPSET, ONNX_IR = 17, 10  # old enough for any onnxruntime that has MatMulNBits


def torch_linear(dtype: torch.dtype, weight: Tensor) -> Callable[[], BuiltLayer]:
    """`F.linear` in a float dtype."""

    def layer() -> BuiltLayer:
        w = weight.to(dtype, copy=True)
        return BuiltLayer(lambda x: F.linear(x, w), w.nbytes)

    return layer


def torch_dynamic_int8(weight: Tensor) -> Callable[[], BuiltLayer]:
    """torch's INT8 Linear that quantizes its input on the fly, with a scale a row of the weight."""
    from torch.ao.nn.quantized.dynamic import Linear

    out_features, in_features = weight.shape
    with warnings.catch_warnings():  # torch.ao is being retired; it is still the fastest INT8 layer that torch has
        warnings.simplefilter("ignore")
        scales = weight.abs().amax(1).double() / 127
        zeros = torch.zeros(out_features, dtype=torch.long)
        quantized = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)

    def layer() -> BuiltLayer:
        module = Linear(in_features, out_features, bias_=False)
        module.set_weight_bias(quantized, None)  # packs it, into memory of its own
        return BuiltLayer(module, out_features * (in_features + 4))

    return layer


def torch_int4pack(weight: Tensor) -> Callable[[], BuiltLayer]:
    """torch's W4 kernel for the CPU: groups of 128 with zero points, bfloat16."""
    q = quantize_tensor(weight, bits=4, group_size=128)
    codes, scales = q.codes().int(), q.scales.float()
    shifts = (8 - q.zeros()) * scales  # torch's w is (code - 8) scale + shift
    grid = torch.stack([scales.T, shifts.T], -1).bfloat16().contiguous()  # [groups, out, 2]

    def layer() -> BuiltLayer:
        packed, mine = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1), grid.clone()
        multiply = torch.ops.aten._weight_int4pack_mm_for_cpu
        return BuiltLayer(lambda x: multiply(x, packed, 128, mine), packed.nbytes + mine.nbytes)

    return layer


@cache
def onnx_threads() -> int:
    """Start onnxruntime's pool, once a process: as many threads as torch has, for all sessions together.

    With a pool a session, as is usual, the pools of a layer's many copies would spin beside each other.
    """
    import onnxruntime

    onnxruntime.set_global_thread_pool_sizes(torch.get_num_threads(), 1)
    return torch.get_num_threads()


def onnx_matmul(bits: int, group_size: int, level: int, weight: Tensor) -> Callable[[], BuiltLayer]:
    """onnxruntime's MatMulNBits, symmetric; accuracy level 4 may quantize the activations to INT8, level 0 may not."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    if onnx_threads() != torch.get_num_threads():
        raise RuntimeError(f"its pool has {onnx_threads()} threads for good; use a fresh process")
    (n, k), q = weight.shape, quantize_tensor(weight, bits=bits, group_size=group_size, symmetric=True)
    groups = k // group_size
    stored = pack(q.codes().reshape(n * groups, group_size), bits).reshape(n, groups, -1)
    settings = {"K": k, "N": n, "bits": bits, "block_size": group_size, "accuracy_level": level}
    node = helper.make_node("MatMulNBits", ["x", "codes", "scales"], ["y"], domain="com.microsoft", **settings)
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["tokens", size]) for name, size in (("x", k), ("y", n))
    )
    parts = {"codes": stored, "scales": q.scales.float().reshape(-1)}
    constants = [numpy_helper.from_array(tensor.numpy(), name) for name, tensor in parts.items()]
    graph = helper.make_graph([node], "layer", [x], [y], constants)
    sets = [helper.make_opsetid("", ONNX_OPSET), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=sets, ir_version=ONNX_IR).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.use_per_session_threads = False

    def layer() -> BuiltLayer:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        nbytes = sum(part.nbytes for part in parts.values())
        return BuiltLayer(lambda x: session.run(None, {"x": x})[0], nbytes)

    return layer


def _quiet_bitsandbytes():
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns at every call, and that would be timed too
    import bitsandbytes

    return bitsandbytes


def bitsandbytes_nf4(dtype: torch.dtype, weight: Tensor) -> Callable[[], BuiltLayer]:
    """bitsandbytes' Linear4bit, NF4 in blocks of 64 without double quantization."""
    bitsandbytes = _quiet_bitsandbytes()
    settings = {"quant_type": "nf4", "compress_statistics": False}
    module = bitsandbytes.nn.Linear4bit(*reversed(weight.shape), bias=False, device="meta", **settings)
    module.weight = bitsandbytes.nn.Params4bit(weight.clone(), requires_grad=False, blocksize=64, **settings)
    module = module.to("cpu").eval()  # quantizes
    module(torch.zeros(1, weight.shape[1], dtype=dtype))  # packs the codes anew, for this CPU, and settles the dtype

    def layer() -> BuiltLayer:
        mine = deepcopy(module)
        return BuiltLayer(mine, mine.weight.nbytes + mine.weight.quant_state.absmax.nbytes)

    return layer


def bitsandbytes_int8(weight: Tensor) -> Callable[[], BuiltLayer]:
    """bitsandbytes' Linear8bitLt: LLM.int8() with threshold 6."""
    bitsandbytes = _quiet_bitsandbytes()
    settings = {"has_fp16_weights": False}

    def layer() -> BuiltLayer:
        module = bitsandbytes.nn.Linear8bitLt(
            *reversed(weight.shape), bias=False, threshold=6.0, device="meta", **settings
        )
        module.weight = bitsandbytes.nn.Int8Params(weight.clone(), requires_grad=False, **settings)
        return BuiltLayer(module.to("cpu").eval(), weight.numel() + 4 * len(weight))

    return layer


def nf4_on_card(weight: Tensor) -> nn.Module:
    """bitsandbytes' Linear4bit of a weight on a GPU: NF4 in blocks of 64 with double quantization, in the weight's dtype."""
    bitsandbytes = _quiet_bitsandbytes()
    settings = {"quant_type": "nf4", "compress_statistics": True}
    module = bitsandbytes.nn.Linear4bit(
        *reversed(weight.shape), bias=False, compute_dtype=weight.dtype, device="meta", **settings
    )
    module.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, blocksize=64, **settings)
    return module.to("cuda").eval()


def int8_on_card(weight: Tensor) -> nn.Module:
    """bitsandbytes' Linear8bitLt of a weight on a GPU: LLM.int8() with threshold 6. It waits for the host at every call."""
    bitsandbytes = _quiet_bitsandbytes()
    settings = {"has_fp16_weights": False}
    module = bitsandbytes.nn.Linear8bitLt(*reversed(weight.shape), bias=False, threshold=6.0, device="meta", **settings)
    module.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False, **settings)
    module = module.to("cuda").eval()
    module(
        weight.new_zeros(1, weight.shape[1])
    )  # a weight that is on the card already is quantized when it is first used
    return module


PEERS = (
    Contender("torch", "fp32", partial(torch_linear, torch.float32)),
    Contender("torch", "bf16", partial(torch_linear, torch.bfloat16), Tensor.bfloat16),
    Contender("torch", "dynamic INT8", torch_dynamic_int8),
    Contender("torch", "W4 g128 int4pack bf16", torch_int4pack, Tensor.bfloat16),
    Contender("onnxruntime", "W4 g128 sym level 4", partial(onnx_matmul, 4, 128, 4), Tensor.numpy),
    Contender("onnxruntime", "W4 g128 sym level 0", partial(onnx_matmul, 4, 128, 0), Tensor.numpy),
    Contender("onnxruntime", "W4 g32 sym level 4", partial(onnx_matmul, 4, 32, 4), Tensor.numpy),
    Contender("onnxruntime", "W4 g32 sym level 0", partial(onnx_matmul, 4, 32, 0), Tensor.numpy),
    Contender("onnxruntime", "W8 g128 sym level 4", partial(onnx_matmul, 8, 128, 4), Tensor.numpy),
    Contender("bitsandbytes", "NF4 b64", partial(bitsandbytes_nf4, torch.float32)),
    Contender("bitsandbytes", "NF4 b64 bf16", partial(bitsandbytes_nf4, torch.bfloat16), Tensor.bfloat16),
    Contender("bitsandbytes", "LLM.int8", bitsandbytes_int8),
    Contender("bitsandbytes", "LLM.int8 bf16", bitsandbytes_int8, Tensor.bfloat16),
)
