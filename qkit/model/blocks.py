"""A model as a chain of blocks: what goes into the first, and how each is called.

A decoder is an embedding, a list of equal blocks and a head. Everything that needs data works block by block, so that
never more than one block and its inputs are in memory at once. Nothing here knows the name of an architecture: the blocks
are the outermost `nn.ModuleList` that holds linear layers, and how each one is called (attention mask, rotary positions)
is overheard from the model itself.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from qkit.model.facts import check_data, check_ids, read, text_decoder, why_no_text
from qkit.model.hooks import Hook, instead, listening
from qkit.model.linear import is_linear
from qkit.model.sharing import shared_modules
from qkit.nn.layers import is_quantized

SAMPLE_TOKENS = 16  # enough to find out how a block is wired


@dataclass(frozen=True, eq=False)
class Block:
    """One block, and how the model calls it on each batch."""

    name: str  # "model.layers.3"
    module: nn.Module
    calls: tuple[tuple[tuple, dict[str, Any]], ...]  # for each batch, what follows the hidden state: (args, kwargs)
    # Of its submodules, by their names in it, those whose parameters the model also has elsewhere, and where.
    shared: Mapping[str, str] = field(default_factory=dict)

    def run(self, hidden: Tensor, batch: int, module: nn.Module | None = None) -> Tensor:
        """The block (or a copy of it) on `hidden` [sequences, length, width], called as the model calls it on `batch`."""
        args, kwargs = self.calls[batch]
        return first((self.module if module is None else module)(hidden, *args, **kwargs))


def first(output: Any) -> Tensor:
    """The hidden state of what a block returns: in transformers 5 a tensor, in others the first of a tuple."""
    return output if isinstance(output, Tensor) else output[0]


def find_blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Names and modules of the blocks, in order; of a model that sees or hears as well, those of its text decoder.

    Raises:
        ValueError: there is no list of blocks, saying what was looked for and what was found.
    """

    def linears(module: nn.Module) -> int:
        return sum(is_linear(m) or is_quantized(m) for m in module.modules())

    lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and linears(m)}
    decoder = text_decoder(model)[0]
    lists = {name: m for name, m in lists.items() if name.startswith(f"{decoder}." * bool(decoder))} or lists
    outer = {n: m for n, m in lists.items() if not any(n.startswith(f"{other}.") for other in lists)}
    if not outer:
        children = ", ".join(f"{n} ({type(m).__name__})" for n, m in model.named_children()) or "nothing"
        raise _unknown(model, f"a ModuleList of blocks that hold Linear or Conv1D layers, and found {children}")
    name = max(outer, key=lambda n: linears(outer[n]))
    return [(f"{name}.{i}", block) for i, block in enumerate(outer[name])]


def _unknown(model: nn.Module, looked_for: str) -> ValueError:
    return ValueError(
        f"{type(model).__name__} is an unknown architecture: calibration looks for {looked_for}; quantize it with a scheme "
        f"that needs no data, e.g. qkit.RTN"
    )


class _Overheard(Exception):
    """The last block was called: nothing after it matters."""


@torch.no_grad()
def capture(model: nn.Module, batches: Sequence[Tensor]) -> tuple[list[Block], list[Tensor]]:
    """The blocks of `model`, and the hidden states that enter the first of them.

    Only the embedding is computed: in the place of each block stands a listener that notes how it is called and hands its
    input on. Which form its output must have is learnt from two tokens run through the real blocks.

    Args:
        model: a decoder of transformers, in eval mode.
        batches: token ids, each int64 [sequences, length].

    Returns:
        The blocks, and for each batch a hidden state [sequences, length, width].

    Raises:
        ValueError: token ids beyond the vocabulary; a block without data; an unknown architecture, or blocks that are not
            called one after the other on the same stream.
    """
    if (why := why_no_text(model)) is not None:
        raise _unknown(model, f"a decoder that reads token ids by itself, and found that {why}")
    blocks = find_blocks(model)
    for name, block in blocks:
        for inner, parameter in block.named_parameters():
            check_data(f"{name}.{inner}", parameter)
    for batch in batches:
        check_ids(model, batch)
    nothings = _forms(model, blocks, batches[0][:1, :2])
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
            return hidden if nothings[index] is None else (hidden, *[None] * nothings[index])

        return hear

    with instead((block, listener(i)) for i, (_, block) in enumerate(blocks)):
        for count, batch in enumerate(batches, 1):
            with suppress(_Overheard):
                read(model, batch)
            if odd := [name for (name, _), heard in zip(blocks, calls, strict=True) if len(heard) != count]:
                raise _unknown(model, f"blocks that run once each, and found {odd[0]} run otherwise on batch {count}")
    shared = shared_modules(model)
    return [
        Block(name, m, tuple(heard), _within(shared, name)) for (name, m), heard in zip(blocks, calls, strict=True)
    ], entering


def _within(shared: Mapping[str, str], block: str) -> dict[str, str]:
    prefix = f"{block}."
    return {name.removeprefix(prefix): other for name, other in shared.items() if name.startswith(prefix)}


def _forms(model: nn.Module, blocks: list[tuple[str, nn.Module]], ids: Tensor) -> list[int | None]:
    """For each block how much it returns beside the hidden state, None: the hidden state alone, without a tuple.

    Refuses models that do not run on token ids alone, and blocks that do not hand one stream, and nothing else, from each
    to the next.
    """
    seen: list[tuple[int, tuple, dict[str, Any], Any]] = []

    def hook(index: int) -> Hook:
        return lambda _module, args, kwargs, output: seen.append((index, args, kwargs, output))

    try:
        with listening(((m, hook(i)) for i, (_, m) in enumerate(blocks)), after=True):
            read(model, ids)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a model that we do not know may raise
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise _unknown(model, f"a model that runs on token ids alone, and on two of them found {why}") from error
    order = [index for index, *_ in seen]
    looked_for = "blocks that run once each, every one on the output of the one before"
    if order != list(range(len(blocks))):
        raise _unknown(model, f"{looked_for}; found {len(blocks)} blocks called in the order {order}")
    for (name, _), (*_, output) in zip(blocks, seen, strict=True):
        if not (
            isinstance(output, Tensor)
            or (isinstance(output, tuple | list) and output and isinstance(output[0], Tensor))
        ):
            raise _unknown(model, f"{looked_for}; found that {name} puts out a {type(output).__name__}")
    for (name, _), a, b in zip(blocks[1:], seen, seen[1:], strict=False):
        if not _continues(a[3], *b[1:3]):
            raise _unknown(model, f"{looked_for}; found that {name} is given something else, or more")
    return [None if isinstance(output, Tensor) else len(output) - 1 for *_, output in seen]


def _continues(output: Any, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether a block that is called so takes the hidden state that the one before put out, once, and nothing else of it."""
    hidden = args[0] if args else kwargs.get("hidden_states")
    others = [*args[1:], *(value for name, value in kwargs.items() if args or name != "hidden_states")]
    parts = [part for part in tree_leaves(output) if isinstance(part, Tensor)]
    return first(output) is hidden and not any(part is other for part in parts for other in tree_leaves(others))
