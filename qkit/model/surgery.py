"""Finds the layers of a model that are to be quantized, and swaps them, saying what it did and why.

The rule of the trade: every linear layer of the decoder is quantized; embeddings, norms and output heads (lm_head, score,
classifier) stay. `include` and `exclude` are shell-style globs on full names ("model.layers.0.*", "*.down_proj",
"lm_head"): `include` replaces the rule, `exclude` takes away from what is left. A glob that matches nothing is an error,
because it is a spelling mistake.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from qkit.model.copies import copy_module
from qkit.model.facts import check_data, output_embedding
from qkit.model.linear import is_linear, weight_of, why_not
from qkit.model.roles import HEAD, output_heads, reserved
from qkit.nn.layers import is_quantized

HOOKS = (  # of a module, and what belongs to them
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_is_full_backward_hook",
)

Globs = str | list[str] | tuple[str, ...] | None

AFTER_SWAP: dict[
    str, Callable[[nn.Module], object]
] = {}  # what rooms above do with a model once layers of it are swapped


@dataclass(frozen=True, eq=False)
class Target:
    """A layer to quantize: its name, the module, and its weight as [out, in] (a view)."""

    name: str
    module: nn.Module
    weight: Tensor

    @property
    def kind(self) -> str:
        """ "Linear", "Conv1D" or a subclass."""
        return type(self.module).__name__


def as_list(globs: Globs) -> list[str]:
    """One glob, several, or None, as a list.

    Raises:
        TypeError: what is no word.
    """
    some = [globs] if isinstance(globs, str) else globs or ()
    if not isinstance(some, list | tuple | set) or not all(isinstance(glob, str) for glob in some):
        raise TypeError(f"{globs!r} is neither a glob nor a list of globs on layer names; give e.g. '*.down_proj'")
    return list(some)


def find_targets(
    model: nn.Module, include: Globs = None, exclude: Globs = None
) -> tuple[list[Target], list[tuple[str, str]]]:
    """What to quantize, and what not: (targets in model order, [(name, why it stays)]).

    Raises:
        ValueError: a glob matches no layer, nothing is left to quantize, or a layer to quantize has no data.
    """
    targets, skipped = select_layers(model, include, exclude)
    for target in targets:
        check_data(target.name, target.weight)
    return targets, skipped


def select_layers(
    model: nn.Module, include: Globs = None, exclude: Globs = None
) -> tuple[list[Target], list[tuple[str, str]]]:
    """`find_targets` for a model whose parameters may have a shape and no data yet."""
    layers = {name: m for name, m in model.named_modules(remove_duplicate=False) if name and is_linear(m)}
    if include is not None and not as_list(include):
        raise ValueError(f"include={include!r} names no layer; leave it out for the rule, or give e.g. '*.down_proj'")
    include, exclude = as_list(include), as_list(exclude)
    for role, globs in (("include", include), ("exclude", exclude)):
        for glob in globs:
            if not any(fnmatchcase(name, glob) for name in layers):
                some = ", ".join(list(layers)[:3]) or "none"
                raise ValueError(
                    f"{role}={glob!r} matches none of the {len(layers)} Linear and Conv1D layers ({some}, ...); "
                    f"globs match full names: try '*{glob.strip('*')}*'"
                )

    heads, forbidden = output_heads(model), reserved(model)
    targets, skipped = [], []
    for name, module in layers.items():
        if any(fnmatchcase(name, glob) for glob in exclude):
            skipped.append((name, "excluded"))
        elif include and not any(fnmatchcase(name, glob) for glob in include):
            skipped.append((name, "not included"))
        elif (why := forbidden.get(name) or why_not(module)) is not None:
            skipped.append((name, why))
        elif not include and module in heads:
            skipped.append((name, HEAD))
        else:
            targets.append(Target(name, module, weight_of(module)))
    if not targets:
        if weight_of(model) is not None:
            raise ValueError("the model is itself one Linear layer; quantize_tensor(model.weight, ...) does that")
        raise ValueError(
            f"{type(model).__name__} has no Linear or Conv1D layer left to quantize ({_why_none(model, skipped)}); "
            f"give a model in float, or other include= and exclude="
        )
    return targets, skipped + _other_parameters(model, set(layers.values()))


def _why_none(model: nn.Module, skipped: list[tuple[str, str]]) -> str:
    done = sum(is_quantized(m) for m in model.modules())
    if done:
        return f"its {done} linear layers are quantized already"
    if not skipped:
        return "it has 0, none at all"
    reasons = Counter(why for _, why in skipped if why not in ("excluded", "not included"))
    worst = f"; of {reasons.most_common(1)[0][1]} of them: {reasons.most_common(1)[0][0]}" if reasons else ""
    return f"it has {len(skipped)}, all left out{worst}"


def _other_parameters(model: nn.Module, layers: set[nn.Module]) -> list[tuple[str, str]]:
    """Modules that hold parameters of their own and are no layer we know: named, so that nothing is left out silently."""
    rows = []
    for name, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False)]
        if not own or module in layers or is_quantized(module):
            continue
        if isinstance(module, nn.Embedding):
            why = "embedding (rule of the trade)"
        elif all(p.dim() < 2 for p in own):
            why = "norm or vector"
        else:
            why = f"{type(module).__name__}: its parameters are not those of a Linear or Conv1D"
        rows.append((name, why))
    return rows


def weight_share(model: nn.Module, targets: Iterable[Target]) -> float:
    """Of all numbers that the model computes with, the share that is quantized once `targets` are; to be asked before.

    Every floating parameter counts, one that is tied once; and the weights of layers that are quantized already.
    """
    taken, left = _taken_and_left(model, targets)
    return taken / max(taken + sum(left.values()), 1)


def largest_left(model: nn.Module, targets: Iterable[Target]) -> tuple[str, float] | None:
    """What holds the most of all that stays as it is: the class of its modules, and their share of the model's numbers.

    None: nothing stays.
    """
    taken, left = _taken_and_left(model, targets)
    if not left:
        return None
    name, size = left.most_common(1)[0]
    return name, size / (taken + left.total())


def _taken_and_left(model: nn.Module, targets: Iterable[Target]) -> tuple[int, Counter[str]]:
    """How many weights are or will be quantized, and how many numbers stay, by the class of the module that holds them."""
    weights = {id(target.module): target.weight.numel() for target in targets}
    taken = sum(weights.values()) + sum(m.in_features * m.out_features for m in model.modules() if is_quantized(m))
    left: Counter[str] = Counter()
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            replaced = name == "weight" and id(module) in weights
            if parameter.is_floating_point() and not replaced and id(parameter) not in seen:
                seen.add(id(parameter))
                left[type(module).__name__] += parameter.numel()
    return taken, left


def set_parameter(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Put `parameter` in the place of the one with this full name ("model.norm.weight"), under this name only."""
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, parameter)


