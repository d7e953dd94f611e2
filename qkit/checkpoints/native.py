"""Quantized models on disk: safetensors and JSON, written atomically, refused when they are not whole.

A saved model is a folder:

    qkit.json                       what it is: format version, class, both configs, layers; size and sha256 of every file
                                    that belongs to it, and a sha256 of all this
    weights-<sha256>.safetensors    every tensor; a quantized layer as <layer>.packed, <layer>.scales, ...
    tokenizer-<sha256>/             what transformers writes of a tokenizer, and the config, which it looks at
    config.json, and generation_config.json, tokenizer.json, ...
                                    for people, for the tools of the hub, and for transformers; `load` does not read them

qkit.json is the one commit point. The files that it names lie there before it, under names that no other save overwrites, and
it comes by rename: whatever is interrupted, and whoever else saves into the same folder, the older or the newer save is there
whole. Files that it no longer names are removed afterwards. config.json and its like are copies of what it holds and names,
renewed after it (`qkit.checkpoints.copies`).

The weights are not called model.safetensors on purpose: transformers would load packed codes as if they were floats and only
warn. It loads such a folder by `qkit.integrations.transformers`, and without qkit finds no weights (`qkit.checkpoints.hub`).
Nothing is ever unpickled.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from qkit.checkpoints.copies import CONFIG, GENERATION, renew_copies
from qkit.checkpoints.files import DRAFT, alone, draft_folder, in_words, line_of, make_folder, publish, record_of
from qkit.checkpoints.hub import FILE, LOCK, QUANTIZATION, layer_records, quantization_config
from qkit.checkpoints.layers import layer_from
from qkit.checkpoints.manifest import NAME, VERSION, check_files, file_records, read_manifest, remove_unnamed, seal
from qkit.checkpoints.skeleton import parameters_without_memory
from qkit.checkpoints.tensors import apart, narrowest
from qkit.checkpoints.tokenizer import load_tokenizer
from qkit.model.surgery import swap
from qkit.nn.layers import quantized_layers


def save(model: nn.Module, folder: str | os.PathLike, tokenizer=None) -> Path:
    """Save a model, quantized or not, so that `load` returns the same one, bit for bit.

    Float32 tensors whose every number a 16-bit float holds exactly (the untouched embeddings of a model that was trained
    or published in 16 bits) are written in 16 bits and widened again by `load`.

    Args:
        model: a transformers model.
        folder: made if need be; other files in it are left alone, a model that was saved there is replaced.
        tokenizer: saved beside it.

    Returns:
        The folder.

    Raises:
        ValueError: a model that `load` could not build again.
        OSError: the folder cannot be made or written; what was saved there before is still there.
    """
    check_savable(model, tokenizer)
    name = type(model).__name__
    tensors, description = _describe(model)
    try:  # what load will do; what it could not do is better known now
        again = _skeleton(type(model), seal(description))
        _fill(again, {name: tensor.detach() for name, tensor in tensors.items()}, description)
        _check_constants(model, again)
    except Exception as error:
        raise ValueError(
            f"load could not build this {name} from its config again ({line_of(error, -1)}); "
            f"change what differs, or save its state_dict instead"
        ) from error
    folder = make_folder(folder)
    with in_words(folder, f"what {NAME} there names is whole"), draft_folder(folder) as draft:
        # Names are made of contents. Where somebody else is saving they are ours alone: nobody overwrites or removes them.
        mark = "" if alone(draft) else f"-{draft.name.removeprefix(DRAFT)}"
        placed: set[str] = set()
        try:
            twice = _untied_for_others(again, description["tied"])
            weights = _place_weights(tensors, description, twice, draft, mark, placed)
            words = None if tokenizer is None else _place_tokenizer(tokenizer, model.config, draft, mark, placed)
            manifest = seal({**description, "weights": weights, "tokenizer": words})
            (draft / NAME).write_text(json.dumps(manifest, indent=0), encoding="utf-8")
            publish(draft / NAME, folder / NAME)
        except BaseException:
            if alone(draft):
                remove_unnamed(folder, placed)
            raise
        renew_copies(draft, _for_others)
        if alone(draft):
            remove_unnamed(folder)
    return folder


def check_savable(model: nn.Module, tokenizer: Any) -> None:
    """Refuse what no format could save: a model that is no class of transformers, a tokenizer that is none of its.

    Raises:
        ValueError, TypeError: in one sentence.
    """
    import transformers

    check_no_adapter(model)
    name = type(model).__name__
    if getattr(transformers, name, None) is not type(model):
        raise ValueError(
            f"{name} is no class of transformers, so load could not build it again; save its state_dict instead"
        )
    if tokenizer is not None and not hasattr(tokenizer, "save_pretrained"):
        raise TypeError(
            f"tokenizer is a {type(tokenizer).__name__}; give one of transformers: model, tokenizer = qkit.load(name)"
        )


def check_no_adapter(model: nn.Module) -> None:
    """Refuse a model in which PEFT has wrapped layers: under their names no one would find them again.

    Raises:
        ValueError: naming a layer.
    """
    wrapped = next((name for name, _ in model.named_modules() if name.endswith(".base_layer")), None)
    if wrapped is not None:
        raise ValueError(
            f"{wrapped.removesuffix('.base_layer')} has an adapter beside it; save what merge_and_unload() or unload() returns, "
            f"and the adapter by the PeftModel's own save_pretrained"
        )


def _describe(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Every tensor of a model by name, and the manifest without its files."""
    layers = quantized_layers(model)
    # tie_weights of transformers hangs the embedding's weight on a quantized head, which does not read it
    strays = {f"{name}.weight" for name in layers}
    state = model.state_dict(keep_vars=True)
    derived = {name: buffer for name, buffer in model.named_buffers() if name not in state}
    tensors = {name: tensor for name, tensor in {**state, **derived}.items() if name not in strays}
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise ValueError(
                f"{name} has no numbers, it is on the device meta; load all of the model into memory first"
            )
    first_name: dict[Any, str] = {}
    tied = {}
    for name, tensor in tensors.items():
        if (first := first_name.setdefault(_memory(tensor), name)) != name:
            tied[name] = first
    config, generation = cast(Any, model.config), cast(Any, getattr(model, "generation_config", None))
    own = {key: value for key, value in config.to_dict().items() if key not in (QUANTIZATION, FILE)}  # of where it lay
    own["dtype"] = str(cast(Any, model).dtype).removeprefix("torch.")  # a config may say nothing, or what was once true
    return tensors, {
        "format": "qkit",
        "version": VERSION,
        "class": type(model).__name__,
        "config": {**own, "_name_or_path": ""},  # where it lay is nobody else's business
        "attention": config._attn_implementation,  # to_dict leaves it out, and it decides the last bits
        "generation_config": generation.to_dict() if generation else None,
        "layers": layer_records(model),
        "tied": tied,
        "widened": {},
        "derived": sorted(derived),  # buffers that a state dict leaves out (rotary frequencies), in the dtype they had
    }


