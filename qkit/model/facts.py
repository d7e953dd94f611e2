"""Facts of a model, each read in one place: its context, its vocabulary, the decoder that reads the text, its device.

A model that reads text alone says all this in its config. One that sees or hears too has a config for each of its parts,
and only that of the text speaks of tokens; and the names differ from one architecture to the next.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from qkit.nn.layers import is_quantized
from qkit.text.tokens import CHUNK_LENGTH

# As configs of transformers and of code on the Hub call the longest input; the first that is there is taken. T5, BLOOM and
# Mamba know none: their positions are relative, or they have none.
CONTEXT_NAMES = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "max_sequence_length",
    "max_seq_length",
    "seq_length",
    "context_length",
    "max_target_positions",
    "max_decoder_position_embeddings",
    "model_max_length",
)


def text_config(model: nn.Module) -> Any:
    """The config of the part that reads or writes text; that of the whole where there are no parts, None where there is none."""
    config = getattr(model, "config", None)
    if not hasattr(config, "get_text_config"):
        return config
    try:
        return config.get_text_config()
    except ValueError:  # a text encoder and a decoder, each with a config: what is predicted is the decoder's
        return config.get_text_config(decoder=True)


def context_length(model: nn.Module) -> int | None:
    """How many positions the model has; None where it does not say, or has no limit."""
    config = text_config(model)
    sizes = (getattr(config, name, None) for name in CONTEXT_NAMES)
    return next((size for size in sizes if isinstance(size, int) and size > 0), None)  # XLNet says -1: no limit


def chunk_length(model: nn.Module) -> int:
    """511, or what fits behind a BOS in the context of a model that has less."""
    return min(CHUNK_LENGTH, (context_length(model) or CHUNK_LENGTH + 1) - 1)


def vocabulary_size(model: nn.Module) -> int | None:
    """How many token ids the model knows: the rows of its embedding, else what its config says; None where neither does."""
    weight = getattr(_input_embedding(model), "weight", None)
    if isinstance(weight, Tensor) and weight.dim() == 2:
        return len(weight)
    return getattr(text_config(model), "vocab_size", None)


def check_ids(model: nn.Module, ids: Tensor) -> None:
    """Refuse token ids that the model has no embedding for, and sequences that are longer than its context."""
    size = vocabulary_size(model)
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or (size is not None and high >= size):
        raise ValueError(
            f"token id {low if low < 0 else high} is not in the vocabulary of {type(model).__name__}, 0 to "
            f"{'...' if size is None else size - 1}; encode the text with the tokenizer of this model, "
            f"and leave out places that are masked with -100"
        )
    context = context_length(model)
    if context is not None and ids.shape[-1] > context:
        raise ValueError(
            f"sequences of {ids.shape[-1]} tokens do not fit the context of {type(model).__name__}, {context}; cut them there"
        )


def check_data(name: str, tensor: Tensor) -> None:
    """Refuse a parameter that has a shape and nothing else, as offloading leaves it."""
    if tensor.is_meta:
        raise ValueError(
            f"{name} has no data (device meta): load the model without device_map or offloading, or onto a device that "
            f"holds all of it"
        )


def why_no_text(model: nn.Module) -> str | None:
    """Why the model cannot go on with a text by itself, as the end of a sentence; None: it may be able to."""
    reads = getattr(model, "main_input_name", "input_ids")
    if reads != "input_ids":
        return f"it reads {reads}"
    if any(
        getattr(config, "is_encoder_decoder", False) for config in (getattr(model, "config", None), text_config(model))
    ):
        return "an encoder has to read before it"
    return None


def _input_embedding(model: nn.Module) -> nn.Module | None:
    if not hasattr(model, "get_input_embeddings"):
        return None
    try:
        return model.get_input_embeddings()
    except NotImplementedError:  # what transformers says of models that read no tokens
        return None


def output_embedding(model: nn.Module) -> nn.Module | None:
    """The layer that puts out the logits of the next token, where the model says which one it is."""
    return model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None


def ties_its_head(model: nn.Module) -> bool:
    """Whether the output head multiplies with the embedding's own numbers. What the config says of it may be otherwise: a head
    was quantized, replaced, or tied by hand.
    """
    head, embedding = output_embedding(model), _input_embedding(model)
    if head is None or embedding is None or is_quantized(head):
        return False
    mine, its = getattr(head, "weight", None), getattr(embedding, "weight", None)
    if not isinstance(mine, Tensor) or not isinstance(its, Tensor):
        return False
    same_memory = (
        not mine.is_meta and mine.numel() > 0 and mine.data_ptr() == its.data_ptr() and mine.shape == its.shape
    )
    return mine is its or same_memory


def text_decoder(model: nn.Module) -> tuple[str, nn.Module]:
    """The part of the model that reads the text, and its full name; ("", model) where it does not say, or reads nothing else."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    return next(((name, m) for name, m in model.named_modules() if m is decoder), ("", model))


def device_of(model: nn.Module) -> torch.device:
    """Where token ids have to be: at the embedding, else at the first tensor that has data; the CPU where there is none."""
    embedding = _input_embedding(model)
    tensors = [*(embedding.parameters() if embedding is not None else ()), *model.parameters(), *model.buffers()]
    return next((t.device for t in tensors if not t.is_meta), torch.device("cpu"))


def read(model: nn.Module, ids: Tensor) -> Any:
    """What the model puts out for token ids [sequences, length], wherever they are. No cache is made.

    `use_cache` is left out where the model has no such option.

    Raises:
        TypeError: a module that takes no token ids by that name.
    """
    options = inspect.signature(model.forward).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in options.values())
    if "input_ids" not in options and not anything:
        raise TypeError(f"{type(model).__name__} takes no input_ids; give a model of transformers that reads text")
    caches = "use_cache" in options or anything
    return model(input_ids=ids.to(device_of(model)), **({"use_cache": False} if caches else {}))
