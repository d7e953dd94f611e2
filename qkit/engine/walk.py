"""The one way through a model: block by block, always with what enters the block.

Whoever needs data walks: it collects what the layers of a block are given, solves (or only looks), and lets what leaves the
block feed the next. In memory are one block and the hidden states that enter it, however deep the model is.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qkit.model.blocks import SAMPLE_TOKENS, Block, capture
from qkit.model.calibration import batches_of
from qkit.model.replay import Replay


@dataclass(eq=False)
class Stop:
    """A block on the way.

    Attributes:
        block: in the original model.
        replay: what the calibration text enters, and what will feed the next block: the original, unless whoever walks puts a
            quantized copy in its place.
        sample_block, sample: the block as it is called on a few tokens, and their hidden states: to ask how it is wired.
        last: no block after it is asked for.
    """

    block: Block
    replay: Replay
    sample_block: Block
    sample: Tensor
    last: bool

    @property
    def hidden(self) -> list[Tensor]:
        """What enters the block, for each batch [sequences, length, width]."""
        return self.replay.hidden

    def names(self, layers: list[str]) -> list[str]:
        """Those of the full names `layers` that stand in this block, as they are called within it."""
        prefix = f"{self.block.name}."
        return [name.removeprefix(prefix) for name in layers if name.startswith(prefix)]


@torch.no_grad()
def walk(model: nn.Module, ids: Tensor, layers: list[str]) -> Iterator[Stop]:
    """Every block up to the last that holds one of `layers`; after each, its outputs take the place of its inputs.

    Args:
        model: in eval mode; it is left as it is.
        ids: calibration tokens [sequences, length].
        layers: full names.
    """
    sample_blocks, (sample,) = capture(model, [ids[:1, :SAMPLE_TOKENS]])
    blocks, hidden = capture(model, batches_of(ids))
    last = max((i for i, b in enumerate(blocks) if any(n.startswith(f"{b.name}.") for n in layers)), default=-1)
    for number, block in enumerate(blocks[: last + 1]):
        replay = Replay(block, block.module, hidden)
        stop = Stop(block, replay, sample_blocks[number], sample, number == last)
        yield stop
        if not stop.last:
            stop.replay.advance()
            hidden, sample = stop.hidden, sample_blocks[number].run(sample, 0)