def _check_constants(model: nn.Module, again: nn.Module) -> None:
    """Refuse a model whose modules compute with other numbers than those that its config makes: an epsilon, a scaling.

    They are no tensors, so no file would hold them. How much is dropped does not count, a loaded model drops nothing.
    """
    own = dict(model.named_modules(remove_duplicate=False))  # what is shared here may be twice there
    for name, made in again.named_modules(remove_duplicate=False):
        module = own[name]
        for key, value in vars(module).items():
            other = vars(made).get(key)
            if isinstance(value, float) and isinstance(other, float) and value != other and not _drops(module, key):
                raise ValueError(f"{name}.{key} is {value:g}, and its config makes it {other:g}")


def _drops(module: nn.Module, key: str) -> bool:
    return isinstance(module, nn.modules.dropout._DropoutNd) or "drop" in key


def _memory(tensor: Tensor) -> Any:
    """Equal for tensors that are one: the same object, or the same view of the same memory."""
    if not tensor.numel():
        return id(tensor)
    view = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.device)
    return (*view, isinstance(tensor, nn.Parameter))


def _untied_for_others(again: nn.Module, tied: dict[str, str]) -> set[str]:
    """Of the names that share another's numbers those of which transformers does not know it (a head that was tied by hand):
    it would make up what it does not find under its own name.

    Args:
        again: the model as its config makes it.
    """
    known = getattr(again, "all_tied_weights_keys", {})

    def owner(name: str) -> nn.Module:
        return again.get_submodule(name.rpartition(".")[0])

    return {
        alias
        for alias, name in tied.items()
        if owner(alias) is not owner(name) and known.get(alias) != name and known.get(name) != alias
    }


def _place_weights(
    tensors: dict[str, Tensor],
    description: dict[str, Any],
    twice: set[str],
    draft: Path,
    mark: str,
    placed: set[str],
) -> dict[str, Any]:
    """Write the weights file into the folder of the draft; note in `description` what it narrows; return its record.

    Args:
        twice: names that are written though their numbers are there under another.
    """
    codes = {f"{name}.{part}" for name, layer in description["layers"].items() for part in layer["parts"]}
    stored = {}
    for name, tensor in tensors.items():
        if name in description["tied"] and name not in twice:
            continue
        stored[name] = tensor.detach() if name in codes else narrowest(tensor.detach())
        if stored[name].dtype != tensor.dtype:
            description["widened"][name] = str(tensor.dtype).removeprefix("torch.")
    path = draft / "weights.safetensors"
    save_file(apart(stored), path)
    record = record_of(path)
    name = f"weights-{record['sha256'][:12]}{mark}.safetensors"
    placed.add(name)
    publish(path, draft.parent / name)
    return {"file": name, **record}


