"""Quantized models on disk: safetensors and JSON, written atomically, refused when they are not whole.

A saved model is a folder:

    qkit.json                       what it is: format version, class, config, layers, and size and sha256 of the weights
    weights-<sha256>.safetensors    every tensor; a quantized layer as <layer>.packed, <layer>.scales, ...
    config.json, tokenizer files    as transformers writes them

qkit.json is written last and by rename, and it names the weights that it belongs to, so a save that is interrupted leaves
the model that was there. The weights are not called model.safetensors on purpose: transformers would load packed codes as
if they were floats and only warn; so it says that there is no such file. Nothing is ever unpickled.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from qkit.checkpoints.files import check_sha256, line_of, sha256
from qkit.model.surgery import swap
from qkit.nn.qlinear import MODULES, QLinear, quantized_layers
from qkit.numerics.codebook_qtensor import qtensor_from

FORMAT_VERSION = 2  # 1 knew QLinear and QTensor only, and is read as well
MANIFEST_KEYS = {
    "class",
    "config",
    "attention",
    "generation_config",
    "weights",
    "tokenizer",
    "layers",
    "tied",
    "widened",
    "derived",
}


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
    """
    import transformers

    name = type(model).__name__
    if getattr(transformers, name, None) is not type(model):
        raise ValueError(
            f"{name} is no class of transformers, so load could not build it again; save its state_dict instead"
        )
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".qkit-", dir=folder))
    try:
        manifest = {**_write_weights(model, draft), "tokenizer": tokenizer is not None}
        model.config.to_json_file(draft / "config.json")
        if tokenizer is not None:
            tokenizer.save_pretrained(draft)
        with (draft / "qkit.json").open("w") as file:
            json.dump(manifest, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        # safetensors lets only the owner read what it writes
        shutil.copymode(draft / "qkit.json", draft / manifest["weights"]["file"])
        for path in sorted(draft.iterdir(), key=lambda path: path.name == "qkit.json"):  # qkit.json last: it commits
            path.replace(folder / path.name)
        for stale in folder.glob("weights-*.safetensors"):
            if stale.name != manifest["weights"]["file"]:
                stale.unlink()
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _write_weights(model: nn.Module, draft: Path) -> dict[str, Any]:
    """Write the weights file into `draft` and return the manifest."""
    tensors: dict[str, Tensor] = {}
    first_name: dict[int, str] = {}
    tied: dict[str, str] = {}
    widened: dict[str, str] = {}
    layers = quantized_layers(model)
    codes = {f"{name}.{part}" for name, layer in layers.items() for part in layer.parts}
    state = model.state_dict(keep_vars=True)
    derived = {name: buffer for name, buffer in model.named_buffers() if name not in state}
    for name, tensor in {**state, **derived}.items():
        if id(tensor) in first_name:
            tied[name] = first_name[id(tensor)]
            continue
        first_name[id(tensor)] = name
        stored = tensor.detach() if name in codes else _narrowest(tensor.detach())
        if stored.dtype != tensor.dtype:
            widened[name] = str(tensor.dtype).removeprefix("torch.")
        tensors[name] = stored.contiguous().cpu()
    path = draft / "weights.safetensors"
    save_file(tensors, path)
    digest = sha256(path)
    final = path.with_name(f"weights-{digest[:12]}.safetensors")
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    path.rename(final)
    return {
        "format": "qkit",
        "version": FORMAT_VERSION,
        "class": type(model).__name__,
        "config": model.config.to_dict(),
        "attention": model.config._attn_implementation,  # to_dict leaves it out, and it decides the last bits
        "generation_config": model.generation_config.to_dict() if getattr(model, "generation_config", None) else None,
        "weights": {"file": final.name, "bytes": final.stat().st_size, "sha256": digest},
        "layers": {name: layer_record(layer) for name, layer in layers.items()},
        "tied": tied,
        "widened": widened,
        "derived": sorted(derived),  # buffers that a state dict leaves out (rotary frequencies), in the dtype they had
    }


def layer_record(layer: QLinear) -> dict[str, Any]:
    """A quantized layer without its tensors; `layer_from` is the inverse."""
    record = {"module": type(layer).__name__, **layer.qtensor.meta(), "parts": list(layer.parts)}
    return {
        **record,
        "bias": layer.bias is not None,
        **({"settings": settings} if (settings := layer.settings()) else {}),
    }


def layer_from(record: dict[str, Any], state: dict[str, Tensor], name: str) -> QLinear:
    """The layer `name` of a record and the tensors of the file; the bias has no memory yet. Version 1 knew no modules."""
    meta = dict(record)
    module, settings = MODULES[meta.pop("module", "QLinear")], meta.pop("settings", {})
    parts, bias = {part: state[f"{name}.{part}"] for part in meta.pop("parts")}, meta.pop("bias")
    q = qtensor_from(parts, meta)
    if f"{name}.input_scale" in state:
        settings = {**settings, "input_scale": state[f"{name}.input_scale"]}
    return module(q, nn.Parameter(torch.empty(q.shape[0], device="meta")) if bias else None, **settings)


def _narrowest(tensor: Tensor) -> Tensor:
    """`tensor` in a 16-bit float format that holds every one of its numbers exactly, if there is one."""
    if tensor.dtype == torch.float32:
        for dtype in (torch.float16, torch.bfloat16):
            narrow = tensor.to(dtype)
            if torch.equal(narrow.float(), tensor):
                return narrow
    return tensor


def load_checkpoint(folder: Path) -> tuple[nn.Module, Any]:
    """The model and the tokenizer (or None) that `save` wrote into `folder`; ValueError if it is not whole and unaltered."""
    import transformers
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedModel

    manifest = _read_manifest(folder)
    weights = folder / manifest["weights"]["file"]
    _check_weights(weights, manifest["weights"])
    cls = getattr(transformers, str(manifest["class"]), None)
    if not (isinstance(cls, type) and issubclass(cls, PreTrainedModel)):
        raise ValueError(
            f"{folder} holds a {manifest['class']!r}, which this transformers does not have; upgrade transformers"
        )
    try:
        config = dict(manifest["config"])
        if manifest["attention"] in ("eager", "sdpa"):  # the ones that every machine has
            config["attn_implementation"] = manifest["attention"]
        config = AutoConfig.for_model(config.pop("model_type"), **config)
        with _parameters_without_memory():
            model = cls(config)
        if manifest["generation_config"]:
            model.generation_config = GenerationConfig.from_dict(manifest["generation_config"])
        _fill(model, weights, manifest)
    except Exception as error:  # an altered manifest may break anything between the config and the last tensor
        raise ValueError(
            f"{folder}: qkit.json and {weights.name} do not fit each other ({line_of(error, -1)}); "
            f"one of them was altered: save the model again"
        ) from error
    return model.eval(), AutoTokenizer.from_pretrained(folder) if manifest["tokenizer"] else None


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "qkit.json"
    try:
        manifest = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): truncated or altered; copy or save the model again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != "qkit":
        raise ValueError(f"{path} is not a manifest of qkit's; give a folder that qkit.save wrote")
    if manifest.get("version") not in (1, FORMAT_VERSION):
        raise ValueError(
            f"{path} has format version {manifest.get('version')!r}, this qkit reads 1 and {FORMAT_VERSION}; "
            f"load it with the qkit that wrote it, or save it again with this one"
        )
    missing = MANIFEST_KEYS - set(manifest)
    weights = manifest.get("weights")
    if missing or not isinstance(weights, dict) or not {"file", "bytes", "sha256"} <= set(weights):
        what = ", ".join(sorted(missing)) or "parts of weights"
        raise ValueError(f"{path} lacks {what}; it was altered: save the model again")
    if Path(str(weights["file"])).name != weights["file"]:
        raise ValueError(f"{path} names the weights {weights['file']!r}, no file of its own folder; it was altered")
    return manifest


