"""Folders of the hub's layout that hold a quantized model: model.safetensors, config.json with a quantization_config.

GPTQ, AWQ, bitsandbytes and compressed-tensors are such formats. They differ in what a quantized layer is made of and in what
the quantization_config says; that is what each of their files has. What they share is here: which tensors lie in the folder
and which the model wants, and how a folder comes into being.

How a folder is written: everything is made in a draft and checked. Then an older config.json goes, the files come by rename,
and the new config.json comes last: a folder that was interrupted on the way holds no config.json, and no one takes it for a
model. How one is read: config.json and safetensors alone, nothing is unpickled and no code is run; every tensor that the
model wants must be there, in its shape, and none may be left over.
"""

import json
import re
from abc import abstractmethod
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from qkit.checkpoints.files import draft_folder, in_words, line_of, make_folder, publish
from qkit.checkpoints.format import Format
from qkit.checkpoints.manifest import NAME as MANIFEST
from qkit.checkpoints.manifest import files_in
from qkit.checkpoints.names import HARMLESS, some
from qkit.checkpoints.skeleton import parameters_without_memory
from qkit.checkpoints.tensors import apart, narrowest
from qkit.checkpoints.tokenizer import has_tokenizer, load_tokenizer
from qkit.model.facts import ties_its_head
from qkit.model.linear import is_linear
from qkit.model.roles import output_heads
from qkit.model.surgery import swap
from qkit.nn.layers import quantized_layers
from qkit.nn.qlinear import QLinear

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
OLD_CONFIG = "quantize_config.json"  # where AutoGPTQ kept what is now a part of config.json
SHARD = re.compile(r"[^/\\\0]{1,200}[.]safetensors")
MEND = "copy or convert the model again"
T = TypeVar("T")


