"""Finds the layers of a model that are to be quantized, and swaps them, saying what it did and why.

The rule of the trade: every linear layer of the decoder is quantized; embeddings, norms and the output head (lm_head)
stay. `include` and `exclude` are shell-style globs on full names ("model.layers.0.*", "*.down_proj", "lm_head"):
`include` replaces the rule, `exclude` takes away from what is left. A glob that matches nothing is an error, because it
is a spelling mistake.
"""

import copy
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from qkit.nn.qlinear import QLinear

Globs = str | list[str] | tuple[str, ...] | None


@dataclass(frozen=True, eq=False)
class Target:
    """A layer to quantize: its name, the module, and its weight as [out, in] (a view)."""

    name: str
    module: nn.Module
    weight: Tensor

    @property
    def kind(self) -> str:
        """ "Linear" or "Conv1D"."""
        return type(self.module).__name__


def weight_of(module: nn.Module) -> Tensor | None:
    """The weight of a layer that QLinear can stand for, as [out, in]; None for any other module.

    Subclasses of Linear do not count: what they do in their forward is their own business.
    """
    from transformers.pytorch_utils import Conv1D  # GPT-2's Linear, which stores [in, out]

    if type(module) is nn.Linear:
        return module.weight
    if type(module) is Conv1D:
        return module.weight.T
    return None


def as_list(globs: Globs) -> list[str]:
    """One glob, several, or None, as a list."""
    return [globs] if isinstance(globs, str) else list(globs or ())


def find_targets(
    model: nn.Module, include: Globs = None, exclude: Globs = None
) -> tuple[list[Target], list[tuple[str, str]]]:
    """What to quantize, and what not: (targets in model order, [(name, why it stays)]).

    Raises:
        ValueError: a glob matches no layer, or nothing is left to quantize.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    layers = {name: m for name, m in model.named_modules(remove_duplicate=False) if name and weight_of(m) is not None}
    include, exclude = as_list(include), as_list(exclude)
    for role, globs in (("include", include), ("exclude", exclude)):
        for glob in globs:
            if not any(fnmatchcase(name, glob) for name in layers):
                some = ", ".join(list(layers)[:3]) or "none"
                raise ValueError(
                    f"{role}={glob!r} matches none of the {len(layers)} Linear and Conv1D layers ({some}, ...); "
                    f"globs match full names: try '*{glob.strip('*')}*'"
                )

    targets, skipped = [], []
    for name, module in layers.items():
        if any(fnmatchcase(name, glob) for glob in exclude):
            skipped.append((name, "excluded"))
        elif include and not any(fnmatchcase(name, glob) for glob in include):
            skipped.append((name, "not included"))
        elif not include and module is head:
            skipped.append((name, "output head (rule of the trade)"))
        else:
            targets.append(Target(name, module, weight_of(module)))
    if not targets:
        if weight_of(model) is not None:
            raise ValueError("the model is itself one Linear layer; quantize_tensor(model.weight, ...) does that")
        done = sum(isinstance(m, QLinear) for m in model.modules())
        why = (
            f"its {done} linear layers are quantized already"
            if done
            else f"it has {len(layers)}, {'all left out' if layers else 'none at all'}"
        )
        raise ValueError(
            f"{type(model).__name__} has no Linear or Conv1D layer left to quantize ({why}); "
            f"give a model in float, or other include= and exclude="
        )
    return targets, skipped + _other_parameters(model, set(layers.values()))


def _other_parameters(model: nn.Module, layers: set[nn.Module]) -> list[tuple[str, str]]:
    """Modules that hold parameters of their own and are no layer we know: named, so that nothing is left out silently."""
    rows = []
    for name, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False)]
        if not own or module in layers or isinstance(module, QLinear):
            continue
        if isinstance(module, nn.Embedding):
            why = "embedding (rule of the trade)"
        elif all(p.dim() < 2 for p in own):
            why = "norm or vector"
        else:
            why = f"{type(module).__name__}: its parameters are not those of a Linear or Conv1D"
        rows.append((name, why))
    return rows


def set_parameter(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Put `parameter` in the place of the one with this full name ("model.norm.weight"), under this name only."""
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, parameter)


def swap(model: nn.Module, layers: dict[str, nn.Module]) -> None:
    """Put `layers` in the place of the modules of the same names. A module with two names is swapped under both."""
    for name, layer in layers.items():
        model.set_submodule(name, layer)


def clone(model: nn.Module) -> nn.Module:
    """A copy whose modules are new and whose tensors are shared: quantizing it leaves `model` alone and costs no memory."""
    memo = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    with torch.no_grad():
        return copy.deepcopy(model, memo)
