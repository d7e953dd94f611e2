"""One block that runs on the same batches again and again while its layers are solved one after the other.

GPTQ wants the inputs of every layer as they are once all layers before it are quantized, so a block runs anew for each
group of layers that share an input. But what came before the group last solved comes out as it did: where a submodule (an
attention, an MLP) returns just what its last layer puts out, its output is kept, and its insides run no more, nor the norm
before it, if nothing else reads that. Such submodules are found by asking a small run which tensor came from where, with no
table of architectures; where there are none, everything runs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from qkit.model.blocks import Block
from qkit.model.hooks import Hook, input_of, instead, listening


@dataclass(frozen=True)
class Closing:
    """A submodule whose output is that of its last layer."""

    name: str
    nothings: int | None  # it returns a tuple, with so many None behind the output; None: the output alone
    before: tuple[str, ...] = ()  # submodules whose output nothing else reads

    def returning(self, output: Tensor) -> Callable[..., Any]:
        """A forward that computes nothing and returns `output` in the form that the submodule has."""
        form = output if self.nothings is None else (output, *[None] * self.nothings)
        return lambda *_args, **_kwargs: form


@torch.no_grad()
def find_closings(block: Block, hidden: Tensor, names: Sequence[str]) -> dict[str, Closing]:
    """For each of the layers `names` that ends a submodule of the block: the outermost that it ends.

    `hidden` is a small sample, the block's first batch. Nothing is found where one of the layers does not run just once:
    it may be solved after what it feeds, and so change what had been kept. Nor where the output is written into later.
    """
    ran: dict[str, tuple[Tensor, int]] = {}  # what each layer put out, and how often that had been written into
    calls: list[str] = []
    found: dict[str, Closing] = {}
    traffic: dict[str, tuple[list[Tensor], Tensor]] = {}  # what each submodule was given, and what it put out

    def hook(name: str) -> Hook:
        def note(_module, args, kwargs, output):
            given = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]
            value, *others = output if isinstance(output, tuple) else (output,)
            traffic[name] = given, value
            if name in names:
                ran[name] = value, value._version
                calls.append(name)
                return
            inside = [one for one in calls if one.startswith(f"{name}.")]
            if inside and value is ran[inside[-1]][0] and all(other is None for other in others):
                found[inside[-1]] = Closing(name, len(others) if isinstance(output, tuple) else None)

        return note

    with listening(((m, hook(name)) for name, m in block.module.named_modules() if name), after=True):
        leaves = block.run(hidden, 0)
    if sorted(calls) != sorted(names):
        return {}
    found = {name: one for name, one in found.items() if ran[name][0]._version == ran[name][1]}
    return {
        name: replace(one, before=_before(block, hidden, one, names, traffic, leaves)) for name, one in found.items()
    }


def _before(
    block: Block,
    hidden: Tensor,
    closing: Closing,
    layers: Sequence[str],
    traffic: Mapping[str, tuple[list[Tensor], Tensor]],
    leaves: Tensor,
) -> tuple[str, ...]:
    """Submodules without layers that only `closing` reads: once what that returns is known, NaN in their place is not seen."""
    given, kept = traffic[closing.name]
    found: list[str] = []
    for name, (_, output) in traffic.items():
        holds = any(layer == name or layer.startswith(f"{name}.") for layer in layers)
        if holds or not any(output is one for one in given) or not output.is_floating_point():
            continue
        nan = torch.full_like(output, torch.nan)
        known = {closing.name: closing.returning(kept), name: lambda *_args, nan=nan, **_kwargs: nan}
        with instead((block.module.get_submodule(one), forward) for one, forward in known.items()):
            if torch.equal(block.run(hidden, 0), leaves):
                found.append(name)
    return tuple(found)


def _passing(*args: Any, **kwargs: Any) -> Tensor:
    """The forward of a submodule whose output nobody reads."""
    return input_of(args, kwargs)


class _Reached(Exception):
    """The layers that were listened to have been reached; the rest of the block need not run."""


@dataclass(eq=False)
class Replay:
    """A block (or a copy of it) on its batches.

    Attributes:
        module: its layers may be replaced from run to run, in the order in which they run.
        hidden: what enters it, for each batch [sequences, length, width].
        closings: layers whose inputs are kept when they are heard, see `settle`.
        fixed: no layer will be replaced: in the place of a kept input its output is kept, which is smaller.
    """

    block: Block
    module: nn.Module
    hidden: list[Tensor]
    closings: Mapping[str, Closing] = field(default_factory=dict)
    fixed: bool = False
    _kept: dict[str, list[Tensor]] = field(default_factory=dict)
    _known: dict[Closing, list[Tensor]] = field(default_factory=dict)  # for each batch, what the submodule returns

    def run(self, batch: int) -> Tensor:
        """What the block puts out for a batch, [sequences, length, width]."""
        known = {c.name: c.returning(kept[batch]) for c, kept in self._known.items()}
        known |= {name: _passing for c in self._known for name in c.before}
        with instead((self.module.get_submodule(name), forward) for name, forward in known.items()):
            return self.block.run(self.hidden[batch], batch, self.module)

    def hear(self, batch: int, names: Sequence[str], runs: Mapping[str, int]) -> dict[str, list[Tensor]]:
        """The inputs of the layers `names` in a run on a batch, each [..., in].

        Where it is known how often each of them `runs`, the run ends before the last of them has its turn.
        """
        with _listening(self.module, names, runs) as heard, suppress(_Reached):
            self.run(batch)
        for name in self.closings.keys() & heard.keys():
            if len(heard[name]) == 1:
                (x,) = heard[name]
                self._kept.setdefault(name, []).append(self.module.get_submodule(name)(x) if self.fixed else x)
        return heard

    def settle(self, name: str) -> None:
        """The layer `name` has been heard on every batch, and is now what it will be: what it ends runs no more."""
        kept = self._kept.pop(name, [])
        if len(kept) != len(self.hidden):
            return
        if not self.fixed:
            layer = self.module.get_submodule(name)
            for batch, x in enumerate(kept):
                kept[batch] = layer(x)  # one by one: an input may be much wider than an output
        self._known[self.closings[name]] = kept

    def advance(self) -> None:
        """Let what leaves the block take the place of what entered it."""
        for batch in range(len(self.hidden)):
            self.hidden[batch] = self.run(batch)


@contextmanager
def _listening(block: nn.Module, names: Sequence[str], runs: Mapping[str, int]) -> Iterator[dict[str, list[Tensor]]]:
    heard: dict[str, list[Tensor]] = {name: [] for name in names}

    def hook(name: str) -> Hook:
        def hear(_module, args, kwargs):
            heard[name].append(input_of(args, kwargs).detach())
            if runs and all(len(heard[one]) >= runs[one] for one in names):
                raise _Reached

        return hear

    with listening((block.get_submodule(name), hook(name)) for name in names):
        yield heard