def _check_weights(path: Path, expected: dict[str, Any]) -> None:
    if not path.is_file():
        raise ValueError(f"{path} is missing; copy the whole folder again")
    size = path.stat().st_size
    if size != expected["bytes"]:
        what = "truncated" if size < expected["bytes"] else "altered"
        raise ValueError(f"{path} has {size:,} bytes where qkit.json says {expected['bytes']:,}: {what}; copy it again")
    check_sha256(path, expected["sha256"])


@contextmanager
def _parameters_without_memory() -> Iterator[None]:
    """Inside, new parameters have a shape and no memory, while buffers (rotary frequencies) are computed as always.

    A 7B model in float32 is 28 GB: it must not be allocated only to be thrown away for 4 GB of codes.
    """
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            parameter = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = register_on_meta
    try:
        yield
    finally:
        nn.Module.register_parameter = register


def _fill(model: nn.Module, weights: Path, manifest: dict[str, Any]) -> None:
    """Put the quantized layers and every tensor of the file in their places; anything missing or left over is an error."""
    with safe_open(weights, "pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is not a mapping)
    for name, dtype in manifest["widened"].items():
        state[name] = state[name].to(getattr(torch, dtype))
    for alias, name in manifest["tied"].items():
        state[alias] = state[name]
    layers = {}
    for name, record in manifest["layers"].items():
        layers[name] = layer = layer_from(record, state, name)
        old = model.get_submodule(name)
        expected = tuple(old.weight.shape) if isinstance(old, nn.Linear) else tuple(old.weight.shape)[::-1]
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
