"""A model out of a GGUF file: codes stay codes where they are ours, everything else becomes float32."""

from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from qkit.checkpoints.gguf.architecture import FREQUENCIES, config_from, gguf_name, rotary_heads, to_halves
from qkit.checkpoints.gguf.container import Container, open_container
from qkit.checkpoints.gguf.tokenizer import tokenizer_from
from qkit.checkpoints.skeleton import parameters_without_memory
from qkit.model.surgery import swap
from qkit.nn.qlinear import QLinear
from qkit.numerics.qtensor import QTensor


def load_gguf(path: Path, floats: bool = False) -> tuple[nn.Module, Any]:
    """The model and the tokenizer (or None) of a GGUF file, on the CPU, in eval mode.

    Linear layers of blocks Q4_0, Q4_1 and Q8_0 become `QLinear` with the very codes of the file; whatever else is quantized is
    dequantized. A tied output head is the embedding, which is in floats.

    Args:
        floats: dequantize those layers as well, into `nn.Linear`: a model that can be quantized, its numbers those of the file.

    Raises:
        ValueError: no GGUF file, one that was cut or altered, of another architecture or with another tokenizer, or with
            tensors that are missing, left over or of another shape than its entries say.
        ImportError: it has block types that the package `gguf` dequantizes, and that is not installed.
    """
    from transformers import AutoModelForCausalLM

    container = open_container(path)
    config = config_from(container)
    tokenizer = tokenizer_from(container, config.vocab_size)
    with parameters_without_memory():
        model = cast(Any, AutoModelForCausalLM.from_config(config))
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    named = {name: gguf_name(name) or name for name in model.state_dict() if name not in tied}
    _check_tensors(container, named, model)
    linears = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    state: dict[str, Tensor] = {}
    codes: dict[str, QTensor] = {}
    for name, theirs in named.items():
        order = _order(name, config, container.tensors[theirs].shape[0])
        q = container.stored(theirs) if name in linears and not floats else None
        if q is not None:
            codes[name.removesuffix(".weight")] = q if order is None else rows_of(q, order)
        else:
            tensor = container.floats(theirs)
            state[name] = tensor if order is None else tensor[order]
    layers = {}
    for name, q in codes.items():
        bias = state.get(f"{name}.bias")
        layers[name] = QLinear(q, None if bias is None else nn.Parameter(bias))
        state.update({f"{name}.{part}": tensor for part, tensor in q.tensors().items()})
    swap(model, layers)
    if tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True, assign=True)
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model.eval(), tokenizer


def rows_of(q: QTensor, order: Tensor) -> QTensor:
    """The rows of a weight in another order. It has a scale a row at least, and offsets or nothing beside it."""
    offsets = None if q.offsets is None else q.offsets[order]
    return QTensor(q.packed[order], q.scales[order], q.bits, q.shape, offsets=offsets)


def _order(name: str, config: Any, rows: int) -> Tensor | None:
    heads = rotary_heads(name, config)
    return None if heads is None else to_halves(rows, heads)


def _check_tensors(container: Container, named: dict[str, str], model: nn.Module) -> None:
    """Refuse tensors that are missing, left over, or of another shape than the model's."""
    path, tensors, state = container.path, container.tensors, model.state_dict()
    missing = sorted(theirs for theirs in named.values() if theirs not in tensors)
    left = sorted(set(tensors) - set(named.values()) - {FREQUENCIES})
    shapes = [
        f"{theirs} ({tensors[theirs].shape} where the entries say {tuple(state[name].shape)})"
        for name, theirs in named.items()
        if theirs in tensors and tensors[theirs].shape != tuple(state[name].shape)
    ]
    lists = {"missing are": missing, "left over are": left, "of another shape are": shapes}
    if complaints := ", ".join(f"{of} {_some(names)}" for of, names in lists.items() if names):
        raise ValueError(f"{path} is not a whole {type(model).__name__}: {complaints}; copy or convert the model again")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + f" and {len(names) - 3} more" * (len(names) > 3)
