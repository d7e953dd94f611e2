"""Activations: what goes into the linear layers of a model when it reads some tokens.

The methods need sums over many tokens (`qkit.model.calibration`); a picture needs the single values, of a few. What stands here
runs the model as far as it has to, listens at its layers, and leaves it as it was.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qkit import ops
from qkit.methods.statistics import InputStatistics
from qkit.model.facts import check_ids, read
from qkit.model.hooks import Hook, input_of, listening
from qkit.model.linear import weight_of
from qkit.model.roles import output_heads
from qkit.nn.layers import is_quantized


@dataclass(frozen=True, eq=False)
class InputMaxima:
    """The largest |input| of the linear layers, by token and by channel.

    Attributes:
        layers: for each input the layers that share it, by full name, in the order they run.
        by_token: float32 [inputs, tokens].
        by_channel: for each input float32 [in].
    """

    layers: tuple[tuple[str, ...], ...]
    by_token: Tensor
    by_channel: tuple[Tensor, ...]

    def outlier_columns(self, threshold: float) -> list[int]:
        """How many channels of each input reach `threshold` in any token: what LLM.int8() keeps in floating point."""
        return [int(ops.outlier_columns(channels, threshold).sum()) for channels in self.by_channel]


@torch.no_grad()
def layer_inputs(model: nn.Module, ids: Tensor, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """The inputs of linear layers, float32 [tokens, in] by name, in the order the layers run.

    Args:
        model: a model of transformers in eval mode, quantized or not.
        ids: int64 [sequences, length]; the tokens come one sequence after the other.
        names: full names of layers; None: every linear layer but the output head. Layers with the same input get the
            same tensor. A layer that runs more than once gives the input of its last run. Behind the last of them nothing is
            computed: the first sequence alone shows how often each runs.

    Raises:
        ValueError: ids of another kind, or a name that is no layer of the model.
    """
    if ids.dim() != 2 or ids.is_floating_point() or not ids.numel():
        raise ValueError(f"token ids are {ids.dtype} {tuple(ids.shape)}; give integers [sequences, length]")
    check_ids(model, ids)
    modules = dict(model.named_modules())
    if names is None:
        heads = output_heads(model)
        linear = {name for name, m in modules.items() if weight_of(m) is not None or is_quantized(m)}
        names = [name for name in modules if name in linear and modules[name] not in heads]
    unknown = [name for name in names if name not in modules]
    if unknown:
        raise ValueError(
            f"{unknown[0]!r} is no layer of {type(model).__name__}; a full name is e.g. {list(modules)[-1]!r}"
        )

    runs = _runs(model, ids[:1], modules, names) if len(ids) > 1 else {}
    calls, heard = Counter(), {}
    last: list[tuple[Tensor, Tensor]] = []  # the input of the layer before, and what was made of it

    def listen(name: str) -> Hook:
        def hear(_module, args, kwargs):
            x = input_of(args, kwargs)
            if not last or last[-1][0] is not x:
                last[:] = [(x, x.detach().float().flatten(0, -2))]
            heard[name] = last[-1][1]
            calls[name] += 1
            if runs and all(calls[one] >= runs[one] for one in names):
                raise _Reached

        return hear

    with listening((modules[name], listen(name)) for name in names), suppress(_Reached):
        read(model, ids)
    return heard


class _Reached(Exception):
    """All layers have been heard as often as they run; the rest of the model need not."""


def _runs(model: nn.Module, ids: Tensor, modules: dict[str, nn.Module], names: Sequence[str]) -> dict[str, int]:
    """How often each layer runs on `ids`; nothing if one does not: an expert may get its tokens from another sequence."""
    calls = Counter()
    with listening((modules[name], lambda *_, name=name: calls.update([name])) for name in names):
        read(model, ids)
    return dict(calls) if all(calls[name] for name in names) else {}


def input_maxima(model: nn.Module, ids: Tensor) -> InputMaxima:
    """The largest |input| of every linear layer but the output head, arguments as for `layer_inputs`.

    Raises:
        ValueError: ids of another kind; layers that do not all see every token (experts).
    """
    shared: dict[int, list[str]] = {}
    inputs = layer_inputs(model, ids)
    for name, x in inputs.items():
        shared.setdefault(id(x), []).append(name)
    one_each = [inputs[names[0]].abs() for names in shared.values()]
    odd = [names[0] for names, x in zip(shared.values(), one_each, strict=True) if len(x) != ids.numel()]
    if odd:
        raise ValueError(
            f"{odd[0]} does not see all {ids.numel()} tokens; maxima by token need a model without experts"
        )
    return InputMaxima(
        tuple(map(tuple, shared.values())),
        torch.stack([x.amax(1) for x in one_each]),
        tuple(x.amax(0) for x in one_each),
    )


def layer_statistics(model: nn.Module, ids: Tensor, names: Sequence[str]) -> dict[str, InputStatistics]:
    """The statistics of the inputs of some layers, with their Hessians, arguments as for `layer_inputs`.

    `qkit.model.calibration.collect` does this block by block for a whole model; here all inputs are in memory at once.
    """
    statistics = {}
    for name, x in layer_inputs(model, ids, names).items():
        statistics[name] = InputStatistics.empty(x.shape[1], x.device, frozenset({"square"}))
        statistics[name].add(x)
    return statistics
