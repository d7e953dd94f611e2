"""A folder for onnxruntime and onnxruntime-genai: the graph (`qkit.export.onnx`), what genai asks of a model, the tokenizer.

    model.onnx            the graph, and its numbers where all of it stays below protobuf's 2 GB
    model.onnx.data       the numbers, where not
    genai_config.json     sizes, names of inputs and outputs, tokens that end a text

Written, not read: a graph is no model that could be quantized, tuned or saved again.
"""

import json
from pathlib import Path
from typing import Any, ClassVar, cast

from torch import nn

from qkit.checkpoints.files import draft_folder, in_words, make_folder, publish
from qkit.checkpoints.folder import check_free
from qkit.checkpoints.format import Format
from qkit.checkpoints.manifest import files_in
from qkit.checkpoints.steps import rounded_inputs
from qkit.export.linear import integers, why_not
from qkit.export.onnx import check_model, model_proto
from qkit.nn.qlinear import QLinear
from qkit.nn.steps import steps

GRAPH, DATA, CONFIG = "model.onnx", "model.onnx.data", "genai_config.json"
ONE_FILE = 1 << 30  # bytes of numbers that still go into the graph's own file


class ONNXFormat(Format):
    """ONNX graphs with MatMulNBits, and QDQ."""

    name: ClassVar[str] = "onnx"
    holds: ClassVar[str] = "steps of 2, 4 or 8 bits in groups that 16 divides, or one a row"
    floats: ClassVar[bool] = True
    reads: ClassVar[bool] = False

    def recognizes(self, path: Path) -> bool:
        """A graph, or a folder of what `write` writes."""
        return path.suffix == ".onnx" or (path.is_dir() and (path / GRAPH).is_file() and (path / CONFIG).is_file())

    def read(self, path: Path) -> tuple[nn.Module, Any]:
        """Never."""
        raise ValueError(
            f"{path} is an ONNX graph, which qkit writes and does not read; load the folder it was made from"
        )

    def why_not(self, layer: QLinear) -> str | None:
        """By kind, width and group size."""
        return why_not(layer)

    def check(self, model: nn.Module, layers: dict[str, QLinear]) -> None:
        """The architecture, and that onnx is there."""
        check_model(model)
        try:
            import onnx  # noqa: F401
        except ImportError as error:
            raise ImportError(
                f"ONNX graphs are made with onnx, which cannot be imported ({error}); pip install onnx"
            ) from error

    def lost(self, layers: dict[str, QLinear]) -> tuple[str, ...]:
        """What is multiplied by what, at which accuracy_level."""
        others = {name: layer for name, layer in layers.items() if not integers(layer)}
        notes = rounded_inputs(others)
        if others:
            notes += (
                f"{len(others)} layers are MatMulNBits with accuracy_level=0, products of floats; with accuracy_level=4 (of "
                f"qkit.export.onnx.model_proto) onnxruntime rounds their inputs to INT8: faster, logits some percent off",
            )
        if two := sum(steps(layer).bits == 2 for layer in others.values()):
            notes += (
                f"{two} layers have 2 bits, which onnxruntime multiplies from 1.24 on; an older one opens no such graph",
            )
        if whole := len(layers) - len(others):
            notes += (
                f"{whole} layers multiply INT8 by INT8 there as here (QDQ); where a float32 sum before them ends in another "
                f"bit, an input may fall on the next step: logits differ, by less than rounding inputs costs",
            )
        return notes

    def write(self, model: nn.Module, path: Path, tokenizer: Any) -> Path:
        """The folder, of which the graph comes last."""
        import onnx

        check_free(path)
        proto = model_proto(model)
        large = sum(len(t.raw_data) for t in proto.graph.initializer) > ONE_FILE
        folder = make_folder(path)
        kept = f"it holds no {GRAPH} now, or the older one"
        with in_words(folder, kept), draft_folder(folder) as draft:
            onnx.save(proto, draft / GRAPH, save_as_external_data=large, location=DATA)
            (draft / CONFIG).write_text(json.dumps(genai_config(model), indent=2) + "\n", encoding="utf-8")
            if tokenizer is not None:
                tokenizer.save_pretrained(draft)
            (folder / GRAPH).unlink(missing_ok=True)
            for name in sorted(files_in(draft), key=lambda name: name == GRAPH):
                (folder / name).parent.mkdir(exist_ok=True)
                publish(draft / name, folder / name)
        return folder


def genai_config(model: nn.Module) -> dict[str, Any]:
    """What onnxruntime-genai wants to know of a model, and how it is to write: greedily."""
    network = cast(Any, model)
    config, generation = network.config, getattr(network, "generation_config", None)
    ends = getattr(generation, "eos_token_id", None) or config.eos_token_id
    first = ends[0] if isinstance(ends, list) else ends
    pad = config.pad_token_id if config.pad_token_id is not None else first
    options: dict[str, Any] = {"log_id": "onnxruntime-genai", "provider_options": []}
    return {
        "model": {
            "bos_token_id": config.bos_token_id,
            "context_length": config.max_position_embeddings,
            "decoder": {
                "session_options": options,
                "filename": GRAPH,
                "head_size": network.model.layers[0].self_attn.head_dim,
                "hidden_size": config.hidden_size,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
                "num_attention_heads": config.num_attention_heads,
                "num_hidden_layers": config.num_hidden_layers,
                "num_key_value_heads": config.num_key_value_heads,
            },
            "eos_token_id": ends,
            "pad_token_id": pad,
            "type": config.model_type,
            "vocab_size": config.vocab_size,
        },
        "search": {
            "do_sample": False,
            "max_length": config.max_position_embeddings,
            "min_length": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": True,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 1,
            "top_p": 1.0,
        },
    }
