"""All formats of others that there are. A new one is a file beside this one, and a line here."""

from pathlib import Path

from torch import nn

from qkit.checkpoints.awq import AWQFormat
from qkit.checkpoints.bitsandbytes import BitsAndBytesFormat
from qkit.checkpoints.compressed_tensors import CompressedTensorsFormat
from qkit.checkpoints.format import Format
from qkit.checkpoints.gguf.form import GGUFFormat
from qkit.checkpoints.gptq import GPTQFormat
from qkit.checkpoints.onnx import ONNXFormat
from qkit.nn.qlinear import QLinear

FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        GPTQFormat(),
        AWQFormat(),
        BitsAndBytesFormat(),
        CompressedTensorsFormat(),
        GGUFFormat(),
        ONNXFormat(),
    )
}


def format_named(name: str) -> Format:
    """The format of a name.

    Raises:
        ValueError: there is none.
    """
    if name not in FORMATS:
        raise ValueError(
            f"format={name!r} is not one of {', '.join(FORMATS)}; leave it out for qkit's own, which holds every scheme"
        )
    return FORMATS[name]


def format_of(path: Path) -> Format | None:
    """The format that a file or folder says it is of; None: of none of these."""
    return next((form for form in FORMATS.values() if form.recognizes(path)), None)


def check_model(form: Format, model: nn.Module, layers: dict[str, QLinear]) -> None:
    """Refuse a model that a format cannot hold, naming the value, the reason, and the formats that can.

    Raises:
        ValueError: in one sentence.
        ImportError: the format is written with a package that is not installed.
    """
    if (why := _why_not(form, model, layers)) is None:
        return
    able = [name for name, other in FORMATS.items() if other is not form and _holds(other, model, layers)]
    others = f"these can: {', '.join(able)}, and" if able else "only"
    raise ValueError(f"{why}; {others} qkit's own (leave format out)")


def _holds(form: Format, model: nn.Module, layers: dict[str, QLinear]) -> bool:
    try:
        return _why_not(form, model, layers) is None
    except ImportError:  # it does, when its package is there
        return True


def _why_not(form: Format, model: nn.Module, layers: dict[str, QLinear]) -> str | None:
    """Why a format cannot hold a model, as the beginning of a sentence; None: it can."""
    if not layers and not form.floats:
        return f"format {form.name!r} holds quantized models, and no layer of this one is: quantize it first"
    for name, layer in layers.items():
        if (why := _why_not_layer(form, layer)) is not None:
            return f"format {form.name!r} holds {form.holds}, and {name} {why}"
    try:
        form.check(model, layers)
    except ValueError as error:
        return str(error)
    return None


def _why_not_layer(form: Format, layer: QLinear) -> str | None:
    if "order" in layer._buffers and not form.permutes:
        return "has its columns sorted by group (act-order)"
    return form.why_not(layer)
