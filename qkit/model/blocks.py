"""A model as a chain of blocks: what goes into the first, and how each is called.

A decoder is an embedding, a list of equal blocks and a head. Everything that needs data works block by block, so that
never more than one block and its inputs are in memory at once. Nothing here knows the name of an architecture: the blocks
are the outermost `nn.ModuleList` that holds linear layers, and how each one is called (attention mask, rotary positions)
is overheard from the model itself.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from qkit.model.hooks import Hook, instead, listening
from qkit.model.surgery import weight_of
from qkit.nn.qlinear import is_quantized

SAMPLE_TOKENS = 16  # enough to find out how a block is wired


@dataclass(frozen=True, eq=False)
class Block:
    """One block, and how the model calls it on each batch."""

    name: str  # "model.layers.3"
    module: nn.Module
    calls: tuple[tuple[tuple, dict[str, Any]], ...]  # for each batch, what follows the hidden state: (args, kwargs)

    def run(self, hidden: Tensor, batch: int, module: nn.Module | None = None) -> Tensor:
        """The block (or a copy of it) on `hidden` [sequences, length, width], called as the model calls it on `batch`."""
        args, kwargs = self.calls[batch]
        return first((module or self.module)(hidden, *args, **kwargs))


def first(output: Any) -> Tensor:
    """The hidden state of what a block returns: in transformers 5 a tensor, in others the first of a tuple."""
    return output if isinstance(output, Tensor) else output[0]


def find_blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Names and modules of the blocks, in order.

    Raises:
        ValueError: there is no list of blocks, saying what was looked for and what was found.
    """

    def linears(module: nn.Module) -> int:
        return sum(weight_of(m) is not None or is_quantized(m) for m in module.modules())

    lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and linears(m)}
    outer = {n: m for n, m in lists.items() if not any(n.startswith(f"{other}.") for other in lists)}
    if not outer:
        children = ", ".join(f"{n} ({type(m).__name__})" for n, m in model.named_children()) or "nothing"
        raise ValueError(
            f"{type(model).__name__} is an unknown architecture: calibration looks for a ModuleList of blocks that hold "
            f"Linear or Conv1D layers, and found {children}; quantize it with a scheme that needs no data, e.g. qkit.RTN"
        )
    name = max(outer, key=lambda n: linears(outer[n]))
    return [(f"{name}.{i}", block) for i, block in enumerate(outer[name])]


class _Overheard(Exception):
    """The last block was called: nothing after it matters."""


@torch.no_grad()
def capture(model: nn.Module, batches: Sequence[Tensor]) -> tuple[list[Block], list[Tensor]]:
    """The blocks of `model`, and the hidden states that enter the first of them.

    Only the embedding is computed: in the place of each block stands a listener that notes how it is called and hands its
    input on. Which form its output must have is learnt from one token run through the real blocks.

    Args:
        model: a decoder of transformers, in eval mode.
        batches: token ids, each int64 [sequences, length].

    Returns:
        The blocks, and for each batch a hidden state [sequences, length, width].

    Raises:
        ValueError: an unknown architecture, or blocks that are not called one after the other on the same stream.
    """
    blocks = find_blocks(model)
    returns_tuple = _forms(model, blocks, batches[0][:1, :2])
    calls: list[list] = [[] for _ in blocks]
    entering: list[Tensor] = []

    def listener(index: int) -> Callable:
        def hear(*args, **kwargs):
            kwargs = dict(kwargs)
            hidden = args[0] if args else kwargs.pop("hidden_states")
            if index == 0:
                entering.append(hidden)
            calls[index].append((args[1:], kwargs))
            if index == len(blocks) - 1:
                raise _Overheard
            return (hidden,) if returns_tuple[index] else hidden

        return hear

    device = next(model.parameters()).device
    with instead((block, listener(i)) for i, (_, block) in enumerate(blocks)):
        for batch in batches:
            with suppress(_Overheard):
                model(input_ids=batch.to(device), use_cache=False)
    return [Block(name, m, tuple(heard)) for (name, m), heard in zip(blocks, calls, strict=True)], entering


def _forms(model: nn.Module, blocks: list[tuple[str, nn.Module]], ids: Tensor) -> list[bool]:
    """Whether each block returns a tuple; refuses blocks that do not hand one stream from each to the next."""
    seen: list[tuple[int, Tensor, Any]] = []

    def hook(index: int) -> Hook:
        def note(_module, args, kwargs, output):
            seen.append((index, args[0] if args else kwargs.get("hidden_states"), output))

        return note

    with listening(((m, hook(i)) for i, (_, m) in enumerate(blocks)), after=True):
        model(input_ids=ids.to(next(model.parameters()).device), use_cache=False)
    chain = [index for index, _, _ in seen] == list(range(len(blocks)))
    if not chain or any(first(a[2]) is not b[1] for a, b in pairwise(seen)):
        raise ValueError(
            f"{type(model).__name__} is an unknown architecture: calibration looks for blocks that run once each, every "
            f"one on the output of the one before; found {len(blocks)} blocks called in the order "
            f"{[index for index, _, _ in seen]}; quantize it with a scheme that needs no data, e.g. qkit.RTN"
        )
    return [not isinstance(output, Tensor) for _, _, output in seen]
