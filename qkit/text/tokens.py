"""Text to the chunks of tokens that calibration and evaluation work on."""

import torch
from torch import Tensor

CHUNK_LENGTH = 511  # with the BOS before it, 512 positions


def token_chunks(
    text: str | list[str] | Tensor, tokenizer=None, length: int = CHUNK_LENGTH, max_chunks: int | None = None
) -> Tensor:
    """Cut a text into consecutive chunks of `length` tokens, each behind a BOS; the tail that fills no chunk is left out.

    Args:
        text: one text, several (joined by a blank line), or token ids [sequences, length], which come back as they are.
        tokenizer: a transformers tokenizer; not needed for ids.
        length: tokens in a chunk, the BOS not counted.
        max_chunks: at most so many, from the beginning.

    Returns:
        int64 [chunks, 1 + length].

    Raises:
        ValueError: the text is shorter than one chunk.
    """
    if max_chunks is not None and max_chunks < 1:
        raise ValueError(f"max_chunks={max_chunks} leaves nothing to read; give at least 1, or None for all")
    if isinstance(text, Tensor):
        if text.dim() != 2 or text.is_floating_point() or len(text) < 1 or text.shape[1] < 2:
            raise ValueError(
                f"token ids are {text.dtype} {tuple(text.shape)}; give integers [sequences, length] of at least 2 tokens each"
            )
        return text[:max_chunks]
    if tokenizer is None:
        raise ValueError("a text needs a tokenizer; give tokenizer=, or token ids instead of the text")
    whole = text if isinstance(text, str) else "\n\n".join(text)
    ids = tokenizer(whole, add_special_tokens=False, verbose=False)["input_ids"]
    count = len(ids) // length
    if not count:
        raise ValueError(
            f"the text has {len(ids)} tokens, one chunk takes {length}; give a longer text (a file: qkit.texts(path))"
        )
    chunks = torch.tensor(ids[: count * length]).reshape(count, length)[:max_chunks]
    return torch.cat([torch.full((len(chunks), 1), begin_token(tokenizer)), chunks], 1)


def begin_token(tokenizer) -> int:
    """The id put before each chunk: BOS, or EOS in families that part documents with it (Qwen)."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise ValueError(f"{type(tokenizer).__name__} has neither a BOS nor an EOS token; set tokenizer.bos_token")
