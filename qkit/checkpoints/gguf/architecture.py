"""What a model is called on either side: the config of transformers, the metadata of llama.cpp; names, and the order of rows.

Three architectures: Llama (Mistral without a window, SmolLM and TinyLlama are Llamas too), Qwen2 and Qwen3.

The order of rows: a rotary embedding turns pairs of numbers of a head. transformers pairs number j with number j + d/2, as
the first half and the second half of the head; llama.cpp's "llama" pairs 2j with 2j + 1, as Meta's own code did. So the rows
of the q and k projections stand in another order in such a file. The product of q and k does not notice. The Qwens are
paired in llama.cpp as they are in transformers, and nothing is moved.
"""

import math
import re
from typing import Any, cast

import torch
from torch import Tensor

from qkit.checkpoints.gguf.container import Container

ARCHITECTURES = ("llama", "qwen2", "qwen3")  # the same words in llama.cpp and as `model_type` of transformers
ARCHITECTURE_OF = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
NORMS = {"q_norm": "attn_q_norm", "k_norm": "attn_k_norm"}
PARTS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    **{f"self_attn.{ours}": theirs for ours, theirs in NORMS.items()},
    **{f"self_attn.{part}_proj": f"attn_{part}" for part in "qkv"},
    "self_attn.o_proj": "attn_output",
    **{f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")},
}
ENDS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
FREQUENCIES = "rope_freqs.weight"  # of Llama 3.1 and later: what the rotary frequencies are divided by
LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # of all that are known
BLOCK = re.compile(r"model\.layers\.(\d+)\.(.+)")


def gguf_name(name: str) -> str | None:
    """What llama.cpp calls a parameter of transformers; None where it has none: "model.layers.0.mlp.up_proj.weight"."""
    module, _, leaf = name.rpartition(".")
    if module in ENDS:
        return f"{ENDS[module]}.{leaf}"
    found = BLOCK.fullmatch(module)
    return f"blk.{found[1]}.{PARTS[found[2]]}.{leaf}" if found and found[2] in PARTS else None


def rotary_heads(name: str, config: Any) -> int | None:
    """How many heads the rows of a parameter are cut into and turned in pairs, in a file of "llama"; None: they stay."""
    if config.model_type not in ("llama", "mistral"):
        return None
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    return heads.get(name.split(".")[-2])


def to_pairs(rows: int, heads: int) -> Tensor:
    """Order that brings rows of transformers (two halves of a head) into llama.cpp's (pairs): index with it."""
    return torch.arange(rows).reshape(heads, 2, -1).transpose(1, 2).flatten()


def to_halves(rows: int, heads: int) -> Tensor:
    """The inverse of `to_pairs`."""
    return torch.arange(rows).reshape(heads, -1, 2).transpose(1, 2).flatten()


