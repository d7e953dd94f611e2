"""Models in: the embedded one, a folder, a hub id."""

import os
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qkit.checkpoints.files import check_sha256, line_of
from qkit.checkpoints.native import load_checkpoint
from qkit.text import resources

EMBEDDED = {"bookworm-14m": "87817cfded41ecbd81ecb885458e45248d909912d179cf9c70a06c8a27b40b5b"}  # sha256 of the weights
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


def load(name_or_path: str | os.PathLike) -> tuple[nn.Module, Any]:
    """Load a model and its tokenizer, ready to evaluate: float32 (or as `qkit.save` found it), on the CPU, in eval mode.

    Args:
        name_or_path: "bookworm-14m", which comes with qkit; a folder that `qkit.save` or transformers wrote; or a hub id.

    Returns:
        (model, tokenizer); the tokenizer is None for a folder that holds none.

    Raises:
        ValueError: no such model, or a saved one that is truncated, altered or of another format version.
    """
    name = str(name_or_path)
    if name in EMBEDDED:
        folder = resources.folder("data") / name
        check_sha256(folder / "model.safetensors", EMBEDDED[name])
        return _from_transformers(folder)
    folder = Path(name).expanduser()
    if (folder / "qkit.json").is_file():
        return load_checkpoint(folder)
    if (folder / "config.json").is_file():
        try:
            return _from_transformers(folder)
        except Exception as error:  # whatever transformers makes of a file that is missing, cut off or altered
            raise ValueError(
                f"folder {name!r} cannot be loaded by transformers ({line_of(error, 0)}); "
                f"qkit reads safetensors only, whole and unaltered: copy or convert the model again"
            ) from error
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        what = "holds neither qkit.json nor config.json" if folder.exists() else "does not exist"
        raise ValueError(f"folder {name!r} {what}; give a folder that qkit.save or save_pretrained wrote")
    if near := get_close_matches(name, EMBEDDED, cutoff=0.7):
        raise ValueError(f"model {name!r} is not embedded, but {near[0]!r} is; correct the name")
    try:
        return _from_transformers(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model {name!r} is not embedded ({', '.join(EMBEDDED)}), is no folder here, and the hub gave none "
            f"({line_of(error, 0)}); check the spelling, or the network"
        ) from error


def _from_transformers(source: Path | str) -> tuple[nn.Module, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    local = isinstance(source, Path)
    bars = logging.is_progress_bar_enabled()
    if local:
        logging.disable_progress_bar()  # a bar is for a download
    try:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, use_safetensors=True)
    finally:
        if bars:
            logging.enable_progress_bar()
    has_tokenizer = not local or any((source / file).exists() for file in TOKENIZER_FILES)
    return model.eval(), AutoTokenizer.from_pretrained(source) if has_tokenizer else None
