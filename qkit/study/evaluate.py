"""How good a model still is: perplexity, and the KL divergence to the model it was made from.

Perplexity is exp of the mean negative log-likelihood of the next token, over consecutive chunks of 511 tokens, each behind
a BOS: the same everywhere in qkit, so that two figures can be compared. A model whose context is shorter than 512 is given
chunks that fit it.

KL(original || quantized) = Σ_t p(t) (log p(t) - log q(t)), with p the original's probabilities of the next token and q the
quantized model's, is averaged over the same tokens, in nats. Perplexity can stay the same, or even fall, while the model says
other things; KL cannot (it is 0 only where both give the same probabilities).

Both are kept for each passage too, so that two models can be compared on the same passages (qkit.study.paired).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from qkit.engine.prepare import check_model
from qkit.engine.progress import progress_bar
from qkit.model.facts import check_ids, chunk_length, read, vocabulary_size, why_no_text
from qkit.model.hooks import evaluating
from qkit.study.paired import Estimate, paired_difference
from qkit.text.tokens import passage_chunks

MEASURES = ("kl", "nll")
LOGITS_AT_ONCE = 2**24  # 64 MB in float32: small enough for a laptop, large enough to keep the cores busy


@dataclass(frozen=True)
class Passage:
    """How one model did on one passage of a text: means over its predicted tokens."""

    nll: float  # nats per token, the negative log-likelihood
    kl: float  # nats per token
    tokens: int


@dataclass(frozen=True)
class Evaluation:
    """How one model did on one text."""

    perplexity: float
    kl: float  # nats per token, from the first model that was evaluated beside it; 0 for that one
    tokens: int  # predicted tokens
    passages: tuple[Passage, ...]  # the texts of a list that each fill a chunk; of any other text its chunks

    def difference(self, other: "Evaluation", measure: str = "kl") -> Estimate:
        """How much more this model loses than the other on the same passages, with its paired standard error.

        Args:
            measure: "kl", nats per token; or "nll", the difference of log perplexities, whose exp is the ratio.

        Raises:
            ValueError: another measure, or passages of other lengths, which are not the same.
        """
        return difference(self.passages, other.passages, measure)


def difference(passages: Sequence[Passage], others: Sequence[Passage], measure: str = "kl") -> Estimate:
    """How much more is lost on `passages` than on `others`, the same by another model: `Evaluation.difference`."""
    if measure not in MEASURES:
        raise ValueError(f"measure={measure!r} is not one of {', '.join(MEASURES)}")
    tokens = [passage.tokens for passage in passages]
    if tokens != [passage.tokens for passage in others]:
        raise ValueError("the two were evaluated on different passages; evaluate both on one text")
    values, of_others = ([getattr(passage, measure) for passage in some] for some in (passages, others))
    return paired_difference(values, of_others, tokens)


def perplexity(
    model: nn.Module,
    tokenizer,
    text: str | list[str] | Tensor,
    *,
    max_chunks: int | None = None,
    progress: bool | None = None,
) -> float:
    """Perplexity of `model` on `text` (or on token ids [sequences, length]); `max_chunks` takes only the first chunks."""
    name = type(model).__name__
    return evaluate({name: model}, tokenizer, text, max_chunks, progress)[name].perplexity


def kl_divergence(
    original: nn.Module,
    model: nn.Module,
    tokenizer,
    text: str | list[str] | Tensor,
    *,
    max_chunks: int | None = None,
    progress: bool | None = None,
) -> float:
    """Mean KL(original || model) of the next-token distributions, in nats."""
    return evaluate({"original": original, "model": model}, tokenizer, text, max_chunks, progress)["model"].kl


@torch.inference_mode()
def evaluate(
    models: dict[str, nn.Module],
    tokenizer,
    text: str | list[str] | Tensor,
    max_chunks: int | None = None,
    progress: bool | None = None,
) -> dict[str, Evaluation]:
    """Evaluate several models side by side on one text; KL is taken from the first.

    Every batch goes through all models before the next is begun, so the probabilities of the original are computed once
    and never stored. Where models come one after the other, `qkit.study.reference` stores them.

    Raises:
        ValueError: the text is shorter than a chunk, a model that predicts no tokens, or one whose output is not finite.
    """
    batches, counts = batches_for(models, tokenizer, text, max_chunks)
    sums = {name: Sums() for name in models}
    first = next(iter(models), "")
    with evaluating(*models.values()):  # dropout would be measured too
        for batch in progress_bar(progress, "evaluating", "batch", over=batches):
            original = None
            for name, model in models.items():
                log_p = log_probabilities(model, batch, name)
                original = log_p if original is None else original
                sums[name].add(batch, log_p, original, name, first)
    return {name: one.evaluation(counts) for name, one in sums.items()}


def batches_for(
    models: dict[str, nn.Module], tokenizer, text: str | list[str] | Tensor, max_chunks: int | None = None
) -> tuple[tuple[Tensor, ...], list[int]]:
    """What these models are given, int64 [sequences, length] each, and how many of the sequences belong to each passage.

    Raises:
        ValueError: the text is shorter than a chunk, or a model cannot read it or predicts no tokens.
    """
    for model in models.values():
        check_model(model)
    length = min(chunk_length(model) for model in models.values())
    ids, counts = passage_chunks(text, tokenizer, length, max_chunks)
    check_readers(models, ids)
    vocabulary = max(vocabulary_size(m) or 1 for m in models.values())
    return ids.split(max(1, LOGITS_AT_ONCE // (vocabulary * ids.shape[1]))), counts


def check_readers(models: dict[str, nn.Module], ids: Tensor) -> None:
    """Refuse models that cannot be asked for the next token, or do not know one of these."""
    for name, model in models.items():
        if (why := why_no_text(model)) is not None:
            raise ValueError(f"model {name!r} cannot be asked for the next token: {why}; give a decoder of text")
        check_ids(model, ids)


@dataclass(eq=False)
class Sums:
    """What is summed of one model over the tokens of each sequence, in float64."""

    nll: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def add(self, batch: Tensor, log_p: Tensor, original: Tensor, name: str, first: str) -> None:
        """One batch [sequences, length] more.

        Args:
            batch: its token ids.
            log_p: this model's `log_probabilities` of it.
            original: those of the model that KL is taken from, perhaps the same tensor.
            name, first: what the two models are called.

        Raises:
            ValueError: the two have different vocabularies.
        """
        if log_p.shape != original.shape:
            raise ValueError(
                f"model {name!r} gives probabilities to {log_p.shape[-1]} tokens, {first!r} to "
                f"{original.shape[-1]}; their divergence needs models of one vocabulary"
            )
        self.nll.extend((-log_p.gather(-1, batch[:, 1:, None].to(log_p.device)).double().sum((1, 2))).tolist())
        if log_p is original:
            self.kl.extend([0.0] * len(batch))
        else:
            divergence = (original.exp() * (original - log_p.to(original.device))).sum(-1)
            self.kl.extend(divergence.double().sum(-1).tolist())
        self.tokens.extend([batch.shape[1] - 1] * len(batch))

    def evaluation(self, counts: Sequence[int]) -> Evaluation:
        """Of all of it, `counts` sequences to a passage."""
        nll, kl = ([sum(one[i:j]) for i, j in _places(counts)] for one in (self.nll, self.kl))
        tokens = [sum(self.tokens[i:j]) for i, j in _places(counts)]
        passages = tuple(Passage(a / n, b / n, n) for a, b, n in zip(nll, kl, tokens, strict=True))
        total = sum(self.tokens)
        return Evaluation(_exp(sum(self.nll) / total), sum(self.kl) / total, total, passages)


def _places(counts: Sequence[int]) -> Iterator[tuple[int, int]]:
    return pairwise(accumulate(counts, initial=0))


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf  # a ruined model is a result, an OverflowError is not


@torch.inference_mode()
def log_probabilities(model: nn.Module, ids: Tensor, name: str) -> Tensor:
    """log p of every next token, float32 [batch, length - 1, vocabulary].

    Raises:
        ValueError: the model puts out no logits for every token, or some that are not finite.
    """
    logits = getattr(read(model, ids[:, :-1]), "logits", None)
    if logits is None or logits.shape[:-1] != ids[:, :-1].shape:
        raise ValueError(
            f"model {name!r} ({type(model).__name__}) puts out no logits for every token; give a model with a language "
            f"head, e.g. AutoModelForCausalLM"
        )
    logits = logits.float()
    if not (logits.sum().isfinite() or logits.isfinite().all()):  # a sum is finite only of finite numbers, and quick
        raise ValueError(
            f"model {name!r} puts out NaN or infinite logits; check its weights, or a dtype that overflows"
        )
    return torch.log_softmax(logits, -1)