class FolderFormat(Format):
    """A format that is a folder of the hub's layout."""

    @abstractmethod
    def tensors(self, layer: QLinear, config: dict[str, Any]) -> dict[str, Tensor]:
        """What a quantized layer is in the file, by the ends of names ("qweight"), without its bias.

        Args:
            config: what `config` returned.
        """

    @abstractmethod
    def config(self, layers: dict[str, QLinear], left: list[str], heads: list[str]) -> dict[str, Any]:
        """The quantization_config of a model with these quantized `layers`; the linear layers `left` stay floats,
        and so do the output `heads`.
        """

    @abstractmethod
    def check_config(self, config: dict[str, Any]) -> None:
        """Refuse a quantization_config that this qkit cannot read, as the end of a sentence that begins with the folder."""

    @abstractmethod
    def parts(self, present: set[str]) -> bool:
        """Whether the ends of names that a layer has in the file are those of a quantized layer."""

    @abstractmethod
    def layer(
        self,
        parts: dict[str, Tensor],
        bias: nn.Parameter | None,
        shape: tuple[int, int],
        config: dict[str, Any],
        name: str,
    ) -> QLinear:
        """The layer that `parts` are in the file.

        Args:
            bias: on the device meta; its numbers come later.
            shape: (out, in) that the model's config gives it.
            config: the quantization_config, checked.
            name: of the layer, where a quantization_config says something of single layers.

        Raises:
            ValueError: as the end of a sentence that begins with the layer's name.
        """

    def recognizes(self, path: Path) -> bool:
        """By the quant_method of config.json."""
        return method_of(path) == self.name

    def write(self, model: nn.Module, path: Path, tokenizer: Any) -> Path:
        """The folder, of which config.json comes last."""
        check_free(path, self.name)
        layers = quantized_layers(model)
        quantization = self.config(layers, *left_linear(model))
        tensors = {}
        for name, tensor in float_tensors(model, layers).items():
            tensors[name] = narrowest(tensor.detach())
        for name, layer in layers.items():
            tensors.update({f"{name}.{part}": tensor for part, tensor in self.tensors(layer, quantization).items()})
        network = cast(Any, model)
        config = {
            **network.config.to_dict(),
            "tie_word_embeddings": ties_its_head(model),  # one who ties a head of codes breaks, or drops its numbers
            "architectures": [type(model).__name__],
            "dtype": str(network.dtype).removeprefix("torch."),
            "quantization_config": quantization,
        }
        config.pop("_name_or_path", None)
        folder = make_folder(path)
        with (
            in_words(folder, "it holds no config.json now, or the older one and its model"),
            draft_folder(folder) as draft,
        ):
            save_file(apart(tensors), draft / WEIGHTS, {"format": "pt"})
            if tokenizer is not None:
                tokenizer.save_pretrained(draft)
            if getattr(network, "generation_config", None) is not None:
                network.generation_config.save_pretrained(draft)
            (draft / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            names = sorted(files_in(draft), key=lambda name: name == CONFIG)
            (folder / CONFIG).unlink(missing_ok=True)
            for name in names:
                (folder / name).parent.mkdir(exist_ok=True)
                publish(draft / name, folder / name)
        return folder

    def read(self, path: Path) -> tuple[nn.Module, Any]:
        """Every tensor of the folder in its place."""
        config, quantization = read_config(path), quantization_of(path)
        assert quantization is not None
        try:
            self.check_config(quantization)
        except ValueError as error:
            raise ValueError(f"{path} {error}") from error
        state = read_state(path)
        model = skeleton(path, config, len(state))
        state = fit_names(path, state, model)
        layers = self.layers(path, model, state, quantization)
        swap(model, layers)
        fill(path, model, state, layers)
        return model.eval(), load_tokenizer(path) if has_tokenizer(path) else None

    def layers(
        self, path: Path, model: nn.Module, state: dict[str, Tensor], quantization: dict[str, Any]
    ) -> dict[str, QLinear]:
        """The quantized layers of a folder, by the names that they have in `model`; biases have no memory yet.

        Args:
            model: whose linear layers they are to replace.
            state: every tensor of the folder under the model's names; what the layers are made of is taken out.
            quantization: the quantization_config, checked.

        Raises:
            ValueError: a layer that is not whole, or none at all.
        """
        layers: dict[str, QLinear] = {}
        linear = {name: m for name, m in model.named_modules(remove_duplicate=False) if is_linear(m)}
        taken = parts_of(state, linear)
        for name, module in linear.items():
            present = taken.get(name, {})
            if not self.parts(set(present)):
                continue
            parts = {part: state.pop(key) for part, key in present.items() if part != "bias"}
            biased = module._parameters.get("bias") is not None
            bias = nn.Parameter(torch.empty(shape_of(module)[0], device="meta")) if biased else None
            if not biased and "bias" in present and not state[present["bias"]].any():
                del state[present["bias"]]  # AutoGPTQ gave every layer one, of zeros
            try:
                layers[name] = self.layer(parts, bias, shape_of(module), quantization, name)
            except ValueError as error:
                raise ValueError(f"{name} of {path} {error}; {MEND}") from error
        if not layers:
            raise ValueError(f"{path} says {self.name} and holds no layer that is quantized so; {MEND}")
        return layers


# ---- what a folder says


def read_config(folder: Path) -> dict[str, Any]:
    """config.json; ValueError in one sentence if it is no JSON object."""
    return _json(folder / CONFIG)


def quantization_of(folder: Path) -> dict[str, Any] | None:
    """What a folder says of its quantization, or None; AutoGPTQ said it in a file of its own."""
    try:
        found = read_config(folder).get("quantization_config")
    except (OSError, ValueError):
        return None  # whoever reads the rest of it says so
    if found is None and (folder / OLD_CONFIG).is_file():
        found = {"quant_method": "gptq", **_json(folder / OLD_CONFIG)}
    return found if isinstance(found, dict) else None


def method_of(folder: Path) -> str | None:
    """The quant_method that a folder names; bitsandbytes' older folders left it out."""
    if not (folder / CONFIG).is_file() or (found := quantization_of(folder)) is None:
        return None
    method = found.get("quant_method")
    if method is None and (found.get("load_in_4bit") or found.get("load_in_8bit")):
        return "bitsandbytes"
    return str(method)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); see that it is a file and that you may") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({line_of(error, 0)}): truncated or altered; {MEND}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} is no JSON object; {MEND}")
    return value


