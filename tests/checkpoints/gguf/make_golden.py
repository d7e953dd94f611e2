"""Makes tiny.gguf and tiny.json beside this file: a Llama in every block type that the package gguf can write, by that package.

    python tests/checkpoints/gguf/make_golden.py

Nothing of qkit is used: names, the order of q and k, and the metadata are written here as llama.cpp's own converter writes
them. The expected numbers are those of transformers, given the weights as the package dequantizes them.
"""

import json
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType as T
from gguf import quants

HERE = Path(__file__).parent
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 269,
}
# In the first block every type at least once; q and k in codes that stay codes, and in such that do not
TYPES = {
    "q_proj": (T.Q4_0, T.Q5_0),
    "k_proj": (T.Q4_1, T.Q8_0),
    "v_proj": (T.Q8_0, T.F16),
    "o_proj": (T.Q5_0, T.Q4_1),
    "gate_proj": (T.Q5_1, T.Q4_0),
    "up_proj": (T.BF16, T.Q5_1),
    "down_proj": (T.MXFP4, T.F32),
}
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
WORDS = ["▁", "a", "b", "▁a", "ab", "▁ab", "abab", "▁abab", "ba", "▁b"]


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of the rows of q and k."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def main() -> None:
    torch.manual_seed(11)
    config = transformers.LlamaConfig(
        **SIZES, num_key_value_heads=2, head_dim=16, max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
        rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 50000.0}, tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    writer = gguf.GGUFWriter(HERE / "tiny.gguf", "llama")
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(50000.0)
    writer.add_file_type(2)
    writer.add_tokenizer_model("llama")
    tokens = ["<unk>", "<s>", "</s>", *[f"<0x{i:02X}>" for i in range(256)], *WORDS]
    kinds = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2, *[gguf.TokenType.BYTE] * 256]
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 259 + [-float(i) for i in range(len(WORDS))])
    writer.add_token_types([*kinds, *[gguf.TokenType.NORMAL] * len(WORDS)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)

    def place(name: str, weight: np.ndarray, kind: T, heads: int | None = None) -> torch.Tensor:
        """Write a tensor; what is read back, in the order of transformers."""
        ordered = weight if heads is None else permuted(weight, heads)
        raw = quants.quantize(ordered, kind)
        writer.add_tensor(name, raw, raw_dtype=kind)
        back = quants.dequantize(raw, kind).astype(np.float32)
        if heads is not None:
            rows, columns = weight.shape
            back = back.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
        return torch.from_numpy(back.copy())

    state = model.state_dict()
    for name, tensor in list(state.items()):
        weight = tensor.numpy().astype(np.float32) + (0.05 * np.random.default_rng(5).normal(size=tensor.shape))
        weight = weight.astype(np.float32)
        if name == "model.embed_tokens.weight":
            state[name] = place("token_embd.weight", weight, T.F16)
        elif name == "lm_head.weight":
            state[name] = place("output.weight", weight, T.Q8_0)
        elif name == "model.norm.weight":
            state[name] = place("output_norm.weight", weight, T.F32)
        else:
            _, _, block, part = name.removesuffix(".weight").split(".", 3)
            leaf = part.split(".")[-1]
            kind = TYPES[leaf][int(block)] if leaf in TYPES else T.F32
            heads = {"q_proj": 4, "k_proj": 2}.get(leaf)
            state[name] = place(f"blk.{block}.{NAMES[part]}.weight", weight, kind, heads)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model.load_state_dict(state)
    ids = torch.arange(1, 15)[None] * 19
    with torch.no_grad():
        logits = model(ids).logits[0, -1, :24]
    expected = {
        "versions": {"gguf": "0.19.0", "torch": torch.__version__, "transformers": transformers.__version__},
        "ids": ids.tolist(),
        "logits": [float(x) for x in logits],
        "sums": {name: float(tensor.double().sum()) for name, tensor in state.items()},
    }
    (HERE / "tiny.json").write_text(json.dumps(expected, indent=1))


if __name__ == "__main__":
    main()
