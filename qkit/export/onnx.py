"""A model of the Llama family as an ONNX graph, its quantized layers with the codes that they have.

What
    The graph reads ids, a mask and what the layers remember (keys and values), and returns logits and what they remember now:
    what onnxruntime-genai calls a decoder, and what runs on a phone.

How
    A quantized layer is one `MatMulNBits` (a contributed operation of onnxruntime): ŵ = s (q - z), blocks of a power of two of
    columns along each row, codes of 2, 4 or 8 bits packed lowest bits first, which is how they are packed here. Nothing is
    repacked and nothing quantized again; a scale that serves more than one block is repeated. Attention is one
    `GroupQueryAttention`, which turns the keys, remembers them and masks. All else are plain operations in float32.

Trade-off
    `accuracy_level` 0 multiplies floats, exact to float32's rounding. 4 lets onnxruntime round activations to INT8, which is
    faster, and changes logits by some percent.
"""

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from qkit.nn.qlinear import QLinear
from qkit.numerics.qtensor import QTensor

BITS = (2, 4, 8)
SMALLEST, LARGEST = 16, 256  # columns of a block
LEVELS = (0, 4)
FAMILIES = ("llama", "mistral", "qwen2")
TURNS = ("default", "linear", "llama3")  # ways of rotary embedding whose angles do not depend on the length of the text
OPSET, CONTRIBUTED = 21, "com.microsoft"


class Graph:
    """An ONNX graph that grows: each operation names its output, and so the next can ask for it."""

    def __init__(self) -> None:
        from onnx import helper

        self._helper = helper
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.used: set[str] = set()  # of the model's tensors

    def tensor(self, name: str, array: np.ndarray) -> str:
        """A constant."""
        from onnx import numpy_helper

        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def op(self, kind: str, inputs: list[str], name: str, domain: str = "", outputs: int = 1, **attributes: Any) -> str:
        """An operation; its first output is called as it is."""
        outs = [name, *(f"{name}.{i}" for i in range(1, outputs))]
        self.nodes.append(self._helper.make_node(kind, inputs, outs, name=name, domain=domain, **attributes))
        return name


def why_not(layer: QLinear) -> str | None:
    """Why `MatMulNBits` cannot hold a layer's weight, as the end of a sentence that begins with its name; None: it can."""
    q = layer.qtensor
    if not isinstance(q, QTensor):
        return f"has codes that are places in a table ({q!r})"
    if q.offsets is not None:
        return "keeps the minimum of each group instead of a zero point (include_zero=False)"
    if q.bits not in BITS:
        return f"has {q.bits} bits"
    if block_of(q) == 0:
        groups = "no whole groups" if q.row_groups is None else f"groups of {q.shape[1] // q.row_groups} columns"
        return f"has {groups}, in which no block of {SMALLEST} columns or more fits"
    return None


def block_of(q: QTensor) -> int:
    """The largest block of columns that the operation knows and that lies in one group; 0: there is none.

    A row with one scale may be cut anywhere, for the last block is filled up.
    """
    if q.row_groups is None:
        return 0
    if q.row_groups == 1:
        return min(LARGEST, max(SMALLEST, 1 << (q.shape[1] - 1).bit_length()))
    size = q.shape[1] // q.row_groups
    block = min(LARGEST, size & -size)  # the power of two in it
    return block if block >= SMALLEST else 0


def check_model(model: nn.Module) -> None:
    """Refuse what the graph has no place for.

    Raises:
        ValueError: another architecture, or one whose config asks for what is not written here.
    """
    config = cast(Any, model).config
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"the ONNX graph is that of {', '.join(FAMILIES)}, and this model is a {config.model_type}; "
            f"save it in another format"
        )
    turn = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    head = cast(Any, model).model.layers[0].self_attn.head_dim
    asked = {
        f"hidden_act={config.hidden_act!r} (silu is known)": config.hidden_act != "silu",
        f"rope_type={turn!r} ({', '.join(TURNS)} are known)": turn not in TURNS,
        "a sliding window": bool(_window(config)),
        f"heads of {head} numbers (multiples of 16 are known)": head % 16 != 0,
    }
    if wrong := [what for what, wanted in asked.items() if wanted]:
        raise ValueError(
            f"the ONNX graph has no place for {' and '.join(wrong)}, which this model's config asks for; "
            "save it in another format"
        )


def _window(config: Any) -> Any:
    if getattr(config, "use_sliding_window", True):
        return getattr(config, "sliding_window", None)
    return None


