"""A model into a GGUF file: codes as they are, nothing quantized twice; the rest in F16, and vectors in F32.

The package `gguf` writes the container.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from qkit.checkpoints.files import draft_folder, in_words, make_folder, publish
from qkit.checkpoints.gguf.architecture import (
    FREQUENCIES,
    check_writable,
    gguf_name,
    llama3_divisors,
    rotary_heads,
    to_pairs,
)
from qkit.checkpoints.gguf.blocks import TO, block_type
from qkit.checkpoints.gguf.tokenizer import entries_of
from qkit.model.facts import ties_its_head
from qkit.nn.layers import quantized_layers
from qkit.numerics.mapping import check_finite

FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7}  # what most of a file is, in `general.file_type`
QUANTIZATION_VERSION = 2  # of ggml's blocks


@dataclass(frozen=True)
class Written:
    """One tensor of a file: type by llama.cpp's name, and its bytes or numbers, rows in the order of the file."""

    type: str
    data: Tensor


def save_gguf(model: nn.Module, path: Path, tokenizer: Any = None) -> None:
    """Write a model as one file, whole or not at all. Its quantized layers are such that blocks hold them (`why_no_block`).

    Parameters in float become F16, vectors F32. Nothing is written before everything is known.

    Args:
        model: a Llama, Mistral, Qwen2 or Qwen3 of transformers.
        path: the file; its folder is made if need be.
        tokenizer: of transformers; without one the library llama.cpp reads token ids, and its server does not start.

    Raises:
        ValueError: another model or tokenizer.
        ImportError: the package `gguf` is not installed.
        OSError: the file cannot be written; what was there before is still there.
    """
    gguf = package()
    architecture = check_writable(model)
    tensors = _tensors(model)
    entries = {**_entries(model, architecture, tensors), **_words(tokenizer, model)}
    folder = make_folder(path.parent)
    with in_words(path, "what was there before is whole"), draft_folder(folder) as draft:
        writer = gguf.GGUFWriter(draft / path.name, architecture)
        try:
            for key, value in entries.items():
                _add_entry(writer, key, value)
            for name, written in tensors.items():
                data = written.data.contiguous().numpy()
                kind = gguf.GGMLQuantizationType[written.type]
                writer.add_tensor(name, data, raw_dtype=None if written.type in ("F32", "F16") else kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
        publish(draft / path.name, path)


def package() -> Any:
    """The package `gguf`.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise ImportError(
            "GGUF files are written with the package gguf, which is not installed; pip install 'qkit[gguf]'"
        ) from error
    return gguf


def _tensors(model: nn.Module) -> dict[str, Written]:
    """Every tensor of the file by its name there."""
    config: Any = model.config
    layers = quantized_layers(model)
    own = {f"{name}.{part}" for name, layer in layers.items() for part in (*layer.parts, "weight", "input_scale")}
    tensors: dict[str, Written] = {}
    for name, layer in layers.items():
        q: Any = layer.qtensor
        raw = TO[block_type(q)](q.to("cpu"))
        tensors[_name(f"{name}.weight", model)] = Written(block_type(q), _in_order(raw, f"{name}.weight", config))
    tied = ties_its_head(model)
    for name, parameter in model.state_dict().items():
        if name not in own and not (name == "lm_head.weight" and tied):
            written = _float(parameter, name)
            tensors[_name(name, model)] = Written(written.type, _in_order(written.data, name, config))
    if (rope := config.rope_parameters).get("rope_type") == "llama3":
        divisors = llama3_divisors(rope["rope_theta"], _head_dim(config), rope["factor"])
        tensors[FREQUENCIES] = Written("F32", divisors)
    return tensors


def _name(name: str, model: nn.Module) -> str:
    theirs = gguf_name(name)
    if theirs is None:
        raise ValueError(
            f"{type(model).__name__} has {name}, which no {type(model).__name__} of llama.cpp has; "
            f"leave format out for qkit's own"
        )
    return theirs


def _in_order(data: Tensor, name: str, config: Any) -> Tensor:
    heads = rotary_heads(name, config)
    return data if heads is None else data[to_pairs(len(data), heads)]


def _float(parameter: Tensor, name: str) -> Written:
    """A parameter as F32 (a vector, or what F16 cannot reach) or F16."""
    if parameter.is_meta:
        raise ValueError(f"{name} has no numbers, it is on the device meta; load all of the model into memory first")
    check_finite(parameter, name)
    full = parameter.detach().float().cpu()
    half = full.half()
    if full.dim() < 2 or not half.isfinite().all():
        return Written("F32", full)
    return Written("F16", half)


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _entries(model: nn.Module, architecture: str, tensors: dict[str, Written]) -> dict[str, Any]:
    """The metadata of the model, by name; the inverse of `architecture.config_from`."""
    config: Any = model.config
    rope = config.rope_parameters
    types = [written.type for name, written in tensors.items() if written.data.dim() == 2 and name.startswith("blk.")]
    own = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": _head_dim(config),
        "attention.value_length": _head_dim(config),
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": _head_dim(config),
        "rope.freq_base": float(rope["rope_theta"]),
        "vocab_size": config.vocab_size,
        **(
            {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
            if rope.get("rope_type") == "linear"
            else {}
        ),
    }
    return {
        "general.type": "model",
        "general.name": Path(config._name_or_path or "").name or type(model).__name__,
        "general.file_type": FILE_TYPES[max(set(types), key=types.count)] if types else 1,
        "general.quantization_version": QUANTIZATION_VERSION,
        **{f"{architecture}.{key}": value for key, value in own.items()},
    }


def _words(tokenizer: Any, model: nn.Module) -> dict[str, Any]:
    config: Any = model.config
    if tokenizer is None:
        return {"tokenizer.ggml.model": "none"}
    return entries_of(tokenizer, config.vocab_size)


def _add_entry(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
