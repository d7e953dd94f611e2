"""Calibration: what a layer's inputs look like, as statistics that do not grow with the text.

A method that looks at data needs, for each layer, sums over all calibration tokens: the Hessian of the layer's squared
output error, the largest and the mean |x| of each input channel. They are gathered while the model runs block by block
(`qkit.model.blocks`), by listening at the layers; the activations themselves are gone when the batch is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qkit import ops
from qkit.model.blocks import Block
from qkit.model.hooks import Hook, input_of, listening
from qkit.model.replay import Replay
from qkit.numerics.mapping import check_finite
from qkit.text.tokens import CHUNK_LENGTH, token_chunks

CHUNKS = 128  # as in the GPTQ, AWQ and SmoothQuant papers: 128 sequences
SAMPLE = 1024  # tokens
TOKENS_AT_ONCE = 4096  # in one batch: enough to keep the cores busy, few enough for a laptop


def calibration_chunks(
    calibration: str | Sequence[str] | Tensor, tokenizer=None, length: int = CHUNK_LENGTH, max_chunks: int = CHUNKS
) -> Tensor:
    """At most `max_chunks` chunks of `length` tokens behind a BOS, int64 [chunks, 1 + length].

    They are spread evenly over each text, and several texts get equal shares, so that neither the first pages nor the
    longest text decide alone. The same arguments give the same chunks. Token ids [sequences, length] are taken as they are.
    """
    if isinstance(calibration, Tensor):
        return token_chunks(calibration)
    texts = [calibration] if isinstance(calibration, str) else list(calibration)
    if not texts or not any(text.strip() for text in texts):
        raise ValueError(
            "calibration is empty; give a text of the kind the model will read, e.g. qkit.texts('python-docs')"
        )
    if len(texts) > max_chunks:
        texts = ["\n\n".join(texts)]  # many short samples: one text
    share = [max_chunks // len(texts) + (i < max_chunks % len(texts)) for i in range(len(texts))]
    picked = []
    for text, count in zip(texts, share, strict=True):
        chunks = token_chunks(text, tokenizer, length)
        picked.append(chunks[torch.linspace(0, len(chunks) - 1, min(count, len(chunks))).round().long()])
    return torch.cat(picked)


def batches_of(ids: Tensor) -> tuple[Tensor, ...]:
    """`ids` [sequences, length] in batches of about `TOKENS_AT_ONCE` tokens."""
    return ids.split(max(1, TOKENS_AT_ONCE // ids.shape[1]))


WANTS = frozenset({"square", "drift", "magnitudes", "sample"})  # what costs time or memory to gather
BINS_PER_OCTAVE, OCTAVES = 64, 24  # of the histogram of |x|, which reaches from 2^-24 to 2^24
UNUSED_BITS = 23 - 6  # of a float's mantissa: the first six say which of the 64 bins of an octave


def magnitude_edges(device: torch.device | str = "cpu") -> Tensor:
    """Edges of the histogram of |x|: from each power of two to the next 64 equal bins, whatever the range will be.

    A float's exponent and the first six bits of its mantissa say which is its bin.
    """
    bins = torch.arange(2 * OCTAVES * BINS_PER_OCTAVE + 1, device=device)
    octave, part = bins // BINS_PER_OCTAVE - OCTAVES, bins % BINS_PER_OCTAVE
    return torch.ldexp(1 + part / BINS_PER_OCTAVE, octave)


@dataclass(eq=False)
class InputStatistics:
    """Sums over the calibration tokens x [in] that one layer (or several with the same input) has seen.

    Attributes:
        tokens: how many.
        absmax: [in], the largest |x| of each channel.
        abssum: [in], the sum of |x|.
        square: [in, in], the sum of x xᵀ: half the Hessian of the squared output error, times `tokens`.
        drift: [in, in], the sum of (x₀ - x) xᵀ, where x₀ is what the original model puts in the place of x; None when it
            was not asked for.
        magnitudes: how many |x| fell into each bin of `magnitude_edges`, over all channels.
        sample: [tokens, in], the inputs of the first batch, at most `SAMPLE` of them; for searches that need the
            activations themselves.
    """

    tokens: int
    absmax: Tensor
    abssum: Tensor
    square: Tensor | None = None
    drift: Tensor | None = None
    magnitudes: Tensor | None = None
    sample: Tensor | None = None

    @classmethod
    def empty(
        cls, in_features: int, device: torch.device | str = "cpu", wants: frozenset[str] = WANTS
    ) -> "InputStatistics":
        """Nothing seen yet; `wants` names which of the costly sums are to be gathered."""
        statistics = cls(0, *(torch.zeros(in_features, device=device) for _ in range(2)))
        for name in ("square", "drift"):
            if name in wants:
                setattr(statistics, name, torch.zeros(in_features, in_features, device=device))
        if "magnitudes" in wants:
            statistics.magnitudes = torch.zeros(2 * OCTAVES * BINS_PER_OCTAVE, dtype=torch.int64, device=device)
        if "sample" in wants:
            statistics.sample = torch.zeros(0, in_features, device=device)
        return statistics

    @property
    def hessian(self) -> Tensor:
        """The mean of x xᵀ, float32 [in, in]. Constant factors of H change nothing in GPTQ."""
        return self.square / max(self.tokens, 1)

    @property
    def mean(self) -> Tensor:
        """The mean |x| of each channel, [in]."""
        return self.abssum / max(self.tokens, 1)

    def add(self, x: Tensor, original: Tensor | None = None) -> None:
        """Take in x [tokens, in], and what the original model had in its place."""
        x = x.float()
        if not len(x):
            return
        self.tokens += len(x)
        magnitude = x.abs()
        self.absmax = torch.maximum(self.absmax, magnitude.amax(0))
        self.abssum += magnitude.sum(0)
        if self.square is not None:
            self.square.addmm_(x.T, x)
        if self.drift is not None and original is not None:
            self.drift.addmm_((original.float() - x).T, x)
        if self.magnitudes is not None:
            lowest = (127 - OCTAVES) * BINS_PER_OCTAVE  # 127 is the exponent of 1.0
            self.magnitudes += ops.count_magnitudes(x, len(self.magnitudes), UNUSED_BITS, lowest)
        if self.sample is not None and not len(self.sample):
            self.sample = x[:SAMPLE].clone()

    def scaled(self, scale: Tensor) -> "InputStatistics":
        """What they would be had every input been divided by `scale` [in] (without the magnitudes, which do not tell)."""
        both = scale[:, None] * scale
        return InputStatistics(
            self.tokens,
            self.absmax / scale,
            self.abssum / scale,
            None if self.square is None else self.square / both,
            None if self.drift is None else self.drift / both,
            sample=None if self.sample is None else self.sample / scale,
        )

    def check(self, name: str) -> None:
        """Refuse NaN and infinity, naming the layer. (Any in an input shows in the sum of its channel.)"""
        check_finite(self.abssum, f"the calibration statistics of {name} (sums of |x| by input channel)")


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
