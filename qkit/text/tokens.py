"""Text to the chunks of tokens that calibration and evaluation work on."""

from collections.abc import Sequence

import torch
from torch import Tensor

CHUNK_LENGTH = 511  # with the BOS before it, 512 positions
CHUNKS = 128  # of calibration, as in the GPTQ, AWQ and SmoothQuant papers


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
    if max_chunks is not None:
        check_count("max_chunks", max_chunks, "read", ", or None for all")
    if isinstance(text, Tensor):
        return check_ids(text)[:max_chunks]
    text = check_text(text, "text")
    ids = _encoded(text if isinstance(text, str) else "\n\n".join(text), tokenizer)
    if len(ids) < length:
        raise ValueError(
            f"the text has {len(ids)} tokens, one chunk takes {length}; give a longer text (a file: qkit.texts(path))"
        )
    return _cut(ids, tokenizer, length)[:max_chunks]


def passage_chunks(
    text: str | list[str] | Tensor, tokenizer=None, length: int = CHUNK_LENGTH, max_chunks: int | None = None
) -> tuple[Tensor, list[int]]:
    """The chunks of `token_chunks`, and how many of them belong to each passage.

    Passages are what a text consists of that could as well have been others. Texts in a list that all fill a chunk are
    passages, and each is cut by itself: no chunk begins in one and ends in the next. Of any other text each chunk is one.

    Returns:
        int64 [chunks, 1 + length], and counts that add up to chunks; `max_chunks` may cut the last passage short.
    """
    texts = [] if isinstance(text, Tensor | str) else check_text(text, "text")
    encoded = [_encoded(one, tokenizer) for one in texts] if len(texts) > 1 else []
    if not encoded or min(map(len, encoded)) < length:
        chunks = token_chunks(text, tokenizer, length, max_chunks)
        return chunks, [1] * len(chunks)
    if max_chunks is not None:
        check_count("max_chunks", max_chunks, "read", ", or None for all")
    parts = [_cut(ids, tokenizer, length) for ids in encoded]
    chunks = torch.cat(parts)[:max_chunks]
    counts, left = [], len(chunks)
    for part in parts:
        if left:
            counts.append(min(len(part), left))
            left -= counts[-1]
    return chunks, counts


def _encoded(text: str, tokenizer) -> list[int]:
    """The tokens of one text, with nothing put before or after them."""
    if tokenizer is None:
        raise ValueError("a text needs a tokenizer; give tokenizer=, or token ids instead of the text")
    check_tokenizer(tokenizer)
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _cut(ids: list[int], tokenizer, length: int) -> Tensor:
    """int64 [chunks, 1 + length], a BOS before each."""
    count = len(ids) // length
    chunks = torch.tensor(ids[: count * length], dtype=torch.int64).reshape(count, length)
    return torch.cat([torch.full((count, 1), begin_token(tokenizer), dtype=torch.int64), chunks], 1)


def calibration_chunks(
    calibration: str | Sequence[str] | Tensor, tokenizer=None, length: int = CHUNK_LENGTH, max_chunks: int = CHUNKS
) -> Tensor:
    """At most `max_chunks` chunks of `length` tokens behind a BOS, int64 [chunks, 1 + length].

    They are spread evenly over each text, and several texts get equal shares, so that neither the first pages nor the
    longest text decide alone. The same arguments give the same chunks. Token ids [sequences, length] are taken as they are.
    """
    check_count("max_chunks", max_chunks, "read")
    if isinstance(calibration, Tensor):
        return token_chunks(calibration)
    calibration = check_text(calibration, "calibration")
    texts = [calibration] if isinstance(calibration, str) else calibration
    if not any(text.strip() for text in texts):
        raise ValueError(
            "calibration is empty; give a text of the kind the model will read, e.g. qkit.texts('python-docs')"
        )
    if len(texts) > max_chunks:
        texts = ["\n\n".join(texts)]  # many short samples: one text
    share = [max_chunks // len(texts) + (i < max_chunks % len(texts)) for i in range(len(texts))]
    picked = []
    for text, count in zip(texts, share, strict=True):
        chunks = token_chunks(text, tokenizer, length)
        places = torch.linspace(0, len(chunks) - 1, min(count, len(chunks)), dtype=torch.float32)
        picked.append(chunks[places.round().long()])
    return torch.cat(picked)


def check_text(text: object, name: str) -> str | list[str]:
    """A text, or several as a list. Refuses every other form in which tokens travel, saying how to make ids of it.

    Raises:
        TypeError: a dictionary, an array, a loader, lists of ids, ...
    """
    if isinstance(text, str):
        return text
    if isinstance(text, list | tuple) and all(isinstance(part, str) for part in text):
        return list(text)
    kind = type(text).__name__
    if isinstance(text, list | tuple):
        odd = next(part for part in text if not isinstance(part, str))
        kind = f"{kind} that holds a {type(odd).__name__}"
    raise TypeError(
        f"{name} is a {kind}; give a text, a list of texts (with tokenizer=), or token ids as one integer tensor "
        f'[sequences, length], e.g. tokenizer(texts, return_tensors="pt").input_ids'
    )


def check_count(name: str, count: object, verb: str, other: str = "") -> None:
    """Refuse what is no whole number from 1, of things to `verb`; `other` is what else may be given."""
    if not isinstance(count, int):
        raise TypeError(f"{name}={count!r} is no whole number; give at least 1{other}")
    if count < 1:
        raise ValueError(f"{name}={count!r} leaves nothing to {verb}; give at least 1{other}")


def check_tokenizer(tokenizer: object) -> None:
    """Refuse what is no tokenizer of transformers: its name, one of another library, a model in its place."""
    if not hasattr(tokenizer, "bos_token_id"):
        raise TypeError(
            f"tokenizer is a {type(tokenizer).__name__}; give one of transformers: model, tokenizer = qkit.load(name)"
        )


def check_ids(ids: Tensor) -> Tensor:
    """Token ids [sequences, length] as int64; whether a model knows them, `qkit.model.facts.check_ids` says.

    Raises:
        ValueError: another shape, a dtype that is no whole number, or numbers that are not there one beside the other.
    """
    if ids.is_nested or ids.is_meta or ids.is_quantized or ids.layout != torch.strided:
        form = "nested" if ids.is_nested else "without data" if ids.is_meta else "sparse or quantized"
        raise ValueError(f"token ids are a tensor that is {form}; give a plain tensor of integers [sequences, length]")
    whole = not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
    if not whole or ids.dim() != 2 or len(ids) < 1 or ids.shape[1] < 2:
        raise ValueError(
            f"token ids are {ids.dtype} {tuple(ids.shape)}; give integers [sequences, length] of at least 2 tokens each"
        )
    return ids.long()


def begin_token(tokenizer) -> int:
    """The id put before each chunk: BOS, or EOS in families that part documents with it (Qwen)."""
    check_tokenizer(tokenizer)
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise ValueError(f"{type(tokenizer).__name__} has neither a BOS nor an EOS token; set tokenizer.bos_token")
