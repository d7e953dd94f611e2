"""Let a model talk."""

from collections.abc import Callable

import torch
from torch import nn

from qkit.engine.prepare import check_model
from qkit.text.tokens import check_tokenizer


@torch.inference_mode()
def complete(model: nn.Module, tokenizer, prompt: str, tokens: int = 40) -> str:
    """`prompt` and the `tokens` most probable tokens after it, one by one (greedy, so that models can be compared)."""
    check_model(model)
    check_tokenizer(tokenizer)
    ids = tokenizer(prompt, return_tensors="pt").input_ids.to(next(model.parameters()).device)
    write: Callable[..., torch.Tensor] = model.generate  # pyright: ignore[reportAssignmentType]
    out = write(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=tokenizer.eos_token_id,
    )
    return tokenizer.decode(out[0], skip_special_tokens=True)
