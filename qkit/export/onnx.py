"""A model of the Llama family as an ONNX graph, its quantized layers with the codes that they have.

What
    The graph reads ids, a mask and what the layers remember (keys and values), and returns logits and what they remember now:
    what onnxruntime-genai calls a decoder, and what runs on a phone.

How
    A quantized layer is one `MatMulNBits`, or QDQ where it multiplies integers (`qkit.export.linear`): the same codes, nothing is
    quantized again. Attention is one `GroupQueryAttention`, which turns the keys, remembers them and masks. All else are plain
    operations in float32.

Trade-off
    `accuracy_level` (of MatMulNBits) 0 multiplies floats, exact to float32's rounding. 4 lets onnxruntime round activations to
    INT8, which is faster, and changes logits by some percent.
"""

from typing import Any, cast

import numpy as np
import torch
from torch import nn

from qkit.export.graph import CONTRIBUTED, Graph, floats
from qkit.export.linear import linear
from qkit.nn.qlinear import QLinear

LEVELS = (0, 4)
FAMILIES = ("llama", "mistral", "qwen2")
TURNS = ("default", "linear", "llama3")  # ways of rotary embedding whose angles do not depend on the length of the text
OPSET = 21


def check_model(model: nn.Module) -> None:
    """Refuse what the graph has no place for.

    Raises:
        ValueError: another architecture, or one whose config asks for what is not written here.
    """
    config = cast(Any, model).config
    if config.model_type not in FAMILIES:
        raise ValueError(f"the ONNX graph is that of {', '.join(FAMILIES)}, and this model is a {config.model_type}")
    turn = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    head = cast(Any, model).model.layers[0].self_attn.head_dim
    asked = {
        f"hidden_act={config.hidden_act!r} (silu is known)": config.hidden_act != "silu",
        f"rope_type={turn!r} ({', '.join(TURNS)} are known)": turn not in TURNS,
        "a sliding window": bool(_window(config)),
        f"heads of {head} numbers (multiples of 16 are known)": head % 16 != 0,
    }
    if wrong := [what for what, wanted in asked.items() if wanted]:
        raise ValueError(f"the ONNX graph has no place for {' and '.join(wrong)}, which this model's config asks for")


def _window(config: Any) -> Any:
    if getattr(config, "use_sliding_window", True):
        return getattr(config, "sliding_window", None)
    return None


def norm(graph: Graph, x: str, module: nn.Module, name: str) -> str:
    """RMSNorm."""
    graph.used.add(f"{name}.weight")
    weight = graph.tensor(f"{name}.weight", floats(cast(Any, module).weight))
    epsilon = float(cast(Any, module).variance_epsilon)
    return graph.op(
        "SimplifiedLayerNormalization", [x, weight], f"{name}.normed", axis=-1, epsilon=epsilon, stash_type=1
    )


def attention(
    graph: Graph, x: str, layer: nn.Module, name: str, i: int, config: Any, lengths: list[str], level: int
) -> str:
    """softmax(q kᵀ / sqrt(d)) v of one block, its keys and values remembered."""
    module = cast(Any, layer)
    q, k, v = (linear(graph, x, getattr(module, f"{part}_proj"), f"{name}.{part}_proj", level) for part in "qkv")
    past = [f"past_key_values.{i}.key", f"past_key_values.{i}.value"]
    mixed = f"{name}.mixed"
    graph.op(
        "GroupQueryAttention", [q, k, v, *past, *lengths, "cos", "sin"], mixed, CONTRIBUTED,
        (f"present.{i}.key", f"present.{i}.value"), num_heads=config.num_attention_heads,
        kv_num_heads=config.num_key_value_heads, do_rotary=1, rotary_interleaved=0, scale=float(module.scaling),
    )  # fmt: skip
    return linear(graph, mixed, module.o_proj, f"{name}.o_proj", level)


def mlp(graph: Graph, x: str, layer: nn.Module, name: str, level: int) -> str:
    """down(silu(gate x) up x)."""
    module = cast(Any, layer)
    gate, up = (
        linear(graph, x, getattr(module, f"{part}_proj"), f"{name}.{part}_proj", level) for part in ("gate", "up")
    )
    bent = graph.op("Mul", [gate, graph.op("Sigmoid", [gate], f"{name}.sigmoid")], f"{name}.silu")
    return linear(graph, graph.op("Mul", [bent, up], f"{name}.gated"), module.down_proj, f"{name}.down_proj", level)


