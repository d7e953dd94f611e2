"""All formats of others that there are. A new one is a file beside this one, and a line here."""

from pathlib import Path

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


def check_layers(form: Format, layers: dict[str, QLinear]) -> None:
    """Refuse a model with a layer that a format cannot hold, naming the layer, the reason, and the formats that can.

    Raises:
        ValueError: in one sentence.
    """
    if not layers and not form.floats:
        raise ValueError(
            f"format {form.name!r} holds quantized models, and no layer of this one is; quantize it first, or leave format out"
        )
    for name, layer in layers.items():
        if (why := _why_not(form, layer)) is not None:
            able = [n for n, other in FORMATS.items() if all(_why_not(other, one) is None for one in layers.values())]
            others = f"these can: {', '.join(able)}, and" if able else "only"
            raise ValueError(
                f"format {form.name!r} holds {form.holds}, and {name} {why}; {others} qkit's own (leave format out)"
            )


def _why_not(form: Format, layer: QLinear) -> str | None:
    if "order" in layer._buffers and not form.permutes:
        return "has its columns sorted by group (act-order)"
    return form.why_not(layer)
