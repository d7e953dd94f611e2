"""What the original says of a text, read once and remembered, for models that come to be measured one after the other.

`evaluate` remembers nothing: it takes all models at once. Where they are made one by one, in a search or in the cells of a
lesson, it would read the original again for each. A `Reference` is what the original said, the log-probabilities of every next
token: whatever is held against it is given the same figures, bit for bit, as by `evaluate` beside the original.

It is a record, and nobody is asked again: the text is the one that was read, and if the model is quantized in place, trained or
thrown away later on, the record is still of what it was.

    memory = 4 bytes · tokens · vocabulary      100 MB for six of the tales and the 4,096 tokens that bookworm knows
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qkit.engine.prepare import check_model
from qkit.engine.progress import progress_bar
from qkit.model.hooks import evaluating
from qkit.study.evaluate import Evaluation, Sums, batches_for, check_readers, log_probabilities

LIMIT = 2**30  # bytes that are remembered: what a laptop can spare


@dataclass(frozen=True, eq=False)
class Reference:
    """What one model said of one text, made by `Reference.of`.

    Attributes:
        evaluation: how good that model itself was.
    """

    evaluation: Evaluation
    _counts: tuple[int, ...]  # sequences of each passage
    _batches: tuple[Tensor, ...]  # int64 [sequences, length]
    _log_p: tuple[Tensor, ...]  # of each batch, float32 [sequences, length - 1, vocabulary]

    @classmethod
    @torch.inference_mode()
    def of(
        cls,
        model: nn.Module,
        tokenizer,
        text: str | list[str] | Tensor,
        max_chunks: int | None = None,
        *,
        limit: int | None = LIMIT,
        progress: bool | None = None,
    ) -> "Reference":
        """Let a model read a text, arguments as for `evaluate`, and keep what it says, at most `limit` bytes; None: all.

        Raises:
            ValueError: it would be more than that; or what `evaluate` refuses.
        """
        named = {"original": model}
        batches, counts = batches_for(named, tokenizer, text, max_chunks)
        sums, kept = Sums(), []
        with evaluating(model):
            for batch in progress_bar(progress, "reading", "batch", over=batches):
                log_p = log_probabilities(model, batch, "original")
                if not kept:
                    _check_size(sum(len(one) for one in batches) * log_p[0].numel(), log_p.shape[-1], limit)
                sums.add(batch, log_p, log_p, "original", "original")
                kept.append(log_p)
        own = tuple(batch.clone() for batch in batches)  # ids that somebody gave may change
        return cls(sums.evaluation(counts), tuple(counts), own, tuple(kept))

    @property
    def nbytes(self) -> int:
        """What is remembered."""
        return sum(log_p.nbytes for log_p in self._log_p)

    @torch.inference_mode()
    def evaluate(self, models: dict[str, nn.Module], progress: bool | None = None) -> dict[str, Evaluation]:
        """How good each of these models is on that text, with its KL from the one that was read.

        Raises:
            ValueError: a model of another vocabulary, one that predicts no tokens, or one whose output is not finite.
        """
        for model in models.values():
            check_model(model)
        for batch in self._batches:
            check_readers(models, batch)
        sums = {name: Sums() for name in models}
        with evaluating(*models.values()):
            pairs = list(zip(self._batches, self._log_p, strict=True))
            for batch, original in progress_bar(progress, "evaluating", "batch", over=pairs):
                for name, model in models.items():
                    sums[name].add(batch, log_probabilities(model, batch, name), original, name, "original")
        return {name: one.evaluation(self._counts) for name, one in sums.items()}

    def __repr__(self) -> str:
        found = self.evaluation
        return f"Reference(perplexity {found.perplexity:.2f} on {found.tokens:,} tokens, {self.nbytes / 1e6:,.0f} MB)"


def _check_size(numbers: int, vocabulary: int, limit: int | None) -> None:
    if limit is not None and 4 * numbers > limit:
        raise ValueError(
            f"what the original says of {numbers // vocabulary:,} tokens, each of {vocabulary:,}, takes {4 * numbers:,} bytes "
            f"and limit is {limit:,}; give a shorter text, max_chunks or a larger limit, or all models at once to evaluate"
        )