class Facts:
    """The metadata of a file, asked for one by one; what is missing or absurd is named."""

    def __init__(self, container: Container) -> None:
        self.path, self.metadata, self.tensors = container.path, container.metadata, container.tensors

    def get(self, key: str, kind: type | tuple[type, ...], default: Any = ...) -> Any:
        """A value of the kind; `default`, if given, where there is none."""
        value = self.metadata.get(key, default)
        if value is ...:
            raise ValueError(f"{self.path} lacks {key}; convert the model again with llama.cpp")
        if value is not default and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
            raise ValueError(
                f"{self.path} has {key}={value!r:.60}, which is no {_words(kind)}; it was altered: copy it again"
            )
        return value

    def count(self, key: str, default: Any = ...) -> int:
        """A whole number from 1."""
        value = self.get(key, int, default)
        if value is not default and value < 1:
            raise ValueError(f"{self.path} has {key}={value}, at least 1 is needed; it was altered: copy it again")
        return value

    def positive(self, key: str, default: Any = ...) -> float:
        """A finite number above 0."""
        value = self.get(key, (int, float), default)
        if value is not default and not 0 < value < math.inf:
            raise ValueError(f"{self.path} has {key}={value}, no number above 0; it was altered: copy it again")
        return value

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor that every model of these architectures has."""
        if name not in self.tensors:
            raise ValueError(f"{self.path} has no tensor {name}; copy or convert the model again")
        return self.tensors[name].shape


def _words(kind: type | tuple[type, ...]) -> str:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return " or ".join(
        {int: "whole number", float: "number", str: "text", bool: "truth", list: "list"}[k] for k in kinds
    )


def config_from(container: Container) -> Any:
    """The config of transformers that a file describes. Its sizes are those of tensors that are there.

    Raises:
        ValueError: another architecture, entries that are missing, absurd, or at odds with the tensors.
    """
    from transformers import AutoConfig

    facts = Facts(container)
    architecture = facts.get("general.architecture", str)
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"{facts.path} holds a model of architecture {architecture!r}, qkit reads {', '.join(ARCHITECTURES)}; "
            f"load it with llama.cpp, or the model's folder with transformers"
        )

    def own(key: str) -> str:
        return f"{architecture}.{key}"

    for key in ("expert_count", "attention.sliding_window"):
        if facts.get(own(key), int, 0):
            raise ValueError(
                f"{facts.path} has {own(key)}={facts.metadata[own(key)]}, which qkit does not read; use llama.cpp"
            )
    hidden, blocks = facts.count(own("embedding_length")), facts.count(own("block_count"))
    heads = facts.count(own("attention.head_count"))
    head_dim = facts.count(own("attention.key_length"), None) or max(hidden // heads, 1)
    sizes = {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": facts.count(own("attention.head_count_kv"), heads),
        "head_dim": head_dim,
        "intermediate_size": facts.count(own("feed_forward_length")),
        "num_hidden_layers": blocks,
        "vocab_size": facts.shape("token_embd.weight")[0],
    }
    _check_sizes(facts, own, sizes)
    tokens = {
        ours: facts.get(f"tokenizer.ggml.{theirs}_token_id", int, None)
        for ours, theirs in (("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding"))
    }
    for name, token in tokens.items():
        if token is not None and not 0 <= token < sizes["vocab_size"]:
            raise ValueError(
                f"{facts.path} has {name}={token}, the model knows {sizes['vocab_size']} tokens; copy it again"
            )
    biases = {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_up.bias"}
    return AutoConfig.for_model(
        architecture,
        **sizes,
        **tokens,
        **({ours: theirs in facts.tensors for ours, theirs in biases.items()} if architecture == "llama" else {}),
        max_position_embeddings=facts.count(own("context_length")),
        # Written as 0.00001, kept as the nearest float32, 0.00000999999975: seven digits are what was meant
        rms_norm_eps=float(f"{facts.positive(own('attention.layer_norm_rms_epsilon')):.7g}"),
        rope_parameters=_rope(container, facts, own, head_dim),
        tie_word_embeddings="output.weight" not in facts.tensors,
        architectures=[{"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[architecture] + "ForCausalLM"],
    )


def _check_sizes(facts: Facts, own: Any, sizes: dict[str, int]) -> None:
    """Refuse sizes that are not those of the tensors, before anything of such a size is made."""
    heads, kv, width = sizes["num_attention_heads"], sizes["num_key_value_heads"], sizes["head_dim"]
    embedding = facts.shape("token_embd.weight")
    rows = {
        "attention.head_count": ("blk.0.attn_q.weight", heads * width),
        "attention.head_count_kv": ("blk.0.attn_k.weight", kv * width),
        "feed_forward_length": ("blk.0.ffn_up.weight", sizes["intermediate_size"]),
    }
    for key, (name, expected) in rows.items():
        if facts.shape(name)[0] != expected:
            raise ValueError(
                f"{facts.path} gives {name} {facts.shape(name)[0]} rows, and by {own(key)}={facts.metadata.get(own(key))} and "
                f"{width} numbers a head there are {expected}; one of them was altered: copy it again"
            )
    if len(embedding) != 2 or embedding[1] != sizes["hidden_size"]:
        raise ValueError(
            f"{facts.path} gives token_embd.weight the shape {embedding}, and by {own('embedding_length')} its rows have "
            f"{sizes['hidden_size']}; one of them was altered: copy it again"
        )
    if heads % kv or width % 2:
        raise ValueError(
            f"{facts.path} has {heads} heads of {width} numbers that share {kv}; heads are shared by equal numbers of them "
            f"and turned in pairs: it was altered, copy it again"
        )
    there = {name.split(".")[1] for name in facts.tensors if name.startswith("blk.")}
    if there != {str(i) for i in range(min(sizes["num_hidden_layers"], len(there) + 1))}:
        raise ValueError(
            f"{facts.path} says {own('block_count')}={sizes['num_hidden_layers']} and holds tensors of {len(there)} blocks; "
            f"copy or convert the model again"
        )
    told = facts.get(own("vocab_size"), int, None)
    if told is not None and told != sizes["vocab_size"]:
        raise ValueError(
            f"{facts.path} says {own('vocab_size')}={told} and holds {sizes['vocab_size']} rows of token_embd.weight; "
            f"one of them was altered: copy it again"
        )


def _rope(container: Container, facts: Facts, own: Any, head_dim: int) -> dict[str, Any]:
    """`rope_parameters` of transformers: as trained, stretched by one factor, or Llama 3's."""
    if (turned := facts.count(own("rope.dimension_count"), head_dim)) != head_dim:
        raise ValueError(
            f"{facts.path} turns {turned} of the {head_dim} numbers of a head, which a {facts.metadata['general.architecture']} "
            f"of transformers does not; use llama.cpp"
        )
    theta = float(f"{facts.positive(own('rope.freq_base'), 10000.0):.7g}")
    kind = facts.get(own("rope.scaling.type"), str, "none")
    factor = float(facts.positive(own("rope.scaling.factor"), 1.0))
    if kind not in ("none", "linear"):
        raise ValueError(
            f"{facts.path} has {own('rope.scaling.type')}={kind!r}, qkit reads none and linear; use llama.cpp, or the folder "
            f"of the model with transformers"
        )
    if FREQUENCIES in facts.tensors:
        return _llama3(container, theta, head_dim)
    if kind == "linear" and factor != 1:
        return {"rope_type": "linear", "rope_theta": theta, "factor": factor}
    return {"rope_type": "default", "rope_theta": theta}