def skeleton(folder: Path, config: dict[str, Any], tensors: int) -> nn.Module:
    """The model that a config describes, without its weights.

    Args:
        tensors: how many the folder holds, which bounds what is made.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, GenerationConfig

    kept = {key: value for key, value in config.items() if key not in ("quantization_config", "dtype", "torch_dtype")}
    try:
        made = AutoConfig.for_model(kept.pop("model_type"), **kept)
        cls = cast(Any, MODEL_FOR_CAUSAL_LM_MAPPING)[type(made)]
    except Exception as error:  # whatever transformers makes of a field that is missing or altered
        raise ValueError(
            f"{folder} holds no causal language model that this transformers knows: {CONFIG} says "
            f"model_type={config.get('model_type')!r} ({line_of(error, -1)}); {MEND}"
        ) from error
    check_claims(str(folder), made, tensors)
    wanted = config.get("architectures") or [cls.__name__]
    if wanted != [cls.__name__]:
        raise ValueError(
            f"{folder} holds a model of architectures={wanted!r}, qkit reads causal language models ({cls.__name__}); {MEND}"
        )
    try:
        with parameters_without_memory():
            model = cls(made)
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
    except Exception as error:
        raise ValueError(
            f"{folder}: no {cls.__name__} can be made of its configs ({line_of(error, -1)}); {MEND}"
        ) from error
    return model


def check_claims(what: str, config: Any, tensors: int) -> None:
    """Refuse a config of more layers than there are tensors, which it would take for ever to make; and numbers that are none.

    Args:
        config: of transformers.

    Raises:
        ValueError: in one sentence that begins with `what`.
    """
    layers = getattr(config, "num_hidden_layers", None)
    if isinstance(layers, int) and layers > tensors:
        raise ValueError(
            f"{what}: {CONFIG} says num_hidden_layers={layers}, and all its files hold {tensors} tensors; {MEND}"
        )
    if nan := next((name for name, value in vars(config).items() if value != value), None):
        raise ValueError(f"{what}: {CONFIG} says {nan}=NaN, which is no number; {MEND}")


def check_numbers(what: str, model: nn.Module) -> None:
    """Refuse parameters of which numbers are NaN or infinite: everything computed with them would be, too.

    Raises:
        ValueError: in one sentence that begins with `what`.
    """
    bad = [name for name, one in model.named_parameters() if not one.is_meta and not bool(one.isfinite().all())]
    if bad:
        raise ValueError(f"{what} holds NaN or infinity in {some(bad)}; {MEND}")


# ---- what lies in a folder


def read_state(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the folder's safetensors files, one or several with an index."""
    files = [WEIGHTS]
    if not (folder / WEIGHTS).is_file() and (folder / INDEX).is_file():
        shards = _json(folder / INDEX).get("weight_map")
        files = list(dict.fromkeys(shards.values())) if isinstance(shards, dict) and _shards(shards) else []
        if not files:
            raise ValueError(f"{folder / INDEX} names no safetensors files of its own folder; {MEND}")
    return read_files([folder / name for name in files])


def _shards(weight_map: dict[str, Any]) -> bool:
    """Whether all that an index names are safetensors files of its own folder."""
    return all(isinstance(name, str) and SHARD.fullmatch(name) for name in weight_map.values())


def tensors_in(folder: Path) -> int:
    """How many tensors the safetensors files of a folder hold, by their headers; 0 where one cannot be read."""
    count = 0
    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, "pt") as file:
                count += len(file.keys())
        except (SafetensorError, OSError, ValueError):
            return 0
    return count