def matmul_nbits(graph: Graph, x: str, layer: QLinear, name: str, accuracy_level: int) -> str:
    """x ŵᵀ of codes. See the operator's page of onnxruntime's contributed operators for the packing."""
    q = layer.qtensor
    assert isinstance(q, QTensor)
    rows, columns = q.shape
    block = block_of(q)
    blocks = -(-columns // block)
    octets = q.packed.cpu().numpy().reshape(rows, -1)
    octets = np.pad(octets, ((0, 0), (0, blocks * block * q.bits // 8 - octets.shape[1])))
    inputs = [
        x,
        graph.tensor(f"{name}.codes", octets.reshape(rows, blocks, block * q.bits // 8)),
        graph.tensor(f"{name}.scales", _repeated(q.scales.float(), q, blocks).astype(np.float32)),
    ]
    if not q.symmetric:
        zeros = _repeated(q.zeros(), q, blocks).astype(np.uint8)
        each = 8 // q.bits
        zeros = np.pad(zeros, ((0, 0), (0, -blocks % each))).reshape(rows, -1, each)
        packed = (zeros << (q.bits * np.arange(each, dtype=np.uint8))).sum(-1, dtype=np.uint8)
        inputs.append(graph.tensor(f"{name}.zeros", packed))
    return graph.op(
        "MatMulNBits", inputs, f"{name}.product", CONTRIBUTED,
        K=columns, N=rows, bits=q.bits, block_size=block, accuracy_level=accuracy_level,
    )  # fmt: skip


def _repeated(numbers: Tensor, q: QTensor, blocks: int) -> np.ndarray:
    """[out, groups] as [out, blocks]."""
    groups = q.row_groups
    assert groups is not None
    numbers = numbers.cpu().expand(q.shape[0], groups)
    if groups == 1:
        return numbers.expand(-1, blocks).numpy()
    return numbers.repeat_interleave(blocks // groups, 1).numpy()


def linear(graph: Graph, x: str, layer: nn.Module, name: str, accuracy_level: int) -> str:
    """x ŵᵀ + bias, of codes or of floats."""
    module = cast(Any, layer)
    if isinstance(layer, QLinear):
        graph.used |= {f"{name}.{part}" for part, _ in layer.named_buffers()}
        y = matmul_nbits(graph, x, layer, name, accuracy_level)
    else:
        graph.used.add(f"{name}.weight")
        weight = graph.tensor(f"{name}.weight", _floats(module.weight).T)
        y = graph.op("MatMul", [x, weight], f"{name}.product")
    if module.bias is None:
        return y
    graph.used.add(f"{name}.bias")
    return graph.op("Add", [y, graph.tensor(f"{name}.bias", _floats(module.bias))], f"{name}.sum")


def norm(graph: Graph, x: str, module: nn.Module, name: str) -> str:
    """RMSNorm."""
    graph.used.add(f"{name}.weight")
    weight = graph.tensor(f"{name}.weight", _floats(cast(Any, module).weight))
    epsilon = float(cast(Any, module).variance_epsilon)
    return graph.op(
        "SimplifiedLayerNormalization", [x, weight], f"{name}.normed", axis=-1, epsilon=epsilon, stash_type=1
    )


def _floats(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()


def attention(
    graph: Graph, x: str, layer: nn.Module, name: str, i: int, config: Any, lengths: list[str], level: int
) -> str:
    """softmax(q kᵀ / sqrt(d)) v of one block, its keys and values remembered."""
    module = cast(Any, layer)
    q, k, v = (linear(graph, x, getattr(module, f"{part}_proj"), f"{name}.{part}_proj", level) for part in "qkv")
    past = [f"past_key_values.{i}.key", f"past_key_values.{i}.value"]
    mixed = f"{name}.mixed"
    graph.nodes.append(
        graph._helper.make_node(
            "GroupQueryAttention", [q, k, v, *past, *lengths, "cos", "sin"], [mixed, f"present.{i}.key", f"present.{i}.value"],
            name=mixed, domain=CONTRIBUTED, num_heads=config.num_attention_heads, kv_num_heads=config.num_key_value_heads,
            do_rotary=1, rotary_interleaved=0, scale=float(module.scaling),
        )
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
        model: a causal language model of `FAMILIES`, floats or quantized; every layer passes `why_not`.
        accuracy_level: 0, floats; 4, onnxruntime may round activations to INT8.

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
    embedding = graph.tensor("model.embed_tokens.weight", _floats(body.embed_tokens.weight))
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
