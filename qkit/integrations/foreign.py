"""What others quantized, by `from_pretrained`, where the library that transformers would ask is not installed.

    AutoModelForCausalLM.from_pretrained("somebody/model-AWQ")                                  without gptqmodel
    AutoModelForCausalLM.from_pretrained("floats", quantization_config=BitsAndBytesConfig(...))  without bitsandbytes

transformers has a name for each method and one library for each name; without the library it raises ImportError. Only then qkit
takes the name: it reads the folder as `qkit.load` does (`qkit.checkpoints.formats`), every layer one of its own, on any device,
and says that it did. Where the library is installed nothing is changed, and `qkit.load(folder)` is the way to qkit's layers.

What comes of it is a model of qkit's. save_pretrained writes qkit's format; `qkit.save(model, folder, format="awq")` the other.
"""

import re
import warnings
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers.quantizers import auto
from transformers.utils.quantization_config import QuantizationConfigMixin

from qkit.checkpoints.folder import MEND, FolderFormat, fit_names, quantization_of, read_files
from qkit.checkpoints.formats import FORMATS
from qkit.checkpoints.names import HARMLESS, some
from qkit.integrations.transformers import QkitConfig, QkitHfQuantizer, place_of
from qkit.methods.codebook import FP4, NF4
from qkit.methods.llm_int8 import LLMInt8
from qkit.methods.scheme import Scheme
from qkit.model.linear import is_linear
from qkit.model.surgery import swap
from qkit.nn.qlinear import QLinear

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LIBRARIES = {  # transformers' names of the methods, our formats, and what transformers wants for them
    "gptq": ("gptq", ("optimum", "gptqmodel")),
    "awq": ("awq", ("gptqmodel",)),
    "bitsandbytes_4bit": ("bitsandbytes", ("bitsandbytes",)),
    "bitsandbytes_8bit": ("bitsandbytes", ("bitsandbytes",)),
    "compressed-tensors": ("compressed-tensors", ("compressed_tensors",)),
}


class AsWritten(QuantizationConfigMixin):
    """A quantization_config of which the folder's own words are read: the class of transformers wants its library."""

    def __init__(self, quant_method: Any = "compressed-tensors", **said: Any) -> None:
        self.quant_method = quant_method
        self.said = said