def swap(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Put `layers` in the place of the modules of the same names. A module with two names is swapped under both.

    Hooks go with the place. A weight that was tied (an output head's to the embedding's) is untied, so that transformers,
    which ties again at every turn, does not hang a float weight on the new layer. What would write into the weight later
    (an adapter that is merged, a vocabulary that grows) is refused with a sentence.
    """
    heads = {m: head for m in model.modules() if (head := output_embedding(m)) is not None}
    tied = _tied_parameters(model)  # before: afterwards not every name can be found
    for name, layer in layers.items():
        vars(layer).update({hooks: getattr(model.get_submodule(name), hooks) for hooks in HOOKS})
        model.set_submodule(name, layer)
        owner = model.get_submodule(name.rpartition(".")[0])
        if name.endswith("base_layer") and hasattr(owner, "merge"):  # one of PEFT's, with an adapter beside the layer
            owner.merge = owner.unmerge = partial(_refuse_to_merge, name)
    for prefix, (module, pairs) in tied.items():
        _untie(module, pairs, {name.removeprefix(prefix): m for name, m in layers.items() if name.startswith(prefix)})
    for owner, head in heads.items():
        if output_embedding(owner) is not head and is_quantized(output_embedding(owner)):
            owner.resize_token_embeddings = partial(_refuse_to_resize, type(owner).__name__)
    for follow in AFTER_SWAP.values():
        follow(model)


def _tied_parameters(model: nn.Module) -> dict[str, tuple[nn.Module, dict[str, str]]]:
    """The models of transformers in `model`, by prefix, and which parameter of each takes the place of which, by name."""
    return {
        f"{name}." if name else "": (module, module.get_expanded_tied_weights_keys())
        for name, module in model.named_modules()
        if hasattr(module, "get_expanded_tied_weights_keys")
    }


def _untie(model: nn.Module, tied: dict[str, str], layers: Mapping[str, nn.Module]) -> None:
    """Let a model of transformers no more tie what the new `layers` of it have not as a parameter."""
    kept = {a: b for a, b in tied.items() if not _lacks(layers, a) and not _lacks(layers, b)}
    if len(kept) < len(tied):
        model._tied_weights_keys = (
            kept  # of the instance. The config stays as it is: some models compute by what it says
        )
    known = getattr(model, "all_tied_weights_keys", {})
    for name in [a for a, b in known.items() if _lacks(layers, a) or _lacks(layers, b)]:
        del known[name]


def _lacks(layers: Mapping[str, nn.Module], name: str) -> bool:
    """Whether a parameter's full name speaks of one of `layers`, and that has no such parameter."""
    owner, _, leaf = name.rpartition(".")
    return owner in layers and leaf not in layers[owner]._parameters


def _refuse_to_merge(name: str, *_: Any, **__: Any) -> NoReturn:
    raise ValueError(
        f"{name} is quantized and an adapter cannot be added to its codes; merge the adapters of the model in float "
        f"(merge_and_unload), then quantize it"
    )


def _refuse_to_resize(name: str, *_: Any, **__: Any) -> NoReturn:
    raise ValueError(
        f"the output head of this {name} is quantized and cannot get other rows; resize the vocabulary of the model in float, "
        f"then quantize it"
    )


def clone(model: nn.Module) -> nn.Module:
    """A copy whose modules are new and whose tensors are shared: quantizing it leaves `model` alone and costs no memory."""
    own = (value for m in model.modules() for value in vars(m).values() if isinstance(value, Tensor))
    with torch.no_grad():
        return copy_module(model, {id(t): t for t in (*model.parameters(), *model.buffers(), *own)})
