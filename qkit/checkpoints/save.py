"""Models out: in qkit's own format, or in one that others read."""

import os
from pathlib import Path
from typing import Any, overload

from torch import nn

from qkit.checkpoints import native
from qkit.checkpoints.format import SaveReport
from qkit.checkpoints.formats import FORMATS, check_model, format_named
from qkit.nn.layers import quantized_layers
from qkit.text.resources import expanded


@overload
def save(model: nn.Module, folder: str | os.PathLike, tokenizer: Any = None, format: None = None) -> Path: ...


@overload
def save(model: nn.Module, folder: str | os.PathLike, tokenizer: Any = None, *, format: str) -> SaveReport: ...


def save(
    model: nn.Module, folder: str | os.PathLike, tokenizer: Any = None, format: str | None = None
) -> Path | SaveReport:
    """Save a model, so that `load` returns the same one; or so that another library loads it.

    In qkit's own format every scheme, and unquantized models, come back bit for bit (`qkit.checkpoints.native`). In a
    format of others the codes and scales go over as they are, nothing is quantized again; what the other side computes
    differently is said in the report.

    Args:
        model: a transformers model.
        folder: made if need be; for "gguf" a folder or the name of a file.
        tokenizer: saved beside it.
        format: None, or a name of `qkit.checkpoints.formats`: "gptq", "awq", "bitsandbytes", "compressed-tensors", "gguf",
            "onnx".

    Returns:
        The folder; with a format a `SaveReport`, which is a path as well.

    Raises:
        ValueError: no such format; one that cannot hold the model or a layer of it (the sentence says which can); a model that
            `load` could not build again. Nothing is written then.
        OSError: the folder cannot be made or written.
    """
    form = None if format is None else format_named(format)
    for other in FORMATS.values():
        if other is not form and other.suffix and os.fspath(folder).endswith(other.suffix):
            mine = "qkit's own format" if form is None else f"format {form.name!r}"
            raise ValueError(
                f"{os.fspath(folder)!r} is the name of a {other.name} file and {mine} is a folder; "
                f"set format={other.name!r}, or give another name"
            )
    if form is None:
        return native.save(model, folder, tokenizer)
    native.check_savable(model, tokenizer)
    layers = quantized_layers(model)
    check_model(form, model, layers)
    path = form.write(model, expanded(folder), tokenizer)
    return SaveReport(path, form.name, len(layers), form.lost(layers))