def model_proto(model: nn.Module, accuracy_level: int = 0) -> Any:
    """The graph of a model, an `onnx.ModelProto`.

    Inputs `input_ids` and `attention_mask`, int64 [batch, tokens] and [batch, past + tokens], and for each block
    `past_key_values.N.key` and `.value`, float32 [batch, heads of keys, past, head]; outputs `logits`, float32
    [batch, tokens, vocabulary], and `present.N.key` and `.value`. Several texts together go on by one token each (onnxruntime's
    GroupQueryAttention takes more only of one text).

    Args:
        model: a causal language model of `FAMILIES`, floats or quantized; every layer passes `qkit.export.linear.why_not`.
        accuracy_level: of MatMulNBits: 0, floats; 4, onnxruntime may round activations to INT8.

    Raises:
        ImportError: onnx is not installed.
        ValueError: another level; what `check_model` refuses; a model with parts that the graph has no place for.
    """
    from onnx import TensorProto, helper

    if accuracy_level not in LEVELS:
        raise ValueError(f"accuracy_level={accuracy_level!r} is not one of {', '.join(map(str, LEVELS))}")
    check_model(model)
    network, config, graph = cast(Any, model), cast(Any, model).config, Graph()
    body = network.model
    embedding = graph.tensor("model.embed_tokens.weight", floats(body.embed_tokens.weight))
    graph.used.add("model.embed_tokens.weight")
    x = graph.op("Gather", [embedding, "input_ids"], "embedded")
    last = graph.tensor("one", np.array([1], dtype=np.int64))
    seen = graph.op("ReduceSum", ["attention_mask", last], "seen", keepdims=0)  # axis 1: how many tokens each text has
    lengths = [
        graph.op("Cast", [graph.op("Sub", [seen, last], "seen_before_last")], "seqlens_k", to=TensorProto.INT32),
        graph.op(
            "Cast",
            [
                graph.op(
                    "Gather",
                    [graph.op("Shape", ["attention_mask"], "mask_shape"), graph.tensor("axis", np.array(1))],
                    "all",
                )
            ],
            "total_sequence_length",
            to=TensorProto.INT32,
        ),
    ]
    _angles(graph, body.rotary_emb, config.max_position_embeddings)
    for i, block in enumerate(body.layers):
        name = f"model.layers.{i}"
        normed = norm(graph, x, block.input_layernorm, f"{name}.input_layernorm")
        mixed = attention(graph, normed, block.self_attn, f"{name}.self_attn", i, config, lengths, accuracy_level)
        x = graph.op("Add", [x, mixed], f"{name}.attended")
        normed = norm(graph, x, block.post_attention_layernorm, f"{name}.post_attention_layernorm")
        x = graph.op("Add", [x, mlp(graph, normed, block.mlp, f"{name}.mlp", accuracy_level)], name)
    x = norm(graph, x, body.norm, "model.norm")
    head = network.lm_head
    if not isinstance(head, QLinear) and head.weight is body.embed_tokens.weight:  # one table, stored once
        graph.used.add("lm_head.weight")
        logits = graph.op("MatMul", [x, graph.op("Transpose", [embedding], "head", perm=[1, 0])], "head_product")
    else:
        logits = linear(graph, x, head, "lm_head", accuracy_level)
    graph.op("Identity", [logits], "logits")
    if left := sorted(set(network.state_dict(keep_vars=True)) - graph.used):
        raise ValueError(f"the ONNX graph has no place for {', '.join(left[:3])}; save it in another format")

    def value(name: str, kind: int, shape: list[int | str]) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    heads: list[int | str] = ["batch", config.num_key_value_heads]
    past = [
        (f"{i}.{part}", [*heads, length, body.layers[i].self_attn.head_dim])
        for length in ("past",)
        for i in range(len(body.layers))
        for part in ("key", "value")
    ]
    made = helper.make_graph(
        graph.nodes,
        "qkit",
        [
            value("input_ids", TensorProto.INT64, ["batch", "tokens"]),
            value("attention_mask", TensorProto.INT64, ["batch", "all"]),
            *(value(f"past_key_values.{name}", TensorProto.FLOAT, shape) for name, shape in past),
        ],
        [
            value("logits", TensorProto.FLOAT, ["batch", "tokens", config.vocab_size]),
            *(value(f"present.{name}", TensorProto.FLOAT, [*shape[:2], "all", shape[3]]) for name, shape in past),
        ],
        graph.initializers,
    )
    return helper.make_model(
        made,
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIBUTED, 1)],
        ir_version=10,
        producer_name="qkit",
    )


def _angles(graph: Graph, rotary: nn.Module, positions: int) -> None:
    """cos and sin of every position, [positions, head / 2]."""
    module = cast(Any, rotary)
    turns = torch.outer(torch.arange(positions).float(), module.inv_freq.detach().float().cpu())
    for name, angles in (("cos", turns.cos()), ("sin", turns.sin())):
        graph.tensor(name, (angles * module.attention_scaling).numpy())
