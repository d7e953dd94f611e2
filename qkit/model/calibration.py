"""Calibration: the statistics of what the layers of a block are given, gathered while it runs.

They are sums over all calibration tokens (`qkit.methods.statistics`), taken by listening at the layers while the model runs
block by block (`qkit.model.blocks`); the activations themselves are gone when the batch is.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from qkit.methods.statistics import WANTS, InputStatistics
from qkit.model.blocks import Block
from qkit.model.hooks import Hook, input_of, listening
from qkit.model.replay import Replay

TOKENS_AT_ONCE = 4096  # in one batch: enough to keep the cores busy, few enough for a laptop


def batches_of(ids: Tensor) -> tuple[Tensor, ...]:
    """`ids` [sequences, length] in batches of about `TOKENS_AT_ONCE` tokens."""
    return ids.split(max(1, TOKENS_AT_ONCE // ids.shape[1]))


@torch.no_grad()
def input_groups(block: Block, hidden: Tensor, names: Sequence[str]) -> list[list[str]]:
    """The layers `names` of a block in the order they run, those that share one input together.

    `hidden` is a small sample, the block's first batch. Layers that do not run on it (experts without a token), or run
    more than once, come last, each alone.
    """
    runs: list[tuple[str, Tensor]] = []

    def hook(name: str) -> Hook:
        return lambda _module, args, kwargs: runs.append((name, input_of(args, kwargs)))

    with listening((block.module.get_submodule(name), hook(name)) for name in names):
        block.run(hidden, 0)
    order = [name for name, _ in runs]
    groups: list[list[str]] = []
    previous = None
    for name, x in runs:
        if order.count(name) > 1:
            continue
        if x is previous:
            groups[-1].append(name)
        else:
            groups.append([name])
        previous = x
    return groups + [[name] for name in names if order.count(name) != 1]


@torch.no_grad()
def gather(
    replay: Replay,
    names: Sequence[str],
    wants: frozenset[str] = WANTS - {"drift"},
    original: Replay | None = None,
    runs: Mapping[str, int] | None = None,
) -> dict[str, InputStatistics]:
    """Run a block, perhaps partly quantized, on its batches, and gather the statistics of the layers `names`.

    The drift is measured against `original`: both run side by side, batch by batch. Layers that were never reached are
    missing in the result.

    Args:
        runs: how often each layer runs on a batch, so that nothing is computed for nobody behind the last of them. None:
            as often as on the first batch. Empty: every run goes to the end.
    """
    statistics: dict[str, InputStatistics] = {}
    for batch in range(len(replay.hidden)):
        heard = replay.hear(batch, names, runs or {})
        twins = original.hear(batch, names, runs or {}) if original and "drift" in wants else {}
        if runs is None:
            runs = {name: len(inputs) for name, inputs in heard.items()} if all(heard.values()) else {}
        for name, inputs in heard.items():
            if not inputs:
                continue
            x, twin = _rows(inputs), _rows(twins[name]) if twins.get(name) else None
            if name not in statistics:
                statistics[name] = InputStatistics.empty(x.shape[1], x.device, wants)
            # A router may send other tokens to an expert when it sees quantized inputs: then there are no pairs.
            statistics[name].add(x, twin if twin is not None and twin.shape == x.shape else None)
    return statistics


def _rows(inputs: Sequence[Tensor]) -> Tensor:
    """Inputs [..., in] of one or several calls as [tokens, in]."""
    rows = [x.flatten(0, -2) for x in inputs]
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def collect(
    block: Block,
    module: nn.Module,
    hidden: Sequence[Tensor],
    names: Sequence[str],
    wants: frozenset[str] = WANTS - {"drift"},
    stop: bool = True,
) -> dict[str, InputStatistics]:
    """The statistics of the layers `names` of `module`, a copy of the block, on `hidden`.

    With `stop`, a run ends when every layer has been reached as often as in the first batch.
    """
    return gather(Replay(block, module, list(hidden)), names, wants, runs=None if stop else {})