def read_files(files: list[Path]) -> dict[str, Tensor]:
    """Every tensor of some safetensors files; a name that two of them hold is an error."""
    state: dict[str, Tensor] = {}
    for path in files:
        if not path.is_file():
            raise ValueError(f"{path} is missing; qkit reads safetensors only: {MEND}")
        try:
            with safe_open(path, "pt") as file:
                found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(f"{path} is not whole ({line_of(error, 0)}); {MEND}") from error
        if twice := sorted(set(found) & set(state)):
            raise ValueError(f"{path} holds {some(twice)}, which another file of the folder holds too; {MEND}")
        state |= found
    return state


def fit_names(path: Path, state: dict[str, T], model: nn.Module) -> dict[str, T]:
    """What there is under the model's names: some folders leave out "model." or have it twice, as transformers knows."""
    prefix = getattr(model, "base_model_prefix", "") + "."
    owners = {name for name, _ in model.named_modules(remove_duplicate=False)}

    def known(name: str) -> bool:
        owner = name
        while owner:
            owner = owner.rpartition(".")[0]
            if owner in owners and owner:
                return True
        return False

    def fit(name: str) -> str:
        if not known(name) and prefix + name.partition(".")[0] in owners:
            return prefix + name
        if not known(name) and known(name.removeprefix(prefix)):
            return name.removeprefix(prefix)  # a decoder alone
        return name.removeprefix(prefix) if name.startswith(prefix * 2) else name

    fitted: dict[str, T] = {}
    for name, tensor in state.items():
        if fit(name) in fitted:
            raise ValueError(f"{path} holds {some([fit(name)])} twice, under two names; {MEND}")
        fitted[fit(name)] = tensor
    return fitted


def parts_of(state: dict[str, Tensor], owners: dict[str, Any]) -> dict[str, dict[str, str]]:
    """What of the state belongs to each owner: the end of the name, which may hold dots, and the whole name."""
    found: dict[str, dict[str, str]] = {}
    for key in state:
        owner = key
        while owner := owner.rpartition(".")[0]:
            if owner in owners:
                found.setdefault(owner, {})[key.removeprefix(f"{owner}.")] = key
                break
    return found


def shape_of(module: nn.Module) -> tuple[int, int]:
    """(out, in) of a Linear or a Conv1D."""
    rows, columns = cast(Tensor, module.weight).shape
    return (rows, columns) if isinstance(module, nn.Linear) else (columns, rows)


def fill(folder: Path, model: nn.Module, state: dict[str, Tensor], layers: dict[str, QLinear]) -> None:
    """Put every tensor that is no part of a quantized layer in its place; anything missing or left over is an error."""
    codes = {f"{name}.{part}" for name, layer in layers.items() for part, _ in layer.named_buffers()}
    wanted = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if name not in codes}
    left = sorted(name for name in state if name not in wanted and not HARMLESS.search(name))
    network = cast(Any, model)
    tied = set(network.all_tied_weights_keys) if hasattr(network, "all_tied_weights_keys") else set()
    missing = sorted(
        name for name, tensor in wanted.items() if name not in state and tensor.is_meta and name not in tied
    )
    shapes = [
        f"{name} ({tuple(state[name].shape)} where the config says {tuple(tensor.shape)})"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    kinds = [
        f"{name} ({str(state[name].dtype).removeprefix('torch.')})"
        for name, tensor in wanted.items()
        if name in state and tensor.is_floating_point() != state[name].is_floating_point()
    ]
    lists = {
        "missing are": missing,
        "left over are": left,
        "of another shape are": shapes,
        "of another kind are": kinds,
    }
    if complaints := ", ".join(f"{of} {some(names)}" for of, names in lists.items() if names):
        raise ValueError(f"{folder} is not a whole {type(model).__name__}: {complaints}; {MEND}")
    given = {name: state[name] for name in wanted if name in state}
    floats = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in given.items()}
    model.load_state_dict(floats, strict=False, assign=True)
    ties = dict(network.all_tied_weights_keys) if tied else {}
    if any(a in given and b in given and not torch.equal(given[a], given[b]) for a, b in ties.items()):
        network.config.tie_word_embeddings = False  # as transformers: the file has two tables, whatever the config says
        network.all_tied_weights_keys = {}
    network.tie_weights()
    check_numbers(str(folder), model)
    if empty := sorted(name for name, tensor in model.state_dict(keep_vars=True).items() if tensor.is_meta):
        raise ValueError(f"{folder} is not a whole {type(model).__name__}: missing are {some(empty)}; {MEND}")


