"""One table: what each scheme costs in KL and perplexity, how sure that is, and what it saves in bytes; one model, one text."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from qkit.checkpoints.load import load
from qkit.engine.plan import Plan, check_plan, fitted, needs_calibration, plan_name
from qkit.engine.prepare import check_model, model_ids
from qkit.engine.quantize import quantize
from qkit.engine.report import QuantizationReport
from qkit.engine.warm import warm_up
from qkit.methods.awq import AWQ
from qkit.methods.codebook import FP4, NF4
from qkit.methods.gptq import GPTQ
from qkit.methods.llm_int8 import LLMInt8
from qkit.methods.rtn import RTN
from qkit.methods.scheme import Scheme
from qkit.methods.smoothquant import SmoothQuant
from qkit.methods.w8a8 import W8A8
from qkit.model.surgery import clone, find_targets
from qkit.study.comparison import Comparison, ComparisonRow
from qkit.study.evaluate import evaluate
from qkit.study.paired import mean_of
from qkit.study.sizes import disk_bytes, float32_bytes, memory_bytes
from qkit.text.corpora import passages, texts
from qkit.text.tokens import CHUNKS

# From harmless to ruined: the tour that `make demo` gives.
TOUR = (
    RTN(bits=8),
    RTN(bits=4),
    RTN(bits=4, group_size=128),
    RTN(bits=4, group_size=32),
    RTN(bits=3, group_size=128),
    RTN(bits=2, group_size=64),
)

# Every method at every setting that the lessons speak of: `qkit compare --all`.
ALL = (
    *TOUR,
    LLMInt8(),
    LLMInt8(threshold=0),
    W8A8(),
    W8A8("per-tensor"),
    W8A8("per-tensor", "percentile"),
    W8A8("per-tensor", "mse"),
    SmoothQuant(0.5),
    SmoothQuant(0.8),
    SmoothQuant(None),
    SmoothQuant(0.5, "per-tensor"),
    SmoothQuant(0.8, "per-tensor"),
    SmoothQuant(None, "per-tensor"),
    NF4(double_quant=False),
    NF4(),
    FP4(),
    *(
        scheme
        for bits, group_size in ((4, 128), (3, 128), (2, 64))
        for scheme in (
            GPTQ.paper(bits, group_size),
            GPTQ(bits, group_size),
            AWQ(bits, group_size),
            AWQ(bits, group_size, rounding=GPTQ(bits, group_size)),
        )
    ),
)


def compare(
    model: str | nn.Module = "bookworm-14m",
    schemes: Sequence[Plan] | None = None,
    text: str | list[str] | Tensor | None = None,
    *,
    tokenizer=None,
    name: str | None = None,
    text_name: str | None = None,
    max_chunks: int | None = None,
    calibration: str | Sequence[str] | Tensor | None = None,
    calibration_chunks: int = CHUNKS,
    progress: bool | None = None,
) -> Comparison:
    """Quantize a model by each scheme and measure every copy beside the original.

    Args:
        model: a name for `qkit.load`, or a model (then give its tokenizer). It is left as it is: the copies share every
            tensor with it that they do not replace.
        schemes: any number, each as `qkit.quantize` takes it; by default the tour from 8 bits down to 2, with groups that go into
            the rows of this model.
        text: what to evaluate on; by default the passages of "tales". Of a list each text is a passage, of one text each chunk.
        name, text_name: how the table calls the model and the text.
        max_chunks: evaluate on the first chunks only.
        calibration: what schemes that need data learn from; by default "python-docs".
        calibration_chunks: how much of it, in chunks of 511 tokens.
        progress: show bars; None: on a terminal only.
    """
    title = name or (model if isinstance(model, str) else type(model).__name__)
    if isinstance(schemes, Scheme | Mapping):
        raise TypeError(f"schemes is {plan_name(schemes)} alone; give a list of schemes, [scheme, ...]")
    for scheme in schemes or ():
        check_plan(scheme)
    names = [plan_name(scheme) for scheme in schemes or ()]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"scheme {twice!r} is given twice; leave one out")
    if isinstance(model, str):
        model, tokenizer = load(model)
    check_model(model)
    if schemes is None:
        schemes = list(dict.fromkeys(fitted(TOUR, find_targets(model)[0])))
    if text is None:
        text, text_name = passages("tales"), "tales"
    if calibration is None and any(needs_calibration(scheme) for scheme in schemes):
        calibration = texts("python-docs")
    if calibration is not None:
        calibration = model_ids(model, calibration, tokenizer, calibration_chunks)  # encoded once for all
    copies: dict[str, nn.Module] = {"FP32": model}
    reports: dict[str, QuantizationReport] = {}
    for scheme in schemes:
        warm_up(scheme)  # the seconds of a row are those of its method, not of the compiler
        copies[plan_name(scheme)] = copy = clone(model)
        reports[plan_name(scheme)] = quantize(copy, scheme, calibration=calibration, progress=progress)
    evaluations = evaluate(copies, tokenizer, text, max_chunks, progress)
    full, original = float32_bytes(model), evaluations["FP32"]
    tokens = [passage.tokens for passage in original.passages]
    rows = []
    for scheme_name, copied in copies.items():
        report, found = reports.get(scheme_name), evaluations[scheme_name]
        size = disk_bytes(copied) if report else full
        ratio = found.perplexity / original.perplexity
        rows.append(
            ComparisonRow(
                name=scheme_name,
                scheme=report.scheme if report else None,
                perplexity=found.perplexity,
                kl=found.kl,
                disk_bytes=size,
                memory_bytes=memory_bytes(copied),
                bits_per_weight=report.bits_per_weight if report else 32.0,
                compression=full / size,
                seconds=report.seconds if report else 0.0,
                report=report,
                kl_error=mean_of([passage.kl for passage in found.passages], tokens).error,
                ratio=ratio,
                ratio_error=ratio * found.difference(original, "nll").error,
                passages=found.passages,
            )
        )
    return Comparison(title, text_name or "your text", original.tokens, tuple(rows))