def llama3_divisors(theta: float, head_dim: int, factor: float) -> Tensor:
    """What Llama 3.1 divides its rotary frequencies by, float32 [head_dim / 2]: 1 for fast ones, `factor` for slow ones."""
    wavelength = 2 * math.pi * theta ** (torch.arange(0, head_dim, 2) / head_dim)
    low, high, context = (
        LLAMA3["low_freq_factor"],
        LLAMA3["high_freq_factor"],
        LLAMA3["original_max_position_embeddings"],
    )
    between = ((context / wavelength - low) / (high - low)).clamp(0, 1)
    return 1 / ((1 - between) / factor + between)


def _llama3(container: Container, theta: float, head_dim: int) -> dict[str, Any]:
    divisors = container.floats(FREQUENCIES)
    factor = float(divisors.max())
    expected = llama3_divisors(theta, head_dim, factor)
    if divisors.shape != expected.shape or not torch.allclose(divisors, expected, rtol=1e-4):
        raise ValueError(
            f"{FREQUENCIES} of {container.path} are not those of Llama 3 with a factor of {factor:g}; "
            f"use llama.cpp, or the folder of the model with transformers"
        )
    return {"rope_type": "llama3", "rope_theta": theta, "factor": factor, **LLAMA3}


def check_writable(model: Any) -> str:
    """The architecture of llama.cpp that computes what a model of transformers does.

    Raises:
        ValueError: none does.
    """
    name, config = type(model).__name__, cast(Any, getattr(model, "config", None))
    if name not in ARCHITECTURE_OF:
        raise ValueError(f"{name} has no counterpart here, qkit writes GGUF of {', '.join(ARCHITECTURE_OF)}")
    rope = config.rope_parameters
    kind = rope.get("rope_type", "default")
    own = {key: rope.get(key) for key in LLAMA3}
    windows = getattr(config, "layer_types", None) or []
    window = getattr(config, "sliding_window", None) if not windows else "sliding_attention" in windows
    for wrong, what, rule in (
        (config.hidden_act != "silu", f"hidden_act={config.hidden_act!r}", "llama.cpp computes silu there"),
        (
            window,
            f"sliding_window={getattr(config, 'sliding_window', None)}",
            "such a model of llama.cpp has no window",
        ),
        (kind not in ("default", "linear", "llama3"), f"rope_type={kind!r}", "qkit writes default, linear and llama3"),
        (kind == "llama3" and own != LLAMA3, f"rope parameters {own}", f"those of Llama 3 are {LLAMA3}"),
    ):
        if wrong:
            raise ValueError(f"{name} has {what}, and in GGUF {rule}")
    return ARCHITECTURE_OF[name]
