"""qkit as a quantizer of transformers: `from_pretrained` loads what qkit saved, and quantizes while it loads.

    AutoModelForCausalLM.from_pretrained("saved-by-qkit")                       as qkit.load, to the last bit
    AutoModelForCausalLM.from_pretrained("floats", quantization_config=QkitConfig(qkit.NF4()))
    model.save_pretrained("out")                                                of any model with layers of qkit's

Loading. The layers that config.json names are made of the file's own tensors, checked, and put in place before transformers
loads: it then puts the same tensors where device_map wants them. On the fly, each weight is quantized as soon as it is read, so
that of the floats never more than one layer lies in memory.

Saving. A folder must not load without qkit: transformers would warn and go on with random weights. Two locks see to that. The
config names a file of weights that is none (`qkit.checkpoints.hub.LOCK`); and among the tensors is one under the name of a
float weight, of a shape that no weight has, which transformers refuses wherever the config was written by somebody else.
"""

import copy
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from qkit.checkpoints.files import Record, check_record, write_bytes
from qkit.checkpoints.hub import FILE, LOCK, METHOD, QUANTIZATION, layer_records, quantization_config
from qkit.checkpoints.layers import BESIDE, layer_from
from qkit.checkpoints.manifest import OWN
from qkit.checkpoints.names import some
from qkit.checkpoints.native import check_no_adapter
from qkit.checkpoints.tensors import apart
from qkit.engine.plan import Plan, assign, check_plan, plan_to_dict, schemes_of
from qkit.engine.solve import solve_layer
from qkit.methods.registry import scheme_from_dict
from qkit.methods.scheme import Scheme
from qkit.model import surgery
from qkit.model.linear import bias_of, matrix_of, output_axis
from qkit.model.surgery import Globs, select_layers, swap
from qkit.nn.layers import is_quantized, quantized_layers
from qkit.nn.qlinear import QLinear

if TYPE_CHECKING:  # transformers is in the middle of importing it when it imports its table of methods, and so us
    from transformers import PreTrainedModel


class QkitConfig(QuantizationConfigMixin):
    """What `from_pretrained` is given as `quantization_config`, and what config.json holds of a quantized model.

    Args:
        scheme: one that needs no data, e.g. `qkit.NF4()`; or several by globs on layer names, the first that matches decides.
        include, exclude: as for `qkit.quantize`.
        layers: in a folder: the record of each quantized layer.
        derived, weights: in a folder that `qkit.save` wrote (`qkit.checkpoints.hub`).

    Raises:
        TypeError, ValueError: no scheme, or a field that this qkit does not know.
    """

    def __init__(
        self,
        scheme: Plan | dict[str, Any] | None = None,
        include: Globs = None,
        exclude: Globs = None,
        layers: dict[str, Any] | None = None,
        derived: list[str] | None = None,
        weights: dict[str, Any] | None = None,
        quant_method: str = METHOD,
        **unknown: Any,
    ) -> None:
        if unknown:
            raise ValueError(
                f"a quantization_config of qkit's has no field {', '.join(sorted(unknown))}; upgrade qkit if a newer one wrote it"
            )
        cast(Any, self).quant_method = quant_method
        self.layers, self.derived, self.weights = layers, derived, weights
        self.include, self.exclude = include, exclude
        self.scheme = _plan(scheme) if layers is None else None  # what became of it is in the layers

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        if self.layers is not None:
            return copy.deepcopy(quantization_config(self.layers, self.derived, self.weights))
        plan = {"scheme": plan_to_dict(cast(Plan, self.scheme)), "include": self.include, "exclude": self.exclude}
        return {"quant_method": self.quant_method, **{key: value for key, value in plan.items() if value is not None}}


def _plan(scheme: Any) -> Plan:
    """A plan, or the record of a scheme."""
    if isinstance(scheme, dict) and isinstance(scheme.get("scheme"), str):
        return scheme_from_dict(scheme)
    check_plan(scheme)
    return scheme