# ---- what a folder is made of


def left_linear(model: nn.Module) -> tuple[list[str], list[str]]:
    """The linear layers that are not quantized: those of the decoder, and the output heads."""
    heads = output_heads(model)
    linear = {name: m for name, m in model.named_modules(remove_duplicate=False) if is_linear(m)}
    return [name for name, m in linear.items() if m not in heads], [name for name, m in linear.items() if m in heads]


def float_tensors(model: nn.Module, layers: dict[str, QLinear]) -> dict[str, Tensor]:
    """Every tensor of the state dict that is no part of a quantized layer; of those that are tied the first name alone."""
    codes = {f"{name}.{part}" for name, layer in layers.items() for part, _ in layer.named_buffers()}
    codes |= {f"{name}.weight" for name in layers}  # transformers hangs a tied embedding on a quantized head
    seen: set[int] = set()
    result = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in codes or id(tensor) in seen:
            continue
        if tensor.is_meta:
            raise ValueError(
                f"{name} has no numbers, it is on the device meta; load all of the model into memory first"
            )
        seen.add(id(tensor))
        result[name] = tensor
    return result


def check_no_conv1d(model: nn.Module, layers: dict[str, QLinear], form: Format) -> None:
    """Refuse layers that took the place of a Conv1D, where the other side's loader replaces Linear layers alone.

    Raises:
        ValueError: naming the layer.
    """
    with parameters_without_memory():
        plain = type(model)(cast(Any, model).config)
    for name in layers:
        if not isinstance(plain.get_submodule(name), nn.Linear):
            raise ValueError(
                f"format {form.name!r} is read into Linear layers, and {name} of a {type(model).__name__} is a Conv1D, which "
                f"transformers leaves alone there"
            )


def check_replaced(layers: dict[str, QLinear], alone: list[str], form: Format) -> None:
    """Refuse quantized layers that the other side's loader leaves alone: finding no floats for them it makes numbers up.

    Args:
        alone: names of those.

    Raises:
        ValueError: naming the first.
    """
    if wrong := [name for name in layers if name in alone]:
        raise ValueError(
            f"format {form.name!r} is read into the layers of a model's blocks, and {wrong[0]} is none of them: transformers "
            f"would fill it with random numbers; leave it in floats (exclude={wrong[0]!r})"
        )


def check_free(folder: Path, method: str | None = None) -> None:
    """Refuse a folder that holds a model which the new files would not replace, but lie beside; or would replace, and it is
    none of this `method`'s, such as the floats that all was made from.

    Raises:
        ValueError: naming the file.
    """
    if not folder.is_dir():
        return
    strange = [path.name for path in folder.iterdir() if path.name in (MANIFEST, INDEX, OLD_CONFIG)]
    strange += [path.name for path in folder.glob("*.safetensors") if path.name != WEIGHTS]
    strange += [path.name for path in folder.glob("*.bin")]
    if method and (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file() and method_of(folder) != method:
        strange.append(WEIGHTS)
    if strange:
        raise ValueError(
            f"{folder} holds another model already ({some(sorted(strange))}); give a new folder, or empty it"
        )
