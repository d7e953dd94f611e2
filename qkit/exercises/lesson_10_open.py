"""The open task of lesson 10: the smallest file that another program reads, and that still says nearly what bookworm says."""

import tempfile
from pathlib import Path
from typing import Any

import qkit
from qkit.exercises.open_task import OpenTask, check_calibration
from qkit.model.surgery import clone

FORMATS = ("gptq", "awq", "bitsandbytes", "compressed-tensors", "gguf")  # those that qkit reads back


def kl_and_megabytes(answer: tuple) -> tuple[float, float]:
    """KL to the original on six tales of what is read back, and the megabytes of the file of the model, without a tokenizer's.

    Args:
        answer: (plan, format), or (plan, format, calibration): what bookworm is quantized by, and saved as.

    Raises:
        TypeError: the answer is no such tuple.
        ValueError: the format is none of `FORMATS`, or cannot hold the plan; the calibration contains a tale that judges.
    """
    plan, form, calibration = _parts(answer)
    tales = qkit.passages("tales")[::6]
    check_calibration(calibration, tales)
    model, tokenizer = qkit.load("bookworm-14m")
    quantized = clone(model)
    qkit.quantize(quantized, plan, calibration=calibration, tokenizer=tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        path = qkit.save(quantized, Path(folder) / form, tokenizer, format=form).path
        files = [path] if path.is_file() else [*path.glob("*.safetensors")]
        octets = sum(file.stat().st_size for file in files)
        read_back, _ = qkit.load(path)
    return qkit.kl_divergence(model, read_back, tokenizer, tales), octets / 1e6


def _parts(answer: tuple) -> tuple[Any, str, Any]:
    if not isinstance(answer, tuple) or len(answer) not in (2, 3):
        raise TypeError(
            "the answer is no pair of a plan and a format; give (plan, format), or (plan, format, calibration)"
        )
    plan, form, calibration = (*answer, None)[:3]
    if form not in FORMATS:
        raise ValueError(
            f"format {form!r} is none that another program reads and qkit reads back: {', '.join(FORMATS)}"
        )
    return plan, form, calibration


OPEN = OpenTask("10", kl_and_megabytes, budget=0.095, to_beat=10.257, cost="nats of KL", loss="MB")
