"""Calibration text that a model writes itself (LLM-QAT, Liu et al. 2023, arXiv 2305.17888)."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from qkit.engine.prepare import check_model
from qkit.engine.progress import progress_bar
from qkit.model.facts import check_ids, chunk_length, why_no_text
from qkit.model.hooks import evaluating
from qkit.text.tokens import CHUNKS, begin_token, check_count

WRITERS = 128  # texts written side by side, which is much faster; each keeps all it has said in mind (key-value cache)


@torch.no_grad()
def own_text(
    model: nn.Module, tokenizer, chunks: int = CHUNKS, *, seed: int = 0, progress: bool | None = None
) -> Tensor:
    """Text that `model` writes itself, each token drawn from its own distribution, as ids that calibration takes.

    All that a model has learned to say is in it, in the shares in which it says it: calibration text for what no text is at
    hand for, and as much as one likes. Give it the original, not the quantized model.

        ids = torch.cat([calibration_chunks(text, tokenizer), own_text(original, tokenizer, 512)])

    Returns:
        int64 [chunks, 1 + length], BOS first, on the CPU; the same for the same seed, on one machine.

    Raises:
        ValueError: less than one chunk is asked for, or the model's output is not finite.
    """
    check_model(model)
    check_count("chunks", chunks, "write")
    begin = begin_token(tokenizer)
    check_ids(model, torch.tensor([[begin]]))
    if (why := why_no_text(model)) is not None:
        raise ValueError(f"{type(model).__name__} cannot write: {why}; give a decoder of text")
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    length, texts = chunk_length(model), []
    counts = [min(WRITERS, chunks - start) for start in range(0, chunks, WRITERS)]
    with progress_bar(progress, "writing", total=len(counts) * length) as bar, evaluating(model):
        for count in counts:
            tokens, past = [torch.full((count, 1), begin, dtype=torch.int64, device=device)], None
            for _ in range(length):
                output = _write(model, tokens[-1], past)
                past, logits = output.past_key_values, output.logits[:, -1].float()
                if not torch.isfinite(logits).all():
                    raise ValueError("the model puts out NaN or infinite logits; check it with qkit.perplexity")
                tokens.append(torch.multinomial(logits.softmax(-1), 1, generator=generator))
                bar.update()
            texts.append(torch.cat(tokens, 1).cpu())
    return torch.cat(texts)


def _write(model: nn.Module, ids: Tensor, past: Any) -> Any:
    """What the model puts out for the last tokens, with what it keeps in mind of those before."""
    takes = inspect.signature(model.forward).parameters.values()
    caches = any(p.name == "past_key_values" or p.kind is p.VAR_KEYWORD for p in takes)
    output = model(input_ids=ids, past_key_values=past, use_cache=True) if caches else None
    if getattr(output, "logits", None) is None or getattr(output, "past_key_values", None) is None:
        raise ValueError(
            f"{type(model).__name__} does not predict tokens from a cache of keys and values, which writing needs; give a "
            f"decoder with a language head, e.g. AutoModelForCausalLM"
        )
    return output
