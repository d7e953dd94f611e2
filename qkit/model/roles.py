"""What a linear layer is for, told by its place in the tree: output heads, adapters, weights that others read."""

from torch import nn

from qkit.model.facts import output_embedding

# Of models that are not of transformers; those say themselves what stands before their head.
HEADS = ("lm_head", "score", "classifier", "qa_outputs")
HEAD = "output head (rule of the trade)"


def output_heads(model: nn.Module) -> set[nn.Module]:
    """The modules that make an answer of the last hidden state, and all that is in them: logits, classes, spans.

    They are what the model itself calls its output embedding, and what a model class with a head has beside its base model.
    """
    heads: list[nn.Module | None] = [m for name, m in model.named_children() if name in HEADS]
    for module in model.modules():
        heads.append(output_embedding(module))
        prefix = getattr(module, "base_model_prefix", "")  # the attribute where models of transformers keep it
        base = getattr(module, prefix, None) if isinstance(prefix, str) and prefix else None
        if isinstance(base, nn.Module) and base is not module:
            # What is a model of its own (a codec, a second decoder) is no head, and is looked at by itself.
            heads += [m for m in module.children() if m is not base and not hasattr(m, "base_model_prefix")]
    return {part for head in heads if head is not None for part in head.modules()}


def reserved(model: nn.Module) -> dict[str, str]:
    """Layers that are not to be replaced whatever the globs say, by full name, each with the reason.

    A quantized layer can be read by those who do not call it (`QLinear.weight`), but nobody can write into it.
    """
    reasons: dict[str, str] = {}
    held = _held_elsewhere(model)
    for name, module in model.named_modules(remove_duplicate=False):
        if module in held:
            reasons[name] = f"{held[module]} holds it outside its modules as well, and would go on with what it was"
        if isinstance(module, nn.MultiheadAttention):
            why = "its weight is read by MultiheadAttention, which does not call it"
            reasons[_join(name, "out_proj")] = why
        if hasattr(module, "dynamo_ctx"):  # torch.compile's OptimizedModule
            reasons[_join(name, "_orig_mod")] = (
                "torch.compile holds on to it; quantize the layer first, then compile it"
            )
        if hasattr(module, "layers_are_rescaled"):  # RWKV, whose half precision overflows otherwise
            written = (n for n, m in module.named_modules() if n.endswith(("attention.output", "feed_forward.value")))
            reasons |= {
                _join(name, inner): "its weight is written into when the model changes its mode" for inner in written
            }
        children = dict(module.named_children())
        for child, part in children.items():
            if _is_adapter(child, children):
                inside = part.named_modules(remove_duplicate=False)
                reasons |= {
                    _join(name, child, inner): "adapter: it learns, the layer it is added to stays still"
                    for inner, _ in inside
                }
    return reasons


def _held_elsewhere(model: nn.Module) -> dict[nn.Module, str]:
    """Modules that stand in a plain attribute of a module, or in a list, tuple or dictionary there, and the class of that one.

    What is replaced in the tree of modules is not replaced there.
    """
    held: dict[nn.Module, str] = {}
    for module in model.modules():
        for key, value in vars(module).items():
            if key.startswith("_"):  # the tree itself; what is private to torch and to transformers
                continue
            parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
            held |= {part: type(module).__name__ for part in parts if isinstance(part, nn.Module)}
    return held


def _is_adapter(name: str, siblings: dict[str, nn.Module]) -> bool:
    """Whether a submodule is what PEFT puts beside the layer, or in the place of the module, that it adapts."""
    if name.startswith(("lora_", "modules_to_save", "prompt_encoder")):
        return True
    return "base_layer" in siblings and name != "base_layer"


def _join(*names: str) -> str:
    return ".".join(name for name in names if name)