class Awaited(nn.Module):
    """In the place of a layer that is quantized, while transformers loads what is not: its bias, if it has one."""

    def __init__(self, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.register_parameter("bias", bias)


class ForeignHfQuantizer(QkitHfQuantizer):
    """Folders of others, and configs of others for floats, as qkit reads them."""

    method: str  # transformers' name

    def __init__(self, quantization_config: Any, **kwargs: Any) -> None:
        self.asked = quantization_config
        self.layers: dict[str, QLinear] = {}
        wanted = [name for name in LIBRARIES[self.method][1] if find_spec(name) is None]
        made = kwargs.get("pre_quantized", True)
        super().__init__(quantization_config if made else QkitConfig(_scheme(quantization_config)), **kwargs)
        warnings.warn(
            f"{' and '.join(wanted)} {'are' if len(wanted) > 1 else 'is'} not installed, so qkit "
            f"{'reads' if made else 'quantizes'} this {self.method} model: its layers are qkit's, and compute in the dtype of "
            f"the model",
            stacklevel=2,
        )

    def _check_config(self) -> None:
        """When the folder is known."""

    def update_attn_implementation(self, config: Any) -> Any:
        """Nothing to say."""
        return config

    update_tp_plan = update_attn_implementation

    def _process_model_before_weight_loading(
        self,
        model: "PreTrainedModel",
        checkpoint_files: list[str] | None = None,
        device_map: Any = None,
        **kwargs: Any,
    ) -> None:
        if not self.pre_quantized:
            left = _skipped(model, getattr(self.asked, "llm_int8_skip_modules", None) or ())
            self.quantization_config.exclude = left or None
            super()._process_model_before_weight_loading(model, checkpoint_files, device_map, **kwargs)
            return
        if not checkpoint_files or not all(str(file).endswith(".safetensors") for file in checkpoint_files):
            raise ValueError(
                f"{model.config.name_or_path} holds no safetensors files, and qkit reads nothing else; {MEND}"
            )
        files = [Path(file) for file in checkpoint_files]
        where = files[0].parent
        said = quantization_of(where) or {**self.asked.to_dict(), **getattr(self.asked, "said", {})}
        form = cast(FolderFormat, FORMATS[LIBRARIES[self.method][0]])
        try:
            form.check_config(said)
        except ValueError as error:
            raise ValueError(f"{where} {error}") from error
        with torch.device("cpu"), torch.no_grad():
            found = read_files(files)
            state = fit_names(where, found, model)
            inside = fit_names(where, {name: name for name in found}, model)
            self.layers = form.layers(where, model, state, said)
        _check_whole(where, model, state, self.layers)
        modules = dict(model.named_modules(remove_duplicate=False))
        swap(model, {name: Awaited(modules[name]._parameters.get("bias")) for name in self.layers})
        taken = [name for key, name in inside.items() if key not in state]
        known: Any = model._keys_to_ignore_on_load_unexpected
        ours = f"^({'|'.join(re.escape(name) for name in (*taken, *(key for key in inside if key not in state)))})$"
        kind = set if isinstance(known, set) else list
        model._keys_to_ignore_on_load_unexpected = kind([*(known or ()), ours])
        self.names = list(self.layers)
        self.validate_environment(device_map=device_map)

    @torch.no_grad()
    def _process_model_after_weight_loading(self, model: "PreTrainedModel", **kwargs: Any) -> "PreTrainedModel":
        places = getattr(model, "hf_device_map", None)
        for name, layer in self.layers.items():
            layer.register_parameter("bias", cast(Any, model.get_submodule(name)).bias)
            layer.dtype = model.dtype
            device = place_of(name, places) if places else None
            layer.to(model.device if device is None else device)
        swap(model, self.layers)
        self.layers = {}
        return super()._process_model_after_weight_loading(model, **kwargs)


def _scheme(config: Any) -> Scheme:
    """The scheme of a config that is to quantize floats."""
    if getattr(config, "load_in_8bit", False):
        return LLMInt8(config.llm_int8_threshold)
    if getattr(config, "load_in_4bit", False):
        table = {"nf4": NF4, "fp4": FP4}[config.bnb_4bit_quant_type]
        return table(double_quant=config.bnb_4bit_use_double_quant)
    raise ValueError(
        f"{type(config).__name__} learns from data, which qkit takes another way; load the model without quantization_config and "
        f"call qkit.quantize(model, qkit.GPTQ(4), calibration=..., tokenizer=...), or qkit.AWQ(4)"
    )


def _skipped(model: nn.Module, wanted: Iterable[str]) -> list[str]:
    """The linear layers that llm_int8_skip_modules means: of that name, with that end, or inside a module of it."""
    linear = [name for name, module in model.named_modules(remove_duplicate=False) if is_linear(module)]
    return [name for name in linear if any(f".{key}." in f".{name}." for key in wanted)]


def _check_whole(where: Path, model: nn.Module, state: dict[str, Tensor], layers: dict[str, QLinear]) -> None:
    """Refuse what transformers would warn of and go on: inside of the decoder nothing is missing and nothing left over."""
    network = cast(Any, model)
    prefix = f"{network.base_model_prefix}."
    inside = prefix if hasattr(model, network.base_model_prefix) else ""
    gone = tuple(f"{name}." for name in layers)
    tied = set(getattr(network, "all_tied_weights_keys", None) or ())
    wanted = {name for name in model.state_dict() if not name.startswith(gone)} | {f"{name}bias" for name in gone}
    missing = sorted(
        name
        for name in wanted
        if name.startswith(inside) and name not in state and name not in tied and not name.startswith(gone)
    )
    left = sorted(
        name for name in state if name.startswith(inside) and name not in wanted and not HARMLESS.search(name)
    )
    if not inside:
        modules = dict(model.named_modules(remove_duplicate=False))
        left = [name for name in left if name.split(".")[0] in modules]  # a head that this class has not
    empty = [name for name, one in state.items() if one.is_floating_point() and not bool(one.isfinite().all())]
    lists = {"missing are": missing, "left over are": left, "NaN or infinity is in": empty}
    if complaints := ", ".join(f"{of} {some(names)}" for of, names in lists.items() if names):
        raise ValueError(f"{where} is not a whole {type(model).__name__}: {complaints}; {MEND}")


def register() -> None:
    """Take the names of which the library is not installed; leave the others, and what somebody else has entered."""
    for method, (_, libraries) in LIBRARIES.items():
        theirs = auto.AUTO_QUANTIZER_MAPPING.get(method)
        if theirs is None or theirs.__module__.partition(".")[0] != "transformers":
            continue
        if all(find_spec(name) is not None for name in libraries):
            continue
        auto.AUTO_QUANTIZER_MAPPING[method] = type(f"Foreign_{method}", (ForeignHfQuantizer,), {"method": method})
        if method == "compressed-tensors":
            auto.AUTO_QUANTIZATION_CONFIG_MAPPING[method] = AsWritten


register()  # `qkit.integrations` sees to it that it is imported after what it is built on
