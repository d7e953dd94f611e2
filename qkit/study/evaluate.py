"""How good a model still is: perplexity, and the KL divergence to the model it was made from.

Perplexity is exp of the mean negative log-likelihood of the next token, over consecutive chunks of 511 tokens, each behind
a BOS: the same everywhere in qkit, so that two figures can be compared. A model whose context is shorter than 512 is given
chunks that fit it.

KL(original || quantized) is averaged over the same tokens, in nats. Perplexity can stay the same, or even fall, while the
model says other things; KL cannot (it is 0 only where both give the same probabilities).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qkit.engine.prepare import check_model
from qkit.engine.progress import progress_bar
from qkit.model.facts import check_ids, chunk_length, read, vocabulary_size, why_no_text
from qkit.model.hooks import evaluating
from qkit.text.tokens import token_chunks

LOGITS_AT_ONCE = 2**24  # 64 MB in float32: small enough for a laptop, large enough to keep the cores busy


@dataclass(frozen=True)
class Evaluation:
    """How one model did on one text."""

    perplexity: float
    kl: float  # nats per token, from the first model that was evaluated beside it; 0 for that one
    tokens: int  # predicted tokens


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
    and never stored.

    Raises:
        ValueError: the text is shorter than a chunk, a model that predicts no tokens, or one whose output is not finite.
    """
    for model in models.values():
        check_model(model)
    length = min(chunk_length(model) for model in models.values())
    ids = token_chunks(text, tokenizer, length, max_chunks)
    vocabulary = max(vocabulary_size(m) or 1 for m in models.values())
    for name, model in models.items():
        if (why := why_no_text(model)) is not None:
            raise ValueError(f"model {name!r} cannot be asked for the next token: {why}; give a decoder of text")
        check_ids(model, ids)
    batch_size = max(1, LOGITS_AT_ONCE // (vocabulary * ids.shape[1]))
    nll, kl = dict.fromkeys(models, 0.0), dict.fromkeys(models, 0.0)
    batches = ids.split(batch_size)
    with evaluating(*models.values()):  # dropout would be measured too
        for batch in progress_bar(progress, "evaluating", "batch", over=batches):
            original = None
            for name, model in models.items():
                log_p = _log_probabilities(model, batch, name)
                original = log_p if original is None else original
                if log_p.shape != original.shape:
                    raise ValueError(
                        f"model {name!r} gives probabilities to {log_p.shape[-1]} tokens, {next(iter(models))!r} to "
                        f"{original.shape[-1]}; their divergence needs models of one vocabulary"
                    )
                nll[name] -= float(log_p.gather(-1, batch[:, 1:, None].to(log_p.device)).double().sum())
                if log_p is not original:
                    kl[name] += float((original.exp() * (original - log_p.to(original.device))).sum(-1).double().sum())
    tokens = ids[:, 1:].numel()
    return {name: Evaluation(_exp(nll[name] / tokens), kl[name] / tokens, tokens) for name in models}


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf  # a ruined model is a result, an OverflowError is not


def _log_probabilities(model: nn.Module, ids: Tensor, name: str) -> Tensor:
    """log p of every next token, float32 [batch, length - 1, vocabulary]."""
    logits = getattr(read(model, ids[:, :-1]), "logits", None)
    if logits is None or logits.shape[:-1] != ids[:, :-1].shape:
        raise ValueError(
            f"model {name!r} ({type(model).__name__}) puts out no logits for every token; give a model with a language "
            f"head, e.g. AutoModelForCausalLM"
        )
    if not torch.isfinite(logits).all():
        raise ValueError(
            f"model {name!r} puts out NaN or infinite logits; check its weights, or a dtype that overflows"
        )
    return torch.log_softmax(logits.float(), -1)