def _place_tokenizer(tokenizer: Any, config: Any, draft: Path, mark: str, placed: set[str]) -> dict[str, Any]:
    """Write a folder of the tokenizer's files into the folder of the draft; return its record."""
    path = draft / "tokenizer"
    tokenizer.save_pretrained(path)
    config.to_json_file(path / "config.json")  # AutoTokenizer reads the kind of model
    files = file_records(path)
    name = f"tokenizer-{hashlib.sha256(json.dumps(files).encode()).hexdigest()[:12]}{mark}"
    placed.add(name)
    for file in files:
        target = draft.parent / name / file
        target.parent.mkdir(parents=True, exist_ok=True)
        publish(path / file, target)
    return {"folder": name, "files": files}


def _for_others(manifest: dict[str, Any]) -> dict[str, str]:
    """The files that transformers reads, made of a manifest."""
    from transformers import GenerationConfig

    texts = {CONFIG: _hub_config(manifest).to_json_string()}
    if manifest["generation_config"]:
        texts[GENERATION] = GenerationConfig.from_dict(manifest["generation_config"]).to_json_string()
    return texts


def load_checkpoint(folder: Path) -> tuple[nn.Module, Any]:
    """The model and the tokenizer (or None) that `save` wrote into `folder`; ValueError if it is not whole and unaltered."""
    while True:
        before = _manifest_bytes(folder)
        try:
            return _load(folder, read_manifest(folder))
        except ValueError:
            if _manifest_bytes(folder) == before:
                raise
            # another save was completed meanwhile, and has removed what this one was reading


def _manifest_bytes(folder: Path) -> bytes:
    path = folder / NAME
    return path.read_bytes() if path.is_file() else b""


def _load(folder: Path, manifest: dict[str, Any]) -> tuple[nn.Module, Any]:
    import transformers

    check_files(folder, manifest)
    cls = getattr(transformers, manifest["class"], None)
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        raise ValueError(
            f"{folder} holds a {manifest['class']!r}, which this transformers does not have; upgrade transformers"
        )
    weights = folder / manifest["weights"]["file"]
    try:
        model = _skeleton(cls, manifest)
        with safe_open(weights, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is not a mapping)
        for name, dtype in manifest["widened"].items():
            state[name] = state[name].to(getattr(torch, dtype))
        for alias, name in manifest["tied"].items():
            state[alias] = state[name]
        _fill(model, state, manifest)
    except Exception as error:  # an altered manifest may break anything between the config and the last tensor
        raise ValueError(
            f"{folder}: qkit.json and {weights.name} do not fit each other ({line_of(error, -1)}); "
            f"one of them was altered: save the model again"
        ) from error
    tokenizer = manifest["tokenizer"]
    where = folder / tokenizer["folder"] if isinstance(tokenizer, dict) else folder
    return model.eval(), load_tokenizer(where) if tokenizer else None


def _config(manifest: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    config = dict(manifest["config"])
    if manifest["attention"] in ("eager", "sdpa"):  # the ones that every machine has
        config["attn_implementation"] = manifest["attention"]
    return AutoConfig.for_model(config.pop("model_type"), **config)


def _hub_config(manifest: dict[str, Any]) -> Any:
    """The config with what transformers has to know of this folder."""
    config, weights = _config(manifest), manifest["weights"]
    if manifest["layers"]:
        config.quantization_config = quantization_config(manifest["layers"], manifest["derived"], weights)
    setattr(config, FILE, LOCK if manifest["layers"] else weights["file"])
    return config


def _skeleton(cls: type[nn.Module], manifest: dict[str, Any]) -> nn.Module:
    """The model that a manifest describes, before any layer is quantized, and without its weights."""
    from transformers import GenerationConfig

    config = _config(manifest)
    with parameters_without_memory():
        model = cls(config)
    if manifest["generation_config"]:
        cast(Any, model).generation_config = GenerationConfig.from_dict(manifest["generation_config"])
    return model


def _fill(model: nn.Module, state: dict[str, Tensor], manifest: dict[str, Any]) -> None:
    """Put the quantized layers and every tensor in their places; anything missing or left over is an error."""
    layers = {}
    for name, record in manifest["layers"].items():
        layers[name] = layer = layer_from(record, state, name)
        old = model.get_submodule(name)
        shape = tuple(cast(Tensor, old.weight).shape)
        expected = shape if isinstance(old, nn.Linear) else shape[::-1]
        if layer.qtensor.shape != expected:
            raise ValueError(f"{name} is {layer.qtensor.shape} in the file, {expected} in the config")
    swap(model, layers)
    for name in manifest["derived"]:
        owner, _, leaf = name.rpartition(".")
        model.get_submodule(owner).register_buffer(leaf, state.pop(name), persistent=False)
    model.load_state_dict(state, strict=True, assign=True)
    for alias, name in manifest["tied"].items():
        owner, _, leaf = alias.rpartition(".")
        source, _, source_leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, getattr(model.get_submodule(source), source_leaf))