class QkitHfQuantizer(HfQuantizer):
    """What transformers asks while it loads and saves; its own words."""

    requires_calibration = False
    quantization_config: QkitConfig

    def __init__(self, quantization_config: QkitConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.schemes: dict[str, Scheme] = {}  # of the layers to quantize, by name
        self.solved: dict[nn.Module, QLinear] = {}  # what became of each module: it may have several names
        self.derived: list[
            tuple[nn.Module, str]
        ] = []  # buffers that are in the file and in no state dict, by owner and name
        self.names: list[str] = []  # of the layers that are or will be quantized, as soon as they are known
        self.refused: Exception | None = None
        if self.pre_quantized:
            self._check_config()
            return
        needy = next((one for one in schemes_of(cast(Plan, quantization_config.scheme)) if one.calibrated), None)
        if needy is not None:
            raise ValueError(
                f"{needy.name} learns from data and from_pretrained has none; load the model without quantization_config and "
                f"call qkit.quantize(model, scheme, calibration=..., tokenizer=...), or take a scheme that needs none: "
                f"qkit.RTN, qkit.NF4, qkit.FP4, qkit.LLMInt8"
            )

    def _check_config(self) -> None:
        """Refuse the config of a folder that does not say how it was quantized."""
        _check_layers(self.quantization_config.layers)
        _check_file(self.quantization_config)

    # ---- loading

    def update_attn_implementation(self, config: Any) -> Any:
        """The one question with the config before files are looked for: it gets the name of its weights."""
        weights = self.quantization_config.weights
        if self.pre_quantized:
            vars(config).pop(FILE, None)
            if weights is not None:
                setattr(config, FILE, weights["file"])
        return config

    update_tp_plan = update_attn_implementation  # the same question in transformers 5.0

    def update_ep_plan(self, config: Any) -> Any:
        """Nothing to say."""
        return config

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        """Asked once with the device_map that was given, and once with the one that was made of "auto"."""
        _check_in_memory(self.names, device_map)

    def _process_model_before_weight_loading(
        self,
        model: "PreTrainedModel",
        checkpoint_files: list[str] | None = None,
        device_map: Any = None,
        **kwargs: Any,
    ) -> None:
        if not self.pre_quantized:
            targets, _ = select_layers(model, self.quantization_config.include, self.quantization_config.exclude)
            self.schemes = assign(cast(Plan, self.quantization_config.scheme), targets)[0]
            self.names = list(self.schemes)
            _check_in_memory(self.names, device_map)
            return
        if not checkpoint_files or not all(str(file).endswith(".safetensors") for file in checkpoint_files):
            raise ValueError(
                f"{model.config.name_or_path} holds no safetensors files, and qkit reads nothing else; copy or save it again"
            )
        if self.quantization_config.weights is not None:
            check_record(Path(checkpoint_files[0]), cast(Record, self.quantization_config.weights))
        with torch.device("cpu"), torch.no_grad():
            self._place_layers(model, checkpoint_files)
        self.names = list(quantized_layers(model))
        _check_in_memory(self.names, device_map)

    def _place_layers(self, model: "PreTrainedModel", files: list[str]) -> None:
        """Every layer of the config in its place, of the files' own tensors; names of a model without its head are shorter."""
        records = cast(dict[str, Any], self.quantization_config.layers)
        derived = set(self.quantization_config.derived or ())
        parts = {f"{name}.{part}" for name, record in records.items() for part in (*record["parts"], *BESIDE)}
        state = _read(files, parts | derived)
        modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
        prefix = f"{model.base_model_prefix}."
        layers: dict[str, nn.Module] = {}
        where = model.config.name_or_path
        for name, record in records.items():
            if (place := _place(name, prefix, modules)) is None:
                continue  # a head that this class has not
            module = modules[place]
            try:
                layer = layer_from(record, state, name)
                weight = matrix_of(module)
            except (ValueError, TypeError, LookupError) as error:
                raise ValueError(
                    f"{where}: {name} is not whole ({_line(error)}); copy or save the model again"
                ) from error
            if layer.qtensor.shape != tuple(weight.shape):
                raise ValueError(
                    f"{where}: {name} is {layer.qtensor.shape} in the file and {tuple(weight.shape)} in the config; copy or "
                    f"save the model again"
                )
            layer.register_parameter("bias", bias_of(module))
            layer.dtype = weight.dtype
            layers[place] = layer
        if not layers:
            raise ValueError(
                f"{where}: a {type(model).__name__} has none of the layers that were quantized ({next(iter(records))}, ...); "
                f"load it as the class that was saved"
            )
        swap(model, layers)
        for name in sorted(derived & set(state)):
            owner, _, leaf = name.rpartition(".")
            if (place := _place(owner, prefix, modules)) is not None:
                modules[place].register_buffer(leaf, state[name].to("meta"))  # the loader fills what a state dict has
                self.derived.append((modules[place], leaf))
        known: Any = model._keys_to_ignore_on_load_unexpected
        ours = f"(^|[.]){re.escape(_lock_name(records).removeprefix(prefix))}$"
        kind = set if isinstance(known, set) else list  # in transformers 5.0 a list, or None
        model._keys_to_ignore_on_load_unexpected = kind([*(known or ()), ours])

    def param_needs_quantization(self, model: nn.Module, param_name: str, **kwargs: Any) -> bool:
        """Whether it is the weight of a layer to quantize, and not quantized yet."""
        name, _, leaf = param_name.rpartition(".")
        return leaf == "weight" and name in self.schemes

    def param_element_size(self, model: nn.Module, param_name: str, param: Tensor) -> float:
        """Bytes of a weight as it will lie in memory, for device_map="auto": the codes, and a bit more each for scales."""
        scheme = self.schemes.get(param_name.removesuffix(".weight"))
        return param.element_size() if scheme is None else (scheme.weight_bits + 1) / 8

    def get_quantize_ops(self) -> Any:
        """What is done with such a weight."""
        from transformers.core_model_loading import ConversionOps

        quantizer = self

        class Quantize(ConversionOps):
            def convert(self, input_dict: dict[str, Any], *, full_layer_name: str, model: Any, **kwargs: Any) -> dict:
                (weight,) = input_dict.values()
                quantizer._take(model, full_layer_name.rpartition(".")[0], weight)
                if kwargs.get("missing_keys") is not None:
                    kwargs["missing_keys"].discard(full_layer_name)
                return {}

        return Quantize()

    @torch.no_grad()
    def _take(self, model: nn.Module, name: str, weight: Any) -> None:
        """Quantize the weight that was read for the layer `name`, and put the layer in place."""
        module = model.get_submodule(name)
        weight = weight[0] if isinstance(weight, list) else weight
        try:
            self._solve(model, name, module, weight.T if output_axis(module) else weight)
        except (ValueError, TypeError) as error:  # transformers would bury it in a report
            self.refused = self.refused or error

    def _solve(self, model: nn.Module, name: str, module: nn.Module, weight: Tensor) -> None:
        scheme = self.schemes[name]
        if module not in self.solved:
            scheme.check(weight, name)
            self.solved[module] = solve_layer(weight, bias_of(module), scheme, None, name).layer
        swap(model, {name: self.solved[module]})

    @torch.no_grad()
    def _process_model_after_weight_loading(self, model: "PreTrainedModel", **kwargs: Any) -> "PreTrainedModel":
        if self.refused is not None:
            raise self.refused
        for name in self.schemes:  # of a tied weight, or a layer of two names, the file has one
            module = model.get_submodule(name)
            if not is_quantized(module):
                self._solve(model, name, module, matrix_of(module))
        for layer in quantized_layers(model).values():
            layer.train(model.training)
            _ = layer.qtensor  # the parts as they were loaded, once more
        for owner, leaf in self.derived:
            owner.register_buffer(leaf, owner.get_buffer(leaf), persistent=False)
        self.schemes, self.solved, self.derived = {}, {}, []
        vars(model.config).pop(FILE, None)
        model.config.quantization_config = self.quantization_config = QkitConfig(layers=layer_records(model))
        return model

    def _dequantize(self, model: nn.Module, dtype: torch.dtype | str | None = None) -> nn.Module:
        """Float layers again; what rounds its inputs does so no more."""
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        with torch.device("meta"):
            made = type(model)(model.config)  # which knows where a Linear was and where a Conv1D
        for name, layer in quantized_layers(model).items():
            linear = made.get_submodule(name)
            weight = layer.weight.to(dtype or layer.dtype)
            linear.weight = nn.Parameter(weight.T.contiguous() if output_axis(linear) else weight, requires_grad=False)
            linear.bias = layer.bias
            model.set_submodule(name, linear.train(layer.training))
        return model

    # ---- saving

    def get_state_dict_and_metadata(self, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What `save_pretrained` writes: codes in memory of their own, and the lock."""
        layers = quantized_layers(model)
        cast(Any, model).config.quantization_config.layers = layer_records(model)
        codes = {f"{name}.{part}" for name, layer in layers.items() for part, _ in layer.named_buffers()}
        hung = {f"{name}.weight" for name in layers}  # a tied embedding, which transformers hangs on a quantized head
        state = {name: tensor for name, tensor in model.state_dict().items() if name not in hung}
        state |= apart({name: tensor for name, tensor in state.items() if name in codes})
        if layers:
            state[_lock_name(layers)] = torch.empty(0, dtype=torch.uint8)
        return state, {}

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        """Always."""
        return True

    @property
    def is_trainable(self) -> bool:
        """With adapters (`qkit.integrations.peft`)."""
        return True


def place_of(name: str, device_map: dict[str, Any]) -> Any:
    """Where a device_map puts a module: the entry of its own name, or of the nearest above it; None: nowhere."""
    parts = name.split(".")
    above = (".".join(parts[:count]) for count in range(len(parts), -1, -1))
    return next((device_map[one] for one in above if one in device_map), None)


def _check_in_memory(names: Iterable[str], device_map: Any) -> None:
    """Refuse a device_map that leaves quantized layers on the disk: codes are read from memory alone."""
    if not isinstance(device_map, dict) or "disk" not in device_map.values():
        return
    if away := [name for name in names if place_of(name, device_map) == "disk"]:
        raise ValueError(
            f"device_map leaves {some(away)} on the disk, and quantized layers are read from memory alone; give max_memory more, "
            f"or place them on 'cpu'"
        )


def _check_layers(layers: Any) -> None:
    """Refuse the config of a quantized folder that does not say how."""
    if not isinstance(layers, dict) or not layers:
        raise ValueError(
            "config.json says quant_method 'qkit' and names no quantized layers; save the model again with qkit.save or "
            "save_pretrained"
        )
    odd = next((name for name, one in layers.items() if not isinstance(one, dict) or "parts" not in one), None)
    if odd is not None:
        raise ValueError(
            f"config.json has no record of a quantized layer for {odd}; it was altered: save the model again"
        )


def _check_file(config: QkitConfig) -> None:
    """Refuse a config whose file is none of its folder that `qkit.save` wrote."""
    weights, derived = config.weights, config.derived
    known = isinstance(weights, dict) and {"file", "bytes", "sha256"} <= set(weights)
    if weights is not None and not (known and isinstance(weights["file"], str) and OWN.fullmatch(weights["file"])):
        raise ValueError(f"config.json names weights {weights!r}, no file that qkit.save wrote; save the model again")
    if derived is not None and not (isinstance(derived, list) and all(isinstance(name, str) for name in derived)):
        raise ValueError(f"config.json names derived buffers {derived!r}, no list of names; save the model again")


def _read(files: list[str], wanted: set[str]) -> dict[str, Tensor]:
    """Those of the wanted tensors that the files hold."""
    state = {}
    for path in files:
        with safe_open(path, "pt") as file:
            state.update({name: file.get_tensor(name) for name in file.keys() if name in wanted})  # noqa: SIM118
    return state


def _place(name: str, prefix: str, modules: dict[str, nn.Module]) -> str | None:
    """What a module of the file is called in this model, of which the head may be left out; None: it has none."""
    places = (name, name.removeprefix(prefix), prefix + name)
    return next((place for place in places if place in modules), None)


def _lock_name(layers: Iterable[str]) -> str:
    """Under which name the lock among the tensors lies: the weight of a layer that has none."""
    return f"{min(layers)}.weight"


def _line(error: Exception) -> str:
    return f"{error.args[0]!r} is missing" if isinstance(error, LookupError) and error.args else str(error)


# ---- save_pretrained of models that have layers of qkit's, however they came by them


class SavePretrained:
    """`model.save_pretrained` of one model; the folder then loads where qkit is imported, and nowhere else.

    An object and no method: of a method bound to the model pickle keeps the name alone, and what came back from a file or
    another process would save as transformers does, without a word of qkit in the config.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        self.model = model

    def __call__(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """As `PreTrainedModel.save_pretrained`."""
        model = self.model
        if not quantized_layers(model):
            return type(model).save_pretrained(model, save_directory, *args, **kwargs)
        if not getattr(model, "_hf_peft_config_loaded", False):  # else transformers saves the adapter alone
            check_no_adapter(model)
        with _known(model):
            result = type(model).save_pretrained(model, save_directory, *args, **kwargs)
        _lock(Path(save_directory) / "config.json")
        return result


@contextmanager
def _known(model: "PreTrainedModel") -> Iterator[None]:
    """Inside, transformers takes the model for one that it has quantized by us."""
    if isinstance(getattr(model, "hf_quantizer", None), QkitHfQuantizer):
        yield
        return
    config = QkitConfig(layers=layer_records(model))
    network: Any = model
    network.hf_quantizer = QkitHfQuantizer(config, pre_quantized=True)
    network.config.quantization_config = config
    try:
        yield
    finally:
        del network.hf_quantizer
        del network.config.quantization_config


def _lock(path: Path) -> None:
    """Write into a config.json that there are no weights for whoever does not know qkit."""
    if path.is_file():  # only the first of several processes writes one
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.get(QUANTIZATION, {}).get("quant_method") == METHOD:
            write_bytes(path, (json.dumps({**config, FILE: LOCK}, indent=2) + "\n").encode())


def _let_save(model: nn.Module) -> None:
    """After a swap: the models of transformers in `model` save by the class above."""
    from transformers import PreTrainedModel

    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.save_pretrained = SavePretrained(module)


def register() -> None:
    """Enter qkit in transformers' tables. May be called again: a notebook is run twice."""
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = QkitConfig
    auto.AUTO_QUANTIZER_MAPPING[METHOD] = QkitHfQuantizer
    surgery.AFTER_SWAP[METHOD] = _let_save


register()  # whoever imports this; and `qkit.integrations` sees to it that it is imported with transformers' table
