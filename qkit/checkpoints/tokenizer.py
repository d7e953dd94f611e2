"""A tokenizer from a folder or the hub, by transformers; what goes wrong is said in one sentence."""

from pathlib import Path
from typing import Any

from qkit.checkpoints.files import line_of

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer's files."""
    return any((folder / file).exists() for file in TOKENIZER_FILES)


def load_tokenizer(source: Path | str) -> Any:
    """The tokenizer of a folder or hub id. Code that comes with it is not run.

    Raises:
        ValueError: its files are missing, cut off or altered.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:
        raise ValueError(
            f"the tokenizer of {str(source)!r} cannot be loaded ({line_of(error, 0)}): tokenizer.json or "
            f"tokenizer_config.json is missing or was altered; copy or save it again"
        ) from error
