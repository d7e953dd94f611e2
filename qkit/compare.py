"""One table: what each scheme costs in perplexity and saves in bytes, on one model and one text."""

from collections.abc import Sequence

from torch import Tensor, nn

from qkit.evaluate import evaluate
from qkit.models import load
from qkit.quantize import check_scheme, quantize
from qkit.report import Comparison, ComparisonRow, QuantizationReport
from qkit.schemes import RTN
from qkit.sizes import disk_bytes, float32_bytes, memory_bytes
from qkit.surgery import clone
from qkit.texts import texts

# From harmless to ruined: the tour that `make demo` gives.
TOUR = (
    RTN(bits=8),
    RTN(bits=4),
    RTN(bits=4, group_size=128),
    RTN(bits=4, group_size=32),
    RTN(bits=3, group_size=128),
    RTN(bits=2, group_size=64),
)


def compare(
    model: str | nn.Module = "bookworm-14m",
    schemes: Sequence[RTN] = TOUR,
    text: str | list[str] | Tensor | None = None,
    *,
    tokenizer=None,
    text_name: str | None = None,
    max_chunks: int | None = None,
    progress: bool | None = None,
) -> Comparison:
    """Quantize a model by each scheme and measure every copy beside the original.

    Args:
        model: a name for `qkit.load`, or a model (then give its tokenizer). It is left as it is: the copies share every
            tensor with it that they do not replace.
        schemes: any number; by default the tour from 8 bits down to 2.
        text: what to evaluate on; by default "python-docs-heldout".
        text_name: how the table calls the text.
        max_chunks: evaluate on the first chunks only.
        progress: show bars; None: on a terminal only.
    """
    title = model if isinstance(model, str) else type(model).__name__
    for scheme in schemes:
        check_scheme(scheme)
    if isinstance(model, str):
        model, tokenizer = load(model)
    if text is None:
        text, text_name = texts("python-docs-heldout"), "python-docs-heldout"
    copies: dict[str, nn.Module] = {"FP32": model}
    reports: dict[str, QuantizationReport] = {}
    for scheme in schemes:
        if scheme.name in reports:
            raise ValueError(f"scheme {scheme.name!r} is given twice; leave one out")
        copies[scheme.name] = clone(model)
        reports[scheme.name] = quantize(copies[scheme.name], scheme, progress=progress)
    evaluations = evaluate(copies, tokenizer, text, max_chunks, progress)
    full = float32_bytes(model)
    rows = []
    for name, copied in copies.items():
        report = reports.get(name)
        size = disk_bytes(copied) if report else full
        rows.append(
            ComparisonRow(
                name=name,
                scheme=report.scheme if report else None,
                perplexity=evaluations[name].perplexity,
                kl=evaluations[name].kl,
                disk_bytes=size,
                memory_bytes=memory_bytes(copied),
                bits_per_weight=report.bits_per_weight if report else 32.0,
                compression=full / size,
                seconds=report.seconds if report else 0.0,
                report=report,
            )
        )
    return Comparison(title, text_name or "your text", evaluations["FP32"].tokens, tuple(rows))
